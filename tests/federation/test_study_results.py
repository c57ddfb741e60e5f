"""What finished cells say, from predictions whose AUROCs are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.study import figures_of
from momkd_fl.config.base import parse
from momkd_fl.config.study import StudyPlan
from momkd_fl.federation.study_cells import Cell, cells_of
from momkd_fl.federation.study_cohorts import hospitals_of
from momkd_fl.federation.study_files import write_study
from momkd_fl.federation.study_results import StudyResults, results_of
from momkd_fl.federation.study_work import cell_folder

PATH = Path("study.yaml")
TRAINING = ("aspen", "birch", "cedar", "elm", "hazel", "larch")
WITHOUT_GENOMICS = ("hazel", "larch")
INSIDE_GAIN = {True: 0.2, False: 0.05}
"""What the good method adds at training sites that lack genomics, and at the others, among validation patients."""
EACH = 10
AREAS = {"good": 0.95, "fair": 0.75, "poor": 0.55}
"""AUROC of each method at every site; that of local models follows from their site's place in the list."""


@pytest.fixture(scope="module")
def plan() -> StudyPlan:
    raw = {
        "name": "known",
        "cohort": {"kind": "demo"},
        "tasks": ["PR"],
        "seeds": [1, 2],
        "methods": {"good": {}, "fair": {"memory": {"slots": 2}}, "poor": {"memory": {"slots": 1}}},
        "references": ["poor"],
        "targets": [
            {"method": "good", "reference": "fair", "at_least": 0.15},
            {"method": "fair", "reference": "good", "at_least": 0.9, "ratio": True},
            {"method": "good", "reference": "every_local", "at_least": 0.3},
            {"method": "good", "reference": "median_local", "at_least": 0},
            {"method": "poor", "reference": "fair", "at_least": 0, "splits": ["external"]},
            {"method": "good", "reference": "poor", "at_least": 0.2, "group": "trainers_without_over_with"},
        ],
        "class_minimum": 5,
        "resamples": 200,
    }
    return parse(raw, StudyPlan, PATH)


def local_area(site: str) -> float:
    """0.50 at the first training site to 0.75 at the last."""
    return 0.5 + 0.05 * TRAINING.index(site)


def write_predictions(path: Path, area: float) -> None:
    """``EACH`` patients of each class with this AUROC exactly: the positives all beat the same share of negatives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    negatives = np.linspace(0.1, 0.9, EACH * 2)
    beaten = round(area * EACH * 2)
    positive = (negatives[beaten - 1] + (negatives[beaten] if beaten < len(negatives) else 1.0)) / 2
    rows = [(f"n{i}", 0, score) for i, score in enumerate(negatives)] + [(f"p{i}", 1, positive) for i in range(EACH)]
    lines = [f"{patient},{label},{1 - score:.6f},{score:.6f}" for patient, label, score in rows]
    path.write_text("\n".join(["patient,label,p0,p1", *lines]) + "\n", "utf-8")


def finish(out: Path, cell: Cell) -> None:
    area = local_area(cell.trained[0]) if cell.split is None else AREAS[cell.method.name]
    for site in cell.tested:
        write_predictions(cell_folder(out, cell) / "predictions" / f"{site}.csv", area)
    for site in cell.trained:
        gained = INSIDE_GAIN[site in WITHOUT_GENOMICS] if cell.method.name == "good" else 0.0
        write_predictions(cell_folder(out, cell) / "validation" / f"{site}.csv", 0.55 + gained)
    record = {"seconds": 3.0 if cell.split is None else 9.0}
    (cell_folder(out, cell) / "record.json").write_text(json.dumps(record), "utf-8")


def results(plan: StudyPlan, out: Path, leave: str | None = None) -> StudyResults:
    cells = cells_of(plan, hospitals_of(plan, PATH), PATH, {})
    for cell in cells:
        if cell.label != leave:
            finish(out, cell)
    inside = {f"{site}/{kind}{row}" for site in TRAINING for row in range(6) for kind in "np"}
    return results_of(plan, cells, out, {"PR": ("early", inside)}, WITHOUT_GENOMICS)


@pytest.fixture(scope="module")
def known(plan: StudyPlan, tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return results(plan, tmp_path_factory.mktemp("known"))


def test_each_method_has_the_auroc_that_it_was_given(known: StudyResults) -> None:
    rows = {(row.split, row.group, row.method): row for row in known.rows}
    for method, area in AREAS.items():
        row = rows["leave_one_site_out", "all", method]
        assert (row.pooled, row.within_site) == pytest.approx((area, area))
        assert (row.seeds, row.patients, row.positives, row.pooled_sd) == (2, 180, 60, 0.0)
        assert set(row.sites) == set(TRAINING)
        assert rows["external", "all", method].patients == 60
        assert set(rows["leave_one_site_out", "sites_without_genomics", method].sites) == {"hazel", "larch"}
        assert set(rows["leave_one_site_out", "sites_with_genomics", method].sites) == set(TRAINING[:4])
    assert rows["leave_one_site_out", "early", "good"].patients == 72
    assert ("external", "sites_without_genomics", "good") not in rows
    assert (known.cells, known.finished) == (2 * (3 * 7 + 6), 54)
    assert known.seconds == 2 * (21 * 9 + 6 * 3)


def test_differences_and_the_matrix_of_local_models(known: StudyResults) -> None:
    pairs = {(p.split, p.group, p.method, p.reference, p.what): p.estimate for p in known.pairs}
    found = pairs["leave_one_site_out", "all", "good", "poor", "difference"]
    assert found.value == pytest.approx(0.4)
    assert found.low <= 0.4 <= found.high
    assert pairs["external", "all", "fair", "good", "ratio"].value == pytest.approx(0.75 / 0.95)
    assert set(known.matrix["PR"]) == set(TRAINING)
    for trained, row in known.matrix["PR"].items():
        assert set(row) == {*TRAINING, "maple", "willow"} - {trained}
        assert all(value == pytest.approx(local_area(trained)) for value in row.values())


def test_targets_are_judged_at_the_least_favourable_site(known: StudyResults) -> None:
    verdicts = {(v.split, v.target.method, v.target.reference): v for v in known.verdicts}
    assert len(verdicts) == 11, "one target is asked of one split only"
    assert verdicts["leave_one_site_out", "good", "fair"].holds is True
    assert verdicts["leave_one_site_out", "fair", "good"].holds is False
    every = verdicts["leave_one_site_out", "good", "every_local"]
    assert (every.where, every.holds) == ("larch", False)
    assert every.estimate.value == pytest.approx(0.95 - 0.75)
    median = verdicts["leave_one_site_out", "good", "median_local"]
    # at aspen, the worst local model is the one that is not tested there: the median of the other five is the highest
    assert median.where in ("aspen", "birch", "cedar")
    assert median.estimate.value == pytest.approx(0.95 - 0.65)
    assert verdicts["external", "poor", "fair"].holds is False


def test_figures_are_named_once_and_carry_their_targets(known: StudyResults) -> None:
    figures = figures_of(known)
    by_name = {figure.figure: figure for figure in figures}
    assert len(by_name) == len(figures)
    assert by_name["study-known.PR.loso.good"].value == 0.95
    assert by_name["study-known.PR.loso.good_minus_fair"].target == ">=0.15"
    assert by_name["study-known.PR.loso.good_minus_fair"].holds is True
    assert by_name["study-known.PR.loso.fair_to_good"].holds is False
    assert by_name["study-known.PR.loso.good_minus_every_local"].unit == "AUROC, least at larch"
    assert by_name["study-known.PR.loso.sites_without_genomics.good_minus_poor"].value == pytest.approx(0.4)
    assert by_name["study-known.finished"].value == 1.0


def test_a_seed_with_a_fold_missing_is_no_part_of_its_method(plan: StudyPlan, tmp_path: Path) -> None:
    found = results(plan, tmp_path, leave="PR/good/without-elm/seed2")
    seeds = {(row.split, row.method): row.seeds for row in found.rows if row.group == "all"}
    assert seeds["leave_one_site_out", "good"] == 1
    assert seeds["leave_one_site_out", "fair"] == seeds["external", "good"] == 2
    assert found.finished == found.cells - 1
    assert {p.seeds for p in found.pairs if (p.split, p.method) == ("leave_one_site_out", "good")} == {1}


def test_nothing_finished_is_no_result_and_no_error(plan: StudyPlan, tmp_path: Path) -> None:
    cells = cells_of(plan, hospitals_of(plan, PATH), PATH, {})
    found = results_of(plan, cells, tmp_path, {}, ())
    assert (found.finished, found.rows, found.pairs, found.matrix) == (0, [], [], {})
    assert all(verdict.holds is None for verdict in found.verdicts)
    assert [figure.figure for figure in figures_of(found)] == [
        "study-known.finished", "study-known.code_versions", "study-known.core_hours",
    ]  # fmt: skip


def test_the_files_say_the_same(known: StudyResults, tmp_path: Path) -> None:
    page = write_study(known, tmp_path).read_text("utf-8")
    assert "| good | all | 2 | 180 (60) | 0.950 | 0.000 | 0.950 | 9.0 |" in page
    assert "| PR | leave one site out | fair / good | >= 0.9 | 0.789 |" in page
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (one,) = [
        row
        for row in rows
        if (row["split"], row["group"], row["method"], row["statistic"]) == ("external", "all", "poor", "pooled")
    ]
    assert float(one["value"]) == pytest.approx(0.55)
    raw = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert raw["verdicts"][0]["target"]["method"] == "good"


def test_the_gain_at_sites_that_train_without_genomics_stands_beside_that_at_the_others(known: StudyResults) -> None:
    pairs = {(p.split, p.group): p for p in known.pairs if (p.method, p.reference) == ("good", "poor")}
    for split in ("leave_one_site_out", "external"):
        assert pairs[split, "trainers_without_genomics"].estimate.value == pytest.approx(0.2)
        assert pairs[split, "trainers_with_genomics"].estimate.value == pytest.approx(0.05)
        gap = pairs[split, "trainers_without_over_with"]
        assert gap.estimate.value == pytest.approx(0.15)
        assert gap.estimate.low <= 0.15 <= gap.estimate.high
        assert gap.seeds == 2
    verdicts = [v for v in known.verdicts if v.target.group == "trainers_without_over_with"]
    assert [v.holds for v in verdicts] == [False, False]
