"""One JSON line a figure, the language all measuring commands speak."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A measured number; ``target`` and ``holds`` where there is something to hold, ``interval`` where it has one."""

    figure: str
    value: float
    unit: str
    target: str | None = None
    holds: bool | None = None
    interval: tuple[float, float] | None = None

    def line(self) -> str:
        """The figure as one line of JSON; what is not known is left out."""
        return json.dumps({name: value for name, value in vars(self).items() if value is not None})


def print_figures(figures: Iterable[Figure]) -> int:
    """Print the lines to standard output; exit status 1 where a target does not hold."""
    status = 0
    for figure in figures:
        print(figure.line(), flush=True)
        if figure.holds is False:
            status = 1
            print(f"does not hold: {figure.figure} = {figure.value}, target {figure.target}", file=sys.stderr)
    return status
