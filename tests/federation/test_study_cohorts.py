"""Cohorts of a study: shuffled expression, sites without it, and bags that are read once."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

from momkd_fl.config.base import parse
from momkd_fl.config.study import StudyPlan
from momkd_fl.errors import UserError
from momkd_fl.federation.comparators import run_arm
from momkd_fl.federation.study_cells import Cell, cells_of
from momkd_fl.federation.study_cohorts import Library, hospitals_of, shuffled, site_files, subgroup, write_data
from momkd_fl.federation.watch import unwatched

BASE = {
    "model": {"hidden_dim": 16, "memory_dim": 8},
    "memory": {"slots": 2, "init_iterations": 2, "anchor_iterations": 2},
    "training": {"patients_per_step": 8, "learning_rate": 1e-3, "precision": "fp32"},
    "genes": {"panel": "pam50"},
    "rounds": {"count": 1},
}
METHODS = {"one": {}, "pooled": {"pooled": True}, "less": {"without_genomics": ["aspen"]}}


@pytest.fixture(scope="module")
def plan() -> StudyPlan:
    cohort = {"kind": "demo", "patients": 16, "mean_patches": 16, "dim": 16}
    raw = {"name": "s", "cohort": cohort, "tasks": ["PR", "ODX"], "seeds": [1], "base": BASE, "methods": METHODS}
    return parse(raw, StudyPlan, Path("study.yaml"))


@pytest.fixture(scope="module")
def cells(plan: StudyPlan) -> dict[str, Cell]:
    path = Path("study.yaml")
    return {cell.label: cell for cell in cells_of(plan, hospitals_of(plan, path), path, {})}


@pytest.fixture(scope="module")
def out(plan: StudyPlan, cells: dict[str, Cell], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    said: list[str] = []
    write_data(plan, list(cells.values()), folder, said.append)
    write_data(plan, list(cells.values()), folder, said.append)
    assert len(said) == 1, "written once"
    return folder


def test_every_site_has_its_file_and_the_data_s_name_does_not_depend_on_the_method(
    plan: StudyPlan, cells: dict[str, Cell], out: Path
) -> None:
    (key,) = {cell.data_key for cell in cells.values()}
    files = site_files(plan, next(iter(cells.values())), out)
    assert set(files) == {"aspen", "birch", "cedar", "elm", "hazel", "larch", "maple", "willow"}
    assert all(key in str(path) for path in files.values())
    assert subgroup(plan, "ODX", files) is None


@pytest.mark.parametrize("how", ["shuffled", "shuffled_within_class"])
def test_everyone_gets_another_one_s_expression_of_the_same_kind(
    plan: StudyPlan, cells: dict[str, Cell], out: Path, how
) -> None:
    cell = cells["PR/one/without-birch/seed1"]
    shelf = Library().shelf(cell, site_files(plan, cell, out))
    cohort, _ = shelf.cohort("aspen", "train", cell.config(out))
    mixed = shuffled(cohort, how, 1)
    owner = {patient.genes.tobytes(): patient for patient in cohort.patients if patient.genes is not None}
    assert len(owner) == 16
    crossed = 0
    for before, after in zip(cohort.patients, mixed.patients, strict=True):
        giver = owner[after.genes.tobytes()]
        within = [p for p in cohort.patients if (p.split, p.label) == (before.split, before.label)]
        assert giver.id != before.id or (how == "shuffled_within_class" and len(within) == 1)
        assert giver.split == before.split
        assert dataclasses.replace(after, genes=None) == dataclasses.replace(before, genes=None)
        crossed += giver.label != before.label
    assert (crossed == 0) == (how == "shuffled_within_class")
    again, other = shuffled(cohort, how, 1), shuffled(cohort, how, 2)
    rows = [[patient.genes for patient in one.patients] for one in (mixed, again, other)]
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    assert shuffled(cohort, "real", 1) is cohort


def test_expression_is_not_used_where_the_method_says_so(plan: StudyPlan, cells: dict[str, Cell], out: Path) -> None:
    library = Library()
    known = {}
    for name in ("less", "one"):
        cell = cells[f"PR/{name}/without-birch/seed1"]
        shelf = library.shelf(cell, site_files(plan, cell, out))
        known[name] = {s for s in cell.trained if shelf.cohort(s, "train", cell.config(out))[0].genes_available}
    assert known == {"less": {"cedar", "elm", "hazel", "larch"}, "one": {"aspen", "cedar", "elm"}}


def test_bags_are_shared_between_tasks_roles_and_the_pooled_cohort(
    plan: StudyPlan, cells: dict[str, Cell], out: Path
) -> None:
    library = Library()
    first = cells["PR/one/without-birch/seed1"]
    shelf = library.shelf(first, site_files(plan, first, out))
    cohort, _ = shelf.cohort("aspen", "train", first.config(out))
    bag = cohort.bag(cohort.patients[0])
    other = cells["ODX/local/at-birch/seed1"]
    tested, _ = library.shelf(other, site_files(plan, other, out)).cohort("aspen", "evaluate", other.config(out))
    assert tested.role == "evaluate"
    assert tested.bag(next(p for p in tested.patients if p.id == cohort.patients[0].id)) is bag
    pooled = cells["PR/pooled/without-birch/seed1"]
    shelf = library.shelf(pooled, site_files(plan, pooled, out))
    merged, _ = shelf.participant("pooled", pooled.arm, "train", out / "state").load(pooled.config(out))
    assert len(merged.patients) == 5 * 16
    assert merged.bag(next(p for p in merged.patients if p.id == cohort.patients[0].id)) is bag


def test_kept_cohorts_train_the_same_model_as_fresh_ones(
    plan: StudyPlan, cells: dict[str, Cell], out: Path, tmp_path: Path
) -> None:
    library, digests = Library(), []
    for number, one in enumerate((library, library, Library())):
        cell = cells["PR/pooled/without-birch/seed1"]
        config = cell.config(tmp_path / str(number))
        shelf = one.shelf(cell, site_files(plan, cell, out))
        outcome = run_arm(cell.arm, config, shelf, tmp_path / str(number), unwatched(config), threading.Event())
        assert outcome is not None
        digests.append({name: value.tobytes() for name, value in outcome.state.weights.items()})
    assert digests[0] == digests[1] == digests[2]


def test_the_real_tables_must_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MOMKD_REAL_DATA", raising=False)
    raw = {"name": "s", "cohort": {"kind": "semi_real"}, "tasks": ["PR"], "seeds": [1], "methods": {"one": {}}}
    plan = parse(raw, StudyPlan, tmp_path / "study.yaml")
    cells = cells_of(plan, hospitals_of(plan, tmp_path), tmp_path, {})
    with pytest.raises(UserError, match="MOMKD_REAL_DATA") as caught:
        write_data(plan, cells, tmp_path, lambda sentence: None)
    assert caught.value.code == "study-tables"
    assert not (tmp_path / "data").exists()
