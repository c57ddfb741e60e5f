"""One JSON line a figure, the language all measuring commands speak."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Figure:
    """A measured number; ``target`` and ``holds`` where there is something to hold.

    ``interval`` is a 95% interval, ``spread`` the quartiles of a figure's repetitions.
    """

    figure: str
    value: float
    unit: str
    target: str | None = None
    holds: bool | None = None
    interval: tuple[float, float] | None = None
    spread: tuple[float, float] | None = None

    def line(self) -> str:
        """The figure as one line of JSON; what is not known is left out."""
        return json.dumps({name: value for name, value in vars(self).items() if value is not None})


def at_least(
    figure: str, value: float, unit: str, least: float | None, spread: tuple[float, float] | None = None
) -> Figure:
    """A figure that should be no less than ``least``; None: nothing to hold."""
    target, holds = (None, None) if least is None else (f">={least:g}", value >= least)
    return Figure(figure, value, unit, target, holds, spread=spread)


def at_most(
    figure: str, value: float, unit: str, most: float | None, spread: tuple[float, float] | None = None
) -> Figure:
    """A figure that should be no more than ``most``; None: nothing to hold."""
    target, holds = (None, None) if most is None else (f"<={most:g}", value <= most)
    return Figure(figure, value, unit, target, holds, spread=spread)


def without_targets(figures: Iterable[Figure]) -> list[Figure]:
    """The figures of a smoke run, which hold nothing."""
    return [replace(figure, target=None, holds=None) for figure in figures]


def print_figures(figures: Iterable[Figure]) -> int:
    """Print the lines to standard output; exit status 1 where a target does not hold."""
    status = 0
    for figure in figures:
        print(figure.line(), flush=True)
        if figure.holds is False:
            status = 1
            print(f"does not hold: {figure.figure} = {figure.value}, target {figure.target}", file=sys.stderr)
    return status
