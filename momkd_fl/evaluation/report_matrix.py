"""The N x N matrix of the report: the AUROC of each site's own model at every site, as a shaded table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from momkd_fl.evaluation.report_svg import LOOKS, number
from momkd_fl.evaluation.report_tables import cell
from momkd_fl.evaluation.results import Estimate, Method, Results

STEPS = 5
"""Shades, from an AUROC of 0.5 or less (none) to 0.9 and more; the number is always printed too."""


@dataclass(frozen=True)
class Square:
    """One cell: the AUROC, its interval or why there is none, its shade (0 to STEPS), trained and tested here."""

    value: str
    note: str
    shade: int
    own: bool


@dataclass(frozen=True)
class Matrix:
    """Rows (trained at, its squares by tested site, mean elsewhere) and the tested sites that head the columns."""

    caption: str
    tested: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Square, ...], str], ...]


def matrix(results: Results, task: str) -> Matrix | None:
    """Trained at x tested at, with the mean over the sites a model was not trained at; None where there is none."""
    by_trained = results.matrix.get(task)
    if not by_trained:
        return None
    tested = tuple(dict.fromkeys(site for row in by_trained.values() for site in row))
    missing = Estimate.not_estimable("not tested")
    rows = []
    for trained, row in by_trained.items():
        squares = tuple(_square(row.get(site, missing), trained == site) for site in tested)
        elsewhere = [one.value for site, one in row.items() if site != trained and one.value is not None]
        rows.append((_name(trained), squares, number(float(np.mean(elsewhere))) if elsewhere else "—"))
    return Matrix(f"{task}: each hospital's own model (row) at every hospital (column), AUROC", tested, tuple(rows))


def _square(estimate: Estimate, own: bool) -> Square:
    if estimate.value is None:
        return Square("—", estimate.reason or "", 0, own)
    shade = int(np.clip(round((estimate.value - 0.5) / 0.4 * STEPS), 0, STEPS))
    value, _, interval = cell(estimate).partition(" ")
    return Square(value, interval, shade, own)


def _name(trained: str) -> str:
    methods: dict[str, Method] = {method: method for method in get_args(Method)}
    return LOOKS[methods[trained]].name if trained in methods else trained
