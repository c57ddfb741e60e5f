"""Which counts of a table may leave: none from 1 to 10, nor what lets one be derived, within a round or between rounds.

A table with totals is a network: rows and columns are nodes, each count an edge, and at every node what goes in comes
out (totals run backwards). Every count that the published ones determine is then the withheld part of a *cut* through
which nothing withheld runs back, and the tightest bounds on a withheld count come from cuts as well (max-flow and
min-cut). All cuts are looked at, so that the answer is exact; tables are small.

What is not covered: an attacker who reasons from the choice of what else was withheld, or who knows some patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

MINIMUM_CELL: Final = 11
"""The smallest count, other than 0, that may be known outside; a site's contract may raise it."""
NODES_MAX: Final = 14

Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Publication:
    """Counts with totals, some of them withheld.

    Attributes
    ----------
    counts : (rows + 1, columns + 1) the last row and column are totals; for the site's eyes
    withheld : (rows + 1, columns + 1)
    """

    counts: Counts
    withheld: Mask

    def cells(self) -> list[list[int | None]]:
        """What may leave; None where withheld, so that a small count looks like one withheld for its sake."""
        rows = zip(self.counts.tolist(), self.withheld.tolist(), strict=True)
        return [[None if hidden else count for count, hidden in zip(*row, strict=True)] for row in rows]


def publish(
    cells: Counts, earlier: Sequence[Publication] = (), minimum: int = MINIMUM_CELL, *, column_totals: bool = True
) -> Publication:
    """The most of a table that may leave beside what left in ``earlier`` rounds.

    Small counts are withheld; then, smallest first and totals last, others, until no small count can be derived: not
    from the totals, and not by subtracting an earlier round's table, where the difference is the few patients who
    came or went. What was withheld once stays withheld: then whatever two rounds determine both, the later one's
    withheld counts determine alone, and its cuts are all there is to check. Zeros are published unless needed as cover.

    Parameters
    ----------
    cells : (rows, columns) counts of patients, each patient in one cell; rows + columns at most 12
    earlier : every publication of the same table by this site
    column_totals : False where columns have nothing in common (one row): their totals never leave
    """
    counts = _with_totals(cells)
    if sum(counts.shape) > NODES_MAX:
        raise ValueError(f"a table of {cells.shape} is too large; at most {NODES_MAX - 2} rows and columns together")
    if any(each.counts.shape != counts.shape for each in earlier):
        raise ValueError("an earlier publication is of another table")
    withheld = _small(counts, minimum)
    if not column_totals:
        withheld[-1, :-1] = True
    for each in earlier:
        withheld |= each.withheld | _small(counts - each.counts, minimum)
    cuts = _Cuts(counts.shape)
    while (exposing := cuts.exposing(Publication(counts, withheld), earlier, minimum)) is not None:
        withheld[_cover(counts, exposing)] = True
    return Publication(counts, withheld)


def enough_of_each(class_counts: Sequence[int], minimum: int = MINIMUM_CELL) -> bool:
    """Whether a metric over these classes (AUROC, a calibration curve) may leave: none of them is small or empty."""
    return len(class_counts) > 0 and min(class_counts) >= minimum


class _Cuts:
    """Every cut of the network of a table: the counts that run out of a set of nodes, and those that run in."""

    def __init__(self, shape: tuple[int, int]) -> None:
        nodes = sum(shape)
        inside = (np.arange(1 << nodes)[:, None] >> np.arange(nodes)) & 1 == 1
        rows, columns = inside[:, : shape[0], None], inside[:, None, shape[0] :]
        backwards = np.zeros(shape, bool)  # totals run from columns to rows, all else from rows to columns
        backwards[:-1, -1] = backwards[-1, :-1] = True
        out, into = rows & ~columns, ~rows & columns
        self.out = np.where(backwards, into, out).reshape(len(inside), -1)
        self.into = np.where(backwards, out, into).reshape(len(inside), -1)

    def exposing(self, now: Publication, earlier: Sequence[Publication], minimum: int) -> Mask | None:
        """The published counts of a cut that tells a small number; withholding any of them closes it."""
        found = self._determined(now.counts, now.withheld, minimum)
        for each in earlier:
            if found is None:
                found = self._determined(now.counts - each.counts, now.withheld, minimum)
        if found is None:
            found = self._pinned(now, minimum)
        if found is None:
            return None
        crossing = np.asarray(self.out[found] | self.into[found]).reshape(now.counts.shape)
        return crossing & ~now.withheld

    def _determined(self, counts: Counts, withheld: Mask, minimum: int) -> int | None:
        """A cut whose withheld counts have a known sum, and a small one."""
        hidden = withheld.ravel()
        known = ~(self.into & hidden).any(axis=1)
        total = np.abs((self.out & hidden) @ counts.ravel())
        small = known & (total > 0) & (total < minimum)
        return int(small.argmax()) if small.any() else None

    def _pinned(self, now: Publication, minimum: int) -> int | None:
        """A cut that, with the others, leaves a small withheld count fewer than ``minimum`` possible values.

        Upper bounds come from cuts out of which it runs and into which nothing withheld does; lower bounds from cuts
        out of which it runs alone. Both are attained by whole numbers.
        """
        hidden, counts = now.withheld.ravel(), now.counts.ravel()
        out, into = self.out & hidden, self.into & hidden
        total, back = out @ counts, into @ counts
        closed, alone = ~into.any(axis=1), out.sum(axis=1) == 1
        for at in np.flatnonzero(hidden & _small(counts, minimum)):
            above = np.where(closed & out[:, at], total, np.iinfo(np.int64).max)
            below = np.where(alone & out[:, at], counts[at] - back, 0)
            if int(above.min()) - max(int(below.max()), 0) < minimum - 1:
                return int(below.argmax() if below.max() > 0 else above.argmin())
        return None


def _cover(counts: Counts, candidates: Mask) -> tuple[int, int]:
    """What to withhold: no total if it can be helped, no zero if it can be helped, and then the smallest."""

    def cost(at: tuple[int, int]) -> tuple[bool, bool, int]:
        total = at[0] == counts.shape[0] - 1 or at[1] == counts.shape[1] - 1
        return total, counts[at] == 0, int(counts[at])

    places = [(int(row), int(column)) for row, column in np.argwhere(candidates)]
    return min(places, key=cost)


def _small(counts: Counts, minimum: int) -> Mask:
    return np.asarray((np.abs(counts) > 0) & (np.abs(counts) < minimum))


def _with_totals(cells: Counts) -> Counts:
    counts = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1), np.int64)
    counts[:-1, :-1] = cells
    counts[:-1, -1], counts[-1, :-1], counts[-1, -1] = cells.sum(axis=1), cells.sum(axis=0), cells.sum()
    return counts
