"""One site that sends -100 times its update: what is left of the step under each rule, and what a middle costs.

    python -m benchmarks robust [--parameters 1000000] [--sites 10] [--quick]

Sites agree on a direction and differ around it, by ``DISAGREEMENT`` of its length in every number. The error is that of
the step against the mean of the honest sites, over that mean's norm; each difference goes through the coordinator's own
aggregation, clipped to the honest sites' median norm. Unclipped is the mean of what arrives. Without an attacker the
same bound loses what the last lines say. Times are CPU-seconds of one round's aggregation, after the replies are
unpacked.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, at_most, print_figures, without_targets
from momkd_fl.config.aggregation import TRIMMED_SITES_MIN, Aggregation
from momkd_fl.federation.aggregation import RunningMean, new_aggregate
from momkd_fl.federation.robust import norm

FACTOR = -100.0
DISAGREEMENT = 0.5
ERROR_MAX = {"clipped": 0.7, "geometric_median": 0.3}
"""PRIVACY.md: clipped 0.4-0.7, geometric median 0.1-0.3, for 3 to 5 sites."""
RULES: dict[str, Aggregation] = {
    "unclipped": Aggregation(),
    "clipped": Aggregation(),
    "geometric_median": Aggregation(kind="robust"),
    "trimmed_mean": Aggregation(kind="robust", rule="trimmed_mean"),
}
Vectors = list[NDArray[np.float32]]


def sent(sites: int, parameters: int, seed: int) -> Vectors:
    """Honest updates."""
    random = np.random.default_rng(seed)
    shared = random.standard_normal(parameters, np.float32)
    noise = np.float32(DISAGREEMENT)
    return [shared + noise * random.standard_normal(parameters, np.float32) for _ in range(sites)]


def step(rule: str, vectors: Vectors, bound: float) -> NDArray[np.float64]:
    """The coordinator's step for updates of one branch."""
    limit = math.inf if rule == "unclipped" else bound
    aggregate = new_aggregate(RULES[rule], {"histology": vectors[0].size}, limit)
    for number, vector in enumerate(vectors):
        aggregate.add(f"site-{number}", {"histology": vector}, 1.0)
    return aggregate.steps()["histology"]


def errors(sites: int, parameters: int, seed: int = 0) -> list[Figure]:
    """Each rule's error with the first site poisoned, and without."""
    honest = sent(sites, parameters, seed)
    bound = float(np.median([norm([vector]) for vector in honest]))
    attacked = [np.float32(FACTOR) * honest[0], *honest[1:]]
    figures = []
    for name, vectors, believed in (("attack", attacked, honest[1:]), ("calm", honest, honest)):
        truth = np.mean(believed, axis=0, dtype=np.float64)
        for rule in RULES:
            if rule == "trimmed_mean" and sites < TRIMMED_SITES_MIN:
                continue
            off = step(rule, vectors, bound) - truth
            error = round(float(np.linalg.norm(off) / np.linalg.norm(truth)), 4)
            target = ERROR_MAX.get(rule) if name == "attack" else 0.01 if rule == "clipped" else None
            figures.append(at_most(f"robust.{name}.{rule}.{sites}_sites", error, "of the honest step's norm", target))
    return figures


def cpu_seconds(work: Callable[[], object], repetitions: int) -> tuple[float, tuple[float, float]]:
    """Median and extremes of CPU-seconds."""
    took = []
    for _ in range(repetitions):
        started = time.process_time()
        work()
        took.append(time.process_time() - started)
    return round(float(np.median(took)), 3), (round(min(took), 3), round(max(took), 3))


def costs(sites: int, parameters: int, repetitions: int) -> list[Figure]:
    """Time of each rule and what it holds beyond the model."""
    vectors = sent(sites, parameters, 1)
    bound = float(np.median([norm([vector]) for vector in vectors]))
    figures = []
    for rule in ("clipped", "geometric_median", "trimmed_mean"):
        print(f"{rule}: {repetitions} rounds of {sites} sites", file=sys.stderr, flush=True)
        value, spread = cpu_seconds(lambda rule=rule: step(rule, vectors, bound), repetitions)  # type: ignore[misc]
        figures.append(Figure(f"robust.seconds.{rule}", value, "CPU-s a round", spread=spread))
        held = 1 if isinstance(new_aggregate(RULES[rule], {}, bound), RunningMean) else sites
        size = 8 if held == 1 else 4
        figures.append(
            Figure(f"robust.held_mb.{rule}", round(held * size * parameters / 1e6, 1), "MB beside the model")
        )
    return figures


def main() -> int:
    """Entry point; exit status 1 if a rule leaves more of the attack than the design says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--sites", type=int, default=10, help="sites whose aggregation is timed")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smoke run of 10,000 parameters")
    args = parser.parse_args()
    parameters, repetitions = (10_000, 1) if args.quick else (args.parameters, args.repetitions)
    figures = []
    for sites in (3, 5, args.sites):
        print(f"errors of {sites} sites", file=sys.stderr, flush=True)
        figures += errors(sites, min(parameters, 200_000))
    figures += costs(args.sites, parameters, repetitions)
    return print_figures(without_targets(figures) if args.quick else figures)


if __name__ == "__main__":
    sys.exit(main())
