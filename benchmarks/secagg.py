"""What secure aggregation costs: seconds, bytes and error of whole rounds, in one process and without a network.

Every party's CPU-seconds are taken around its own steps. The wall time is of all parties one after the other on one
core, so that over processes the sites' part of it is divided by the cores that they have.

python -m benchmarks secagg [--quick] [--repeats 3] [--case 1m_x_10]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, at_most, print_figures, without_targets
from benchmarks.interleaved import middle, middle_at_most
from benchmarks.secagg_round import STEPS, Consortium, Costs, rehearse
from momkd_fl.secagg.aggregator import Step
from momkd_fl.secagg.encoding import Encoding
from momkd_fl.secagg.manifest import Segment
from momkd_fl.secagg.site import Values
from momkd_fl.secagg.unmasking import Sum

SITE_CPU_S, WALL_S, BYTES_RATIO = 0.2, 1.5, 2.1
"""Targets at 1 M numbers and 10 sites."""

LIMIT, FRACTION_BITS = 16.0, 32
SIZES = ((1_000_000, 3), (1_000_000, 10), (10_000_000, 3), (10_000_000, 10), (1_000_000, 50))
QUICK_SIZES = ((20_000, 3), (20_000, 10))


@dataclass(frozen=True)
class Case:
    """A round's size; sites share their values where that many would not fit into memory."""

    numbers: int
    sites: int

    @property
    def name(self) -> str:
        size = f"{self.numbers // 1_000_000}m" if self.numbers >= 1_000_000 else str(self.numbers)
        return f"{size}_x_{self.sites}"

    def values(self) -> tuple[tuple[Segment, ...], dict[str, Values], list[str]]:
        """Weights, memory sums and counts, and metrics in one vector; two sets of weights serve all sites."""
        small = min(1000, self.numbers // 10)
        segments = (
            Segment("weights", self.numbers - 2 * small, Encoding(FRACTION_BITS, LIMIT)),
            Segment("memory", small, Encoding(FRACTION_BITS, 1e4)),
            Segment("counts", small, Encoding(0, 1e6)),
        )
        rng = np.random.default_rng(0)
        weights = [rng.normal(size=segments[0].length).astype(np.float32) for _ in range(2)]
        names = [f"S{number:02d}" for number in range(self.sites)]
        values: dict[str, Values] = {
            site: {
                "weights": weights[place % 2],
                "memory": rng.normal(scale=100.0, size=small),
                "counts": rng.integers(0, 1000, small).astype(np.float64),
            }
            for place, site in enumerate(names)
        }
        return segments, values, names


def plain_sum(values: Mapping[str, Values], survivors: tuple[str, ...], name: str) -> NDArray[np.float64]:
    """The sum that plain aggregation would have, in float64."""
    total = np.zeros(len(values[survivors[0]][name]))
    for site in survivors:
        total += values[site][name]
    return total


def one_round(case: Case, consortium: Consortium, drops: Mapping[str, Step]) -> tuple[Costs, float, float]:
    """Costs, wall seconds and the largest error of a decoded number against the plain sum.

    Raises
    ------
    SystemExit
        Where a sum is not within its stated error.
    """
    segments, values, _ = case.values()
    rehearsal = rehearse(consortium, consortium.manifest(segments), values)
    started = time.perf_counter()
    found: Sum = rehearsal.run(drops)
    wall = time.perf_counter() - started
    errors = {}
    for segment in segments:
        true = plain_sum(values, found.survivors, segment.name)
        errors[segment.name] = float(np.abs(found.values[segment.name] - true).max())
        if errors[segment.name] > segment.encoding.error_max(case.sites) + 1e-12 * np.abs(true).max():
            raise SystemExit(f"{case.name}: the error of {segment.name}, {errors[segment.name]}, is above its bound")
    return rehearsal.costs, wall, errors["weights"]


def whole_rounds(case: Case, repeats: int) -> Iterator[Figure]:
    """The figures of rounds without a site that drops out, the first one not counted."""
    consortium = Consortium.of(case.sites)
    rounds = []
    for number in range(repeats + 1):
        rounds.append(one_round(case, consortium, {}))
        print(f"{case.name}: round {number} of {repeats}", file=sys.stderr, flush=True)
    counted, targets = rounds[1:], case.numbers == 1_000_000 and case.sites == 10
    site_cpu = [median(costs.site_cpu_s.values()) for costs, _, _ in counted]
    yield middle_at_most(f"secagg.site_cpu_s.{case.name}", site_cpu, "CPU-s", SITE_CPU_S if targets else None)
    slowest = [max(costs.site_cpu_s.values()) for costs, _, _ in counted]
    yield middle(f"secagg.slowest_site_cpu_s.{case.name}", slowest, "CPU-s")
    yield middle(f"secagg.aggregator_cpu_s.{case.name}", [costs.aggregator_cpu_s for costs, _, _ in counted], "CPU-s")
    walls = [wall for _, wall, _ in counted]
    yield middle_at_most(f"secagg.wall_s.{case.name}", walls, "s", WALL_S if targets else None)
    up = max(counted[-1][0].up_bytes.values())
    small = max(counted[-1][0].down_bytes.values())
    yield at_most(f"secagg.up_bytes_vs_plain.{case.name}", round(up / (4 * case.numbers), 4), "ratio", BYTES_RATIO)
    both = round((up + small) / (4 * case.numbers), 4)
    yield at_most(f"secagg.up_and_down_bytes_vs_plain.{case.name}", both, "ratio", BYTES_RATIO)
    yield Figure(f"secagg.error_max.{case.name}", counted[-1][2], "")


def recoveries(case: Case, repeats: int) -> Iterator[Figure]:
    """Seconds from the last message to the sum when 0, 1 or n - t sites drop out after they have dealt shares."""
    consortium = Consortium.of(case.sites)
    segments, _, names = case.values()
    most = case.sites - consortium.manifest(segments).threshold
    for gone in sorted({0, min(1, most), most}):
        drops = dict.fromkeys(names[:gone], Step.VECTORS)
        seconds = []
        for number in range(repeats):
            seconds.append(one_round(case, consortium, drops)[0].recovery_s)
            print(f"{case.name}: recovery with {gone} gone, {number + 1} of {repeats}", file=sys.stderr, flush=True)
        yield middle(f"secagg.recovery_s.{case.name}.{gone}_gone", seconds, "s")


def main() -> int:
    """Entry point; exit status 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a smoke run: few numbers, once")
    parser.add_argument("--case", action="append", help="only this size, such as 1m_x_10; may be given again")
    args = parser.parse_args()
    repeats = 1 if args.quick else args.repeats
    figures = [Figure("secagg.extra_round_trips", len(STEPS) - 1, "round trips")]
    cases = [Case(*size) for size in (QUICK_SIZES if args.quick else SIZES)]
    if args.case and not set(args.case) <= {case.name for case in cases}:
        parser.error(f"there are the sizes {', '.join(case.name for case in cases)}")
    for case in (case for case in cases if not args.case or case.name in args.case):
        figures += [*whole_rounds(case, repeats), *recoveries(case, repeats)]
    return print_figures(without_targets(figures) if args.quick else figures)


if __name__ == "__main__":
    sys.exit(main())
