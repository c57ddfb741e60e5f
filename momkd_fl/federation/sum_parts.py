"""What a secure sum consists of: an answer's arrays and numbers as stretches of one vector, on both sides alike.

A site holds the manifest's segments against these parts, which it works out itself from the run's public settings; so a
coordinator cannot have it sum anything else, or more coarsely gated.

A part's gate is what a site must hold to contribute to it: genomics (``genomics``), enough training patients of a class
(``class.0``), of a class with genomics (``class.0.genomics``), or enough patients of every class in a split (``test``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from momkd_fl.config.federation import FederationConfig
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.federation.aggregation import public_norm
from momkd_fl.federation.messages import Arrays, Body, EvaluateReply, TrainReply
from momkd_fl.secagg.encoding import Encoding
from momkd_fl.secagg.manifest import HOLDERS_MIN, SITES_COMPLETE_MAX, Segment

Flat = dict[str, NDArray[Any]]

GENES_LIMIT: Final = 2.0**36
"""Range of sums and squares of gene values over a site's patients, on whatever scale they are."""
COUNTS_LIMIT: Final = 2.0**31
GENOMICS: Final = "genomics"
METRICS: Final = (
    "losses.classification",
    "losses.memory",
    "losses.align_histology",
    "monitors.effective_patches",
    "seconds.evaluate",
    "seconds.statistics",
    "seconds.train",
)
GENOMIC_METRICS: Final = (
    "losses.align_genomics", "losses.batch", "losses.logits", "losses.match", "losses.reconstruction",
)  # fmt: skip
"""Means over a site's own patients, of which a round's record shows the mean over sites."""


@dataclass(frozen=True)
class Part:
    """A stretch of the vector.

    Parameters
    ----------
    source : where its numbers are in a flat answer (``update.histology``, ``statistics.counts.genomics``, ``loss_sum``)
    shape : of them
    encoding : as the manifest must have it
    row : which row of the source alone, where each has a gate of its own
    gate : what a site must hold to contribute; None: nothing
    weighted : whether sites count by their public weights
    """

    source: str
    shape: tuple[int, ...]
    encoding: Encoding
    row: int | None = None
    gate: str | None = None
    weighted: bool = False

    @property
    def name(self) -> str:
        """The segment's name."""
        return self.source if self.row is None else f"{self.source}.{self.row}"

    def segment(self, holders: tuple[str, ...] | None) -> Segment:
        """The manifest's segment, with who contributes."""
        return Segment(self.name, math.prod(self.shape), self.encoding, holders)

    def of(self, made: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """Its numbers (L,) in a flat answer; zeros where a site has none (a modality, or a class, that it lacks)."""
        if self.source not in made:
            return np.zeros(math.prod(self.shape))
        whole = np.asarray(made[self.source], np.float64)
        return (whole if self.row is None else whole[self.row]).reshape(-1)


def encoding(config: FederationConfig, limit: float, weight_max: float = 1.0) -> Encoding:
    """The finest encoding up to ``aggregation.fraction_bits`` whose sum over fifty sites does not wrap."""
    for bits in range(config.aggregation.fraction_bits, 0, -1):
        found = Encoding(bits, limit, weight_max)
        if found.fits(SITES_COMPLETE_MAX):
            return found
    return Encoding(0, limit, weight_max)


def sites_min(config: FederationConfig, parts: Iterable[Part]) -> int:
    """Fewest sites in a sum of these parts: where each adds a share of the noise, one more than makes up the whole.

    One more, since whoever reads the sum may be a site that takes its own share off it.
    """
    shared = config.privacy.noise_shares > 1 and any(part.source.startswith("statistics.") for part in parts)
    return max(HOLDERS_MIN, config.privacy.noise_shares + 1) if shared else HOLDERS_MIN


def update_encoding(config: FederationConfig, parameters: int, weight_max: float = 1.0) -> Encoding:
    """Of a weight difference: the norm that it is clipped to bounds each number; a hair above it is rounding."""
    return encoding(config, 1.001 * public_norm(config, parameters), weight_max)


def train_parts(
    config: FederationConfig,
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
    *,
    released: bool,
    weights: Iterable[float] = (),
) -> list[Part]:
    """Of a ``train`` answer.

    Parameters
    ----------
    shapes : of a genomic site's answer by group and name (student.reply_shapes)
    released : whether the round has sums of the memory
    weights : the sites' public weights other than 1
    """
    heaviest = max([1.0, *weights])
    numbers = sum(math.prod(shape) for shape in shapes["update"].values())
    width = update_encoding(config, numbers, heaviest)
    parts = [
        Part(f"update.{branch}", shape, width, gate=GENOMICS if branch == "genomics" else None, weighted=True)
        for branch, shape in shapes["update"].items()
    ]
    if released:
        exact = not config.privacy.memory_noisy
        parts += _by_class(config, shapes["statistics"], exact=exact)
    if config.privacy.measured:
        parts += _measured(config, "validation")
        parts.append(_metrics("metrics", METRICS, config, None))
        parts.append(_metrics("metrics.genomics", GENOMIC_METRICS, config, GENOMICS))
    return parts


def start_parts(config: FederationConfig, step: str, shapes: Mapping[str, tuple[int, ...]]) -> list[Part]:
    """Of an ``initialise`` answer, from the shapes that the step's sums have."""
    if step in ("anchors", "slots"):
        return list(_by_class(config, shapes, exact=not config.privacy.memory_noisy))
    return [
        Part(f"statistics.{name}", tuple(shape), encoding(config, GENES_LIMIT), gate=GENOMICS)
        for name, shape in shapes.items()
    ]


def select_parts(config: FederationConfig, genes: int) -> list[Part]:
    """Of a ``select`` answer."""
    wide, classes = encoding(config, GENES_LIMIT), config.classes
    return [
        *(Part("statistics.sum", (genes,), wide, row=c, gate=_class_gate(c, GENOMICS)) for c in range(classes)),
        Part("statistics.sum_sq", (genes,), wide, gate=GENOMICS),
        Part("statistics.balance", (classes, classes), wide, gate=GENOMICS),
    ]


def evaluate_parts(config: FederationConfig, split: str) -> list[Part]:
    """Of an ``evaluate`` answer."""
    return _measured(config, split) if config.privacy.measured else []


def flat_answer(body: Body, arrays: Arrays) -> Flat:
    """What a site would have sent, under the names that parts know."""
    found: Flat = {f"{group}.{name}": value for group, members in arrays.items() for name, value in members.items()}
    if isinstance(body, TrainReply | EvaluateReply) and body.loss_sum:
        found["loss_sum"] = np.array(body.loss_sum, np.float64)
    if isinstance(body, TrainReply):
        values = {
            f"{kind}.{name}": v for kind in ("losses", "monitors", "seconds") for name, v in vars(body)[kind].items()
        }
        found["metrics"] = _present(METRICS, values)
        found["metrics.genomics"] = _present(GENOMIC_METRICS, values)
    return found


def mean_metrics(total: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, float]]:
    """Mean over the sites that measured it, at least three; by kind (``losses``, ``monitors``, ``seconds``), name."""
    means: dict[str, dict[str, float]] = {"losses": {}, "monitors": {}, "seconds": {}}
    for source, names in (("metrics", METRICS), ("metrics.genomics", GENOMIC_METRICS)):
        if source not in total:
            continue
        for name, (value, sites) in zip(names, total[source].reshape(-1, 2), strict=True):
            kind, _, word = name.partition(".")
            if sites > HOLDERS_MIN - 0.5:
                means[kind][word] = float(value / sites)
    return means


def assembled(parts: Collection[Part], values: Mapping[str, NDArray[np.float64]], rows: int) -> Flat:
    """Sums by source, from the segments' values; zeros for a withheld row, nothing for a withheld source.

    Parameters
    ----------
    rows : how many rows a source has that is cut into rows: the number of classes
    """
    total: Flat = {}
    for part in parts:
        if part.name not in values:
            continue
        value = values[part.name].reshape(part.shape)
        if part.row is None:
            total[part.source] = value
        else:
            total.setdefault(part.source, np.zeros((rows, *part.shape)))[part.row] = value
    return total


def agreed_noise(config: FederationConfig) -> str:
    """The settings that a share of noise follows from, which all sites of a sum must have been told alike.

    Nothing where each site adds all of its noise: then its epsilon hangs on no other site's settings.
    """
    if config.privacy.noise_shares == 1:
        return ""
    return json.dumps([config.classes, config.privacy.model_dump(mode="json"), config.memory.model_dump(mode="json")])


def question_digest(
    question: str, body: str, site_weights: Mapping[str, float], arrays: Arrays, noise: str = ""
) -> bytes:
    """H(theta_t, M_t): SHA-256 over the question as a site received it, which the manifest binds (32 bytes).

    ``noise`` as :func:`agreed_noise`, or a coordinator could tell other sites to add smaller shares.
    """
    digest = hashlib.sha256(b"momkd-question-1\n")
    digest.update(noise.encode())
    digest.update(json.dumps([question, body, sorted(site_weights.items())]).encode())
    for group in sorted(arrays):
        for name in sorted(arrays[group]):
            value = np.ascontiguousarray(arrays[group][name], np.float32)
            digest.update(json.dumps([group, name, list(value.shape)]).encode())
            digest.update(value.tobytes())
    return digest.digest()


def _by_class(config: FederationConfig, shapes: Mapping[str, tuple[int, ...]], *, exact: bool) -> Iterator[Part]:
    """Sums (C, K, S) and counts (C, K): by class where they are exact; with noise they are full of it everywhere."""
    width = encoding(config, config.aggregation.sums_limit)
    for name, shape in shapes.items():
        modality = GENOMICS if name.endswith(f".{GENOMICS}") else None
        if not exact:
            yield Part(f"statistics.{name}", tuple(shape), width, gate=modality)
            continue
        for c in range(shape[0]):
            yield Part(f"statistics.{name}", tuple(shape[1:]), width, row=c, gate=_class_gate(c, modality))


def _class_gate(c: int, modality: str | None) -> str:
    return f"class.{c}" if modality is None else f"class.{c}.{modality}"


def _measured(config: FederationConfig, split: str) -> list[Part]:
    histogram = ScoreHistogram.empty(config.classes).to_arrays()
    counts = Encoding(0, COUNTS_LIMIT)
    losses = encoding(config, config.aggregation.sums_limit)
    return [
        *(Part(f"scores.{name}", value.shape, counts, gate=split) for name, value in histogram.items()),
        Part("loss_sum", (config.classes,), losses, gate=split),
    ]


def _metrics(source: str, names: tuple[str, ...], config: FederationConfig, gate: str | None) -> Part:
    return Part(source, (len(names), 2), encoding(config, config.aggregation.sums_limit), gate=gate)


def _present(names: tuple[str, ...], values: Mapping[str, float]) -> NDArray[np.float64]:
    """(names, 2): the value and 1, or zeros where it was not measured."""
    return np.array([[values[name], 1.0] if name in values else [0.0, 0.0] for name in names])


def start_shapes(
    config: FederationConfig, step: str, genes: int, memory: Mapping[str, NDArray[Any]]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one step's sums at the start; ``memory``: the anchors or slots as they are now."""
    if step == "scaling" and config.privacy.memory_noisy:
        return {"sums.means": (1, 1, genes), "counts.means": (1, 1)}
    if step == "scaling":
        return {"n": (1,), "sum": (genes,), "sum_sq": (genes,)}
    if step == "moments":
        return {"n": (1,), "sum": (genes,), "outer": (genes, genes)}
    group, modality = ("anchors", GENOMICS) if step == "anchors" else ("slots", "histology")
    shape = memory[group].shape
    return {f"sums.{modality}": shape, f"counts.{modality}": shape[:2]}
