"""Rows of a study's privacy from cells' records, the figures made of them, and splits of private cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study import figures_of
from momkd_fl.config.base import parse
from momkd_fl.config.study import StudyPlan
from momkd_fl.federation.study_cells import Cell, cells_of
from momkd_fl.federation.study_cohorts import Library, hospitals_of
from momkd_fl.federation.study_files import write_study
from momkd_fl.federation.study_privacy import privacy_rows
from momkd_fl.federation.study_results import StudyResults, results_of
from momkd_fl.synth.cohort import SynthSite, write_consortium

PATH = Path("study.yaml")
NOISE = {"memory": "local", "epsilon": [8, 1], "releases": 1}


@pytest.fixture(scope="module")
def plan() -> StudyPlan:
    raw = {
        "name": "noise",
        "cohort": {"kind": "demo"},
        "tasks": ["PR"],
        "seeds": [1],
        "splits": ["leave_one_site_out"],
        "local_sites": False,
        "base": {"memory": {"slots": 1, "assignment": "hard"}, "training": {"standardise": "slide"}},
        "methods": {"plain": {"without_genomics": []}, "memory": {"without_genomics": [], "privacy": NOISE}},
        "targets": [{"method": "memory_8", "reference": "released", "at_least": 0.5}],
    }
    return parse(raw, StudyPlan, PATH)


@pytest.fixture(scope="module")
def cells(plan: StudyPlan) -> list[Cell]:
    return cells_of(plan, hospitals_of(plan, PATH), PATH, {})


def record(released: dict[str, float], spent: dict[str, float], dropped: list[str]) -> dict[str, Any]:
    said = {"epsilon": 8.0, "epsilon_run": None, "epsilon_memory": 8.0, "epsilon_anchors": 5.0, "conditional": True}
    rest = {"released": released, "noise_to_signal": {"anchors": 0.1}, "spent": spent, "dropped": dropped}
    return {"seconds": 1.0, "privacy": {**said, **rest}}


def result(cells: list[Cell], method: str, records: list[dict[str, Any]]) -> StudyResults:
    mine = [cell for cell in cells if cell.method.name == method]
    rows = privacy_rows(zip(mine, records, strict=False))
    return StudyResults("noise", len(cells), len(rows), 1.0, [], [], {}, [], rows)


def test_shares_are_means_over_cells_and_epsilon_the_most_that_any_site_spent(cells: list[Cell]) -> None:
    first = record({"anchors": 1.0, "slots": 0.5, "slots_genomics": 0.5}, {"ash": 8.0, "elm": 5.0}, [])
    second = record({"anchors": 0.5, "slots": 0.0, "slots_genomics": 0.0}, {"ash": 7.0, "elm": 5.0}, ["elm"])
    found = result(cells, "memory_8", [first, second])
    (row,) = found.privacy
    assert (row.cells, row.spent, row.dropped, row.share_released) == (2, 8.0, 1, 0.5)
    assert row.released == {"anchors": 0.75, "slots": 0.25, "slots_genomics": 0.25}
    by_name = {figure.figure: figure for figure in figures_of(found)}
    assert by_name["study-noise.PR.loso.memory_8.share_released.anchors"].value == 0.75
    assert by_name["study-noise.PR.loso.memory_8.epsilon.memory"].unit == "ε, given the weights"
    assert "study-noise.PR.loso.memory_8.epsilon.run" not in by_name, "it is infinite"


def test_a_plain_cell_has_no_row(cells: list[Cell]) -> None:
    assert privacy_rows([(cells[0], {"seconds": 1.0})]) == []


@pytest.mark.parametrize(("share", "holds"), [(0.75, True), (0.25, False)])
def test_the_share_released_is_a_target(
    plan: StudyPlan, cells: list[Cell], tmp_path: Path, share: float, holds: bool
) -> None:
    for cell in cells:
        if cell.method.name == "memory_8":
            finish(tmp_path, cell, record({"anchors": share, "slots": share}, {"ash": 8.0}, []))
    found = results_of(plan, cells, tmp_path, {}, ())
    (verdict,) = found.verdicts
    assert (verdict.estimate.value, verdict.holds) == (share, holds)
    by_name = {figure.figure: figure for figure in figures_of(found)}
    assert by_name["study-noise.PR.loso.memory_8.share_released"].holds is holds
    page = write_study(found, tmp_path).read_text("utf-8")
    assert "| PR | leave one site out | memory_8 | 8.00 | 8.00 | ∞ | 8.00* | 5.00 |" in page


def test_private_and_plain_cells_split_their_patients_each_in_their_own_way(cells: list[Cell], tmp_path: Path) -> None:
    """One library serves both: a plain cell's stratified split must not reach a private cell, or the other way."""
    write_consortium(tmp_path, [SynthSite("aspen", 24)], seed=1, dim=256, mean_patches=8, tasks=["PR"])
    files = {"aspen": tmp_path / "aspen" / "site.yaml"}
    library, splits = Library(), {}
    for method in ("plain", "memory_8", "plain"):
        cell = next(each for each in cells if each.method.name == method)
        cohort, _ = library.shelf(cell, files).cohort("aspen", "train", cell.config(tmp_path))
        splits.setdefault(method, []).append([patient.split for patient in cohort.patients])
    assert splits["plain"][0] == splits["plain"][1] != splits["memory_8"][0]


def finish(out: Path, cell: Cell, said: dict[str, Any]) -> None:
    folder = out / "cells" / cell.key
    (folder / "predictions").mkdir(parents=True)
    for site in cell.tested:
        text = "patient,label,p0,p1\na,0,0.9,0.1\nb,1,0.1,0.9\n"
        (folder / "predictions" / f"{site}.csv").write_text(text, "utf-8")
    (folder / "record.json").write_text(json.dumps(said), "utf-8")
