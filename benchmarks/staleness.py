"""What it costs that the memory is measured under older weights than it is used with (METHOD section 8).

    python -m benchmarks.staleness [--seeds 11 12 ...] [--jobs 2] [--quick]

A round's sums are taken under theta_t, before training; the memory M_{t+1} that they move is used with theta_{t+1}.
Each seed writes the synthetic cohort anew and trains twice from the same start: *stale*, as the product does, and
*renewed*, with the sums taken again under theta_{t+1} as soon as it is known, so that M_{t+1} is moved by directions of
the weights it is used with. The renewed run needs a second exchange in every round. Rounds are selected on validation
patients in both; sites that never trained are scored once, at the end.

Directions are compared along the stale run; a difference is renewed minus stale on the same patients. Its interval is
that of the random-effects mean over seeds, each of which has patients, slides and weights of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from benchmarks.figures import Figure, print_figures
from benchmarks.settings import SETTINGS
from momkd_fl.config.base import load, parse
from momkd_fl.config.federation import FederationConfig, Memory
from momkd_fl.config.site import SiteConfig
from momkd_fl.evaluation.comparison import Scores, compare
from momkd_fl.evaluation.intervals import Z95, random_effects
from momkd_fl.federation.client import make_client_app
from momkd_fl.federation.comparators import Shelf, read_predictions
from momkd_fl.federation.coordinator import Coordinator, Outcome
from momkd_fl.federation.egress import simulation_gate
from momkd_fl.federation.local import LocalGrid
from momkd_fl.federation.memory_bank import move_slots
from momkd_fl.federation.messages import Arrays
from momkd_fl.federation.participant import Participant
from momkd_fl.federation.rounds import Course
from momkd_fl.federation.strategy import MemoryFedAvg, as_arrays
from momkd_fl.federation.watch import unwatched
from momkd_fl.privacy.statistics import MemoryStatistics
from momkd_fl.synth.cohort import DEMO_SITES, SynthSite, write_consortium

TASK = "PR"
ANGLE_DEG = 15.0
QUICK_SITES = tuple(dataclasses.replace(site, patients=24) for site in (*DEMO_SITES[:2], *DEMO_SITES[-3:]))
Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Remeasured:
    """One round, measured twice.

    Attributes
    ----------
    old, new : (C, K, S) histology directions l2norm(s) under theta_t and under theta_{t+1}, both with M_t
    stale, renewed : (C, K, S) the memory M_{t+1} that the sums under theta_t and under theta_{t+1} make
    seconds : of the second pass, by site
    """

    old: Floats
    new: Floats
    stale: NDArray[np.float32]
    renewed: NDArray[np.float32]
    seconds: dict[str, float]


class Site(Participant):
    """A site that can be asked for its sums at any time."""

    def statistics_under(self, run: str, arrays: Arrays) -> MemoryStatistics:
        """Sums over the training patients under ``weights`` and ``memory``; leaves training as it was."""
        work = self.ready(run)
        return work.statistics(work.receive(arrays))


class RemeasuringFedAvg(MemoryFedAvg):
    """FedAvg that asks for the sums a second time, under the weights it has just formed.

    With ``renew`` the memory moves by these; otherwise they are only noted, and the run is the product's.
    """

    def __init__(self, sites: Mapping[str, Site], memory: Memory, renew: bool) -> None:
        super().__init__()
        self.sites, self.settings, self.renew = sites, memory, renew
        self.rounds: list[Remeasured] = []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As :class:`MemoryFedAvg`, then the second pass."""
        record, metrics = super().aggregate_train(server_round, replies)
        if record is None:
            return record, metrics
        first, second, seconds = self.contributions.statistics, dict[str, Floats](), dict[str, float]()
        sent: Arrays = {"weights": as_arrays(record), "memory": self.memory}
        for site in self.contributions.trained:
            started = time.perf_counter()
            sums = self.sites[site].statistics_under(self.run, sent).to_arrays()
            seconds[site] = time.perf_counter() - started
            for name, value in sums.items():
                second[name] = second.get(name, 0.0) + value.astype(np.float64)
        old, new = (_unit(sums["sums.histology"]) for sums in (first, second))
        self.rounds.append(Remeasured(old, new, self._moved(first), self._moved(second), seconds))
        if self.renew:
            self.contributions.statistics = second
        return record, metrics

    def _moved(self, statistics: Mapping[str, Floats]) -> NDArray[np.float32]:
        parsed = MemoryStatistics.from_arrays(statistics)
        slots, _ = move_slots(
            self.memory["slots"],
            parsed.sums,
            parsed.counts,
            momentum=self.settings.momentum,
            genomic_weight=self.settings.genomic_weight,
            min_count=self.settings.min_count,
        )
        return slots


class RemeasuringCoordinator(Coordinator):
    """The product's coordinator with :class:`RemeasuringFedAvg` in its strategy's place."""

    remeasuring: RemeasuringFedAvg

    def _course(self, *state: Any) -> Course:
        course = super()._course(*state)
        usual = course.strategy
        self.remeasuring.serve(
            run=usual.run,
            site_weights=usual.site_weights,
            reply_shapes=usual.reply_shapes,
            quorum=usual.quorum,
            on_reply=usual.on_reply,
        )
        return dataclasses.replace(course, strategy=self.remeasuring)


@dataclasses.dataclass(frozen=True)
class Trained:
    """One run: every round measured twice, seconds of its rounds, and the selected model's scores.

    ``swapped`` are the scores of the same weights with the memory of the other kind of sums.
    """

    rounds: list[Remeasured]
    round_seconds: list[float]
    held_out: Scores
    validation: Scores
    swapped: Scores


def train(config: FederationConfig, shelf: Shelf, renew: bool) -> Trained:
    """One federation in this process over the cohorts on ``shelf``."""
    sites = {name: _site(name, member.role, config, shelf) for name, member in config.members.items()}
    apps = {
        name: (
            make_client_app(site, site.say, gate=simulation_gate(name)),
            Context(0, 0, node_config={}, state=RecordDict(), run_config={}),
        )
        for name, site in sites.items()
    }
    coordinator = RemeasuringCoordinator(
        config, LocalGrid(apps), unwatched(config), threading.Event(), lambda: {}, fresh=True
    )
    coordinator.remeasuring = RemeasuringFedAvg(sites, config.memory, renew)
    outcome = coordinator.run()
    assert outcome is not None  # nobody stops it
    rounds = coordinator.remeasuring.rounds
    return Trained(
        rounds,
        [record.seconds for record in outcome.state.history],
        _written(config, "evaluate", "test"),
        _written(config, "train", "validation"),
        _swapped(config, sites, outcome, rounds, renew),
    )


def _site(name: str, role: Any, config: FederationConfig, shelf: Shelf) -> Site:
    folder = config.output_dir / "sites" / name
    return Site(name, role, lambda asked: shelf.cohort(name, role, asked), folder, shelf.device, lambda sentence: None)


def _written(config: FederationConfig, role: str, split: str) -> Scores:
    """Predictions of the selected model that the sites of a role wrote."""
    names = [name for name, member in config.members.items() if member.role == role]
    paths = [config.output_dir / "sites" / name / f"predictions_{split}.csv" for name in names]
    return Scores.join([read_predictions(path, name) for path, name in zip(paths, names, strict=True)])


def _swapped(
    config: FederationConfig, sites: Mapping[str, Site], outcome: Outcome, rounds: Sequence[Remeasured], renew: bool
) -> Scores:
    """Held-out scores of the selected weights with M as the other sums, taken at the same moment, make it."""
    best, state, parts = outcome.chosen.best, outcome.state, []
    memory = dict(best.memory)
    if best.round:  # the slots of round 0 were placed under the weights of round 0
        measured = rounds[best.round - 1]
        memory["slots"] = measured.stale if renew else measured.renewed
    for name, member in config.members.items():
        if member.role == "evaluate":
            with_it: Arrays = {"weights": best.weights, "memory": memory}
            one = sites[name].score_with(state.run, config, state.panel, state.space, with_it)
            ids = tuple(f"{name}/{patient}" for patient in one.ids)
            parts.append(Scores(ids, one.labels, one.probabilities, (name,) * len(ids)))
    return Scores.join(parts)


def federation(seed: int, members: Mapping[str, Any], folder: Path, settings: Mapping[str, Any]) -> FederationConfig:
    """The configuration of one run, with its results in ``folder``."""
    raw = {
        "name": "staleness",
        "task": TASK,
        "encoder": {"name": "synthetic-256", "dim": 256},
        "output_dir": str(folder),
        "members": dict(members),
        "seed": seed,
        **settings,
    }
    raw["rounds"] = {**settings["rounds"], "quorum": 1}
    return parse(raw, FederationConfig, folder / "federation.yaml")


def train_pair(asked: tuple[int, bool]) -> tuple[Trained, Trained]:
    """The stale and the renewed run of one seed, on one thread."""
    seed, quick = asked
    torch.set_num_threads(1)
    sites: Sequence[SynthSite] = QUICK_SITES if quick else DEMO_SITES
    settings = {**SETTINGS, "rounds": {**SETTINGS["rounds"], **({"count": 3} if quick else {})}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_consortium(folder / "data", sites, seed=seed, tasks=(TASK,))
        shelf = Shelf({site: load(path, SiteConfig) for site, path in files.items()}, torch.device("cpu"))
        members = {site.name: {"role": site.role} for site in sites}
        runs = []
        for renew in (False, True):
            runs.append(train(federation(seed, members, folder / str(renew), settings), shelf, renew))
            print(f"seed {seed}, {'renewed' if renew else 'stale'}: trained", file=sys.stderr, flush=True)
    return runs[0], runs[1]


def figures_of(pairs: Sequence[tuple[Trained, Trained]]) -> list[Figure]:
    """Directions along the stale runs, what renewing them gives, and what it takes."""
    stale = [one for one, _ in pairs]
    cosines, apart, lag = (
        np.concatenate([_cosines(getattr(each, one), getattr(each, other)) for run in stale for each in run.rounds[1:]])
        for one, other in (("old", "new"), ("stale", "renewed"), ("stale", "new"))
    )
    first = np.concatenate([_cosines(run.rounds[0].old, run.rounds[0].new) for run in stale])
    beyond = np.mean(cosines < np.cos(np.deg2rad(ANGLE_DEG)))
    slowest = np.median([max(each.seconds.values()) for run in stale for each in run.rounds])
    passes = sum(sum(each.seconds.values()) for run in stale for each in run.rounds)
    rounds = sum(sum(run.round_seconds) for run in stale) - passes
    return [
        Figure("staleness.slot_cosine", _round(np.median(cosines)), "cosine, median after round 1"),
        Figure("staleness.slot_cosine.first_round", _round(np.median(first)), "cosine, median"),
        Figure("staleness.slots_beyond_15_deg", _round(beyond), "share of slots after round 1"),
        Figure("staleness.memory_angle", _round(np.median(np.arccos(apart))), "rad, stale to renewed memory"),
        Figure("staleness.memory_cosine", _round(np.median(lag)), "cosine, stale memory and renewed direction"),
        _cost("staleness.auroc_cost", [(renewed.held_out, one.held_out) for one, renewed in pairs]),
        _cost("staleness.auroc_cost.validation", [(renewed.validation, one.validation) for one, renewed in pairs]),
        _cost("staleness.auroc_cost.same_weights", [(one.swapped, one.held_out) for one in stale]),
        Figure("staleness.seconds_saved", _round(slowest), "s a round, the slowest site's second pass"),
        Figure("staleness.share_of_round", _round(passes / rounds), "second pass over a stale round, all sites"),
    ]


def _cost(name: str, pairs: Sequence[tuple[Scores, Scores]]) -> Figure:
    """AUROC of the first minus that of the second, mean over seeds; one seed has the interval of its patients alone."""
    found = [compare(one, other, class_minimum=2).difference for one, other in pairs]
    bounds = [(each.value, each.low, each.high) for each in found]
    values = np.array(bounds, np.float64)
    if len(values) == 1:
        value, low, high = values[0]
    else:
        errors = np.maximum((values[:, 2] - values[:, 1]) / (2 * Z95), 1e-6)
        mean = random_effects(values[:, 0], errors**2).mean
        value, low, high = np.array([mean.value, mean.low, mean.high], np.float64)
    return Figure(name, _round(value), "AUROC, renewed - stale", interval=(_round(low), _round(high)))


def _cosines(one: NDArray[Any], other: NDArray[Any]) -> Floats:
    """Cosines (slots,) of matching rows (C, K, S); slots to which no patient was assigned have none."""
    ours, theirs = _unit(one).reshape(-1, one.shape[-1]), _unit(other).reshape(-1, other.shape[-1])
    known = ours.any(axis=1) & theirs.any(axis=1)
    return np.asarray(np.clip((ours[known] * theirs[known]).sum(axis=1), -1.0, 1.0))


def _unit(values: NDArray[Any]) -> Floats:
    length = np.linalg.norm(values.astype(np.float64), axis=-1, keepdims=True)
    return np.asarray(np.where(length > 1e-12, values / np.maximum(length, 1e-12), 0.0))


def _round(value: Any) -> float:
    return round(float(value), 4) + 0.0  # no -0.0


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(11, 19)))
    parser.add_argument("--jobs", type=int, default=2, help="seeds trained side by side, one thread each")
    parser.add_argument("--quick", action="store_true", help="small hospitals, three rounds, two seeds")
    args = parser.parse_args()
    asked = [(seed, args.quick) for seed in (args.seeds[:2] if args.quick else args.seeds)]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        pairs = pool.map(train_pair, asked, chunksize=1)
    figures = figures_of(pairs)
    by_name = {figure.figure: figure for figure in figures}
    cost = by_name["staleness.auroc_cost"]
    print(
        f"Sums under the weights they are used with: held-out AUROC {cost.value:+.4f} {cost.interval} over "
        f"{len(pairs)} seeds, for {by_name['staleness.seconds_saved'].value} s more a round and a second exchange.",
        file=sys.stderr,
    )
    return print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
