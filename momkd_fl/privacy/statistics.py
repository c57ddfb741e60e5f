"""What a site adds to the memory: bounded sums and counts per class and slot, the same type for one patient,
one site and the federation (PRIVACY.md, "Prototype memory"; METHOD sections 8 and 10).

A patient has one unit of influence whatever number of slides and patches: its assignment weights sum to at most 1
and its embeddings are unit vectors, so its contribution to the sums of one modality has norm <= 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Assignment = Literal["balanced", "soft", "hard"]

SPREAD_SHARE = 0.2
TEMPERATURE_MIN = 1e-6
SINKHORN_ITERATIONS = 30


@dataclass(frozen=True)
class MemoryStatistics:
    """Addable sums (C, K, dim) and counts (C, K) by modality."""

    sums: dict[str, Floats]
    counts: dict[str, Floats]

    def __add__(self, other: MemoryStatistics) -> MemoryStatistics:
        def added(one: dict[str, Floats], two: dict[str, Floats]) -> dict[str, Floats]:
            both = {name: one[name] + two[name] for name in one if name in two}
            return {**one, **two, **both}

        return MemoryStatistics(added(self.sums, other.sums), added(self.counts, other.counts))

    def to_arrays(self, dtype: type[np.floating[Any]] = np.float32) -> dict[str, NDArray[Any]]:
        """Flat names ``sums.<modality>`` and ``counts.<modality>``."""
        return {f"{kind}.{m}": v.astype(dtype) for kind in ("sums", "counts") for m, v in vars(self)[kind].items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> MemoryStatistics:
        """The inverse of :meth:`to_arrays`."""
        found: dict[str, dict[str, Floats]] = {"sums": {}, "counts": {}}
        for name, value in arrays.items():
            kind, modality = name.split(".", 1)
            found[kind][modality] = np.asarray(value, np.float64)
        return cls(**found)


def assign(embeddings: Floats, slots: Floats, how: Assignment, mass: Floats | None = None) -> Floats:
    """Assignment weights (n, K) of embeddings (n, S) to the slots (K, S) of their class; each row sums to its mass.

    ``soft`` is a softmax over slots; ``balanced`` adds one offset a slot, found by Sinkhorn's iterations, at which
    all slots get equal shares of the whole mass, so that none is left behind. Only the column sums (K numbers) and
    the spread ever concern more than one patient.

    The temperature is a share of the similarities' own spread. At a fixed one, embeddings that lie close together,
    as those of an untrained student do, would be spread evenly over all slots, and the slots become one direction
    while their counts look healthy. Fewer than 2 K embeddings are not balanced: one patient would fill every slot.
    """
    mass = np.ones(len(embeddings)) if mass is None else mass
    similarity = embeddings @ slots.T
    per_class = similarity.shape[1]
    if how == "hard":
        chosen = np.zeros_like(similarity)
        chosen[np.arange(len(similarity)), similarity.argmax(axis=1)] = 1.0
        return chosen * mass[:, None]
    share = mass / max(float(mass.sum()), 1e-300)
    centred = similarity - share @ similarity
    spread = np.sqrt((share @ np.square(centred)).mean())
    temperature = max(SPREAD_SHARE * float(spread), TEMPERATURE_MIN)
    if how == "soft" or len(embeddings) < 2 * per_class:
        return _softmax(similarity / temperature) * mass[:, None]
    offset = np.zeros(per_class)
    for _ in range(SINKHORN_ITERATIONS):
        columns = share @ _softmax(centred / temperature + offset)
        offset -= np.log(np.maximum(columns * per_class, 1e-300))
    return _softmax(centred / temperature + offset) * mass[:, None]


def _softmax(scores: Floats) -> Floats:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def summed(
    modality: str, embeddings: Floats, weights: Floats, labels: NDArray[np.int64], classes: int
) -> MemoryStatistics:
    """s[c,k] = sum of weight * embedding and n[c,k] = sum of weight over the rows of class c.

    Parameters
    ----------
    embeddings : (n, dim) unit vectors, of patients or of their patches
    weights : (n, K); the rows of one patient sum to at most 1 together
    labels : (n,) class of the patient of each row
    """
    sums = np.zeros((classes, weights.shape[1], embeddings.shape[1]))
    counts = np.zeros((classes, weights.shape[1]))
    for label in range(classes):
        rows = labels == label
        sums[label] = weights[rows].T @ embeddings[rows]
        counts[label] = weights[rows].sum(axis=0)
    return MemoryStatistics({modality: sums}, {modality: counts})


def scaling_sums(values: Floats) -> dict[str, NDArray[np.float32]]:
    """n (1,), sum (G,) and sum of squares (G,) of gene values (patients, G)."""
    return {
        "n": np.array([len(values)], np.float32),
        "sum": values.sum(axis=0).astype(np.float32),
        "sum_sq": np.square(values).sum(axis=0).astype(np.float32),
    }


def selection_sums(
    values: Floats, labels: NDArray[np.int64], hospitals: NDArray[Any], classes: int
) -> dict[str, NDArray[np.float32]]:
    """What tells which genes differ between classes: sums over patients, each gene centred within its hospital.

    Centred first, because hospitals differ in level (batch) and in prevalence: without it, a gene that is merely
    measured higher where positives are frequent would look like a gene of that class.

    Parameters
    ----------
    values : (n, G) expression of labelled *training* patients; n may be 0
    labels : (n,) class
    hospitals : (n,) whose patient it is; several only where cohorts are pooled
    classes : number C of classes

    Returns
    -------
    dict
        ``sum`` (C, G) sums by class of the centred values, ``sum_sq`` (G,) their sums of squares over all classes,
        ``balance`` (C, C) the sums of products of the class indicators, centred alike: diag(n) - n n^T / N in
        one hospital. Added over sites, all three are those of the sites' patients put together.
    """
    total = {
        "sum": np.zeros((classes, values.shape[1])),
        "sum_sq": np.zeros(values.shape[1]),
        "balance": np.zeros((classes, classes)),
    }
    for hospital in np.unique(hospitals):
        rows = hospitals == hospital
        centred = values[rows] - values[rows].mean(axis=0)
        member = np.eye(classes)[labels[rows]]
        total["sum"] += member.T @ centred
        total["sum_sq"] += np.square(centred).sum(axis=0)
        counts = member.sum(axis=0)
        total["balance"] += np.diag(counts) - np.outer(counts, counts) / counts.sum()
    return {name: value.astype(np.float32) for name, value in total.items()}


def moment_sums(z: Floats) -> dict[str, NDArray[np.float32]]:
    """n (1,), sum (G,) and sum of outer products (G, G) of norm-clipped z-scores (patients, G)."""
    return {
        "n": np.array([len(z)], np.float32),
        "sum": z.sum(axis=0).astype(np.float32),
        "outer": (z.T @ z).astype(np.float32),
    }
