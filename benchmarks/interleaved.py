"""Several ways of doing the same work, timed in turns, so that what else the machine does falls on all alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Literal

from benchmarks.figures import Figure, at_least, at_most

Clock = Literal["cpu", "wall"]


@dataclass(frozen=True)
class Arm:
    """One way: ``run`` does the whole work once."""

    name: str
    run: Callable[[], object]


@dataclass(frozen=True)
class Rounds:
    """Seconds of every round, by clock and arm. CPU-seconds are user and system, over all threads."""

    seconds: dict[Clock, dict[str, list[float]]]

    def of(self, arm: str, clock: Clock = "cpu") -> list[float]:
        """Seconds of one arm, a value for each round."""
        return self.seconds[clock][arm]

    def ratios(self, over: str, under: str, clock: Clock = "cpu") -> list[float]:
        """Seconds of ``over`` by those of ``under``, round by round."""
        return [a / b for a, b in zip(self.of(over, clock), self.of(under, clock), strict=True)]


def interleaved(arms: Sequence[Arm], repeats: int) -> Rounds:
    """Every arm once to warm up, then ``repeats`` rounds in which each has its turn."""
    found: dict[Clock, dict[str, list[float]]] = {"cpu": {}, "wall": {}}
    for number in range(repeats + 1):
        for arm in arms:
            cpu, wall = time.process_time(), time.perf_counter()
            arm.run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number:
                found["cpu"].setdefault(arm.name, []).append(cpu)
                found["wall"].setdefault(arm.name, []).append(wall)
        print(f"round {number} of {repeats}" if number else "warmed up", file=sys.stderr, flush=True)
    return Rounds(found)


def middle(figure: str, values: Sequence[float], unit: str, *, least: float | None = None) -> Figure:
    """The median of a figure's rounds, with their quartiles."""
    return at_least(figure, _rounded(median(values)), unit, least, _quartiles(values))


def middle_at_most(figure: str, values: Sequence[float], unit: str, most: float | None) -> Figure:
    """The same for a figure that should be small."""
    return at_most(figure, _rounded(median(values)), unit, most, _quartiles(values))


def _quartiles(values: Sequence[float]) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    low, _, high = quantiles(values, n=4, method="inclusive")
    return _rounded(low), _rounded(high)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
