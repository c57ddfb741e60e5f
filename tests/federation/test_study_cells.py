"""A study's grid: methods of lists, folds, and keys that say what was computed and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from momkd_fl.config.base import load, parse
from momkd_fl.config.study import StudyPlan
from momkd_fl.errors import UserError
from momkd_fl.federation.study_cells import Cell, cells_of
from momkd_fl.federation.study_cohorts import hospitals_of

STUDIES = Path(__file__).parents[2] / "studies"
PATH = Path("study.yaml")


def grid(**sections: Any) -> list[Cell]:
    raw = {"name": "s", "cohort": {"kind": "demo"}, "tasks": ["PR"], "seeds": [1], "methods": {"one": {}}, **sections}
    plan = parse(raw, StudyPlan, PATH)
    return cells_of(plan, hospitals_of(plan, PATH), PATH, {})


def keys(**sections: Any) -> set[str]:
    return {cell.key for cell in grid(local_sites=False, **sections)}


def test_the_grid_is_method_by_task_by_fold_by_seed_and_a_local_model_a_site() -> None:
    cells = grid(tasks=["PR", "ODX"], seeds=[1, 2, 3], methods={"one": {}, "two": {"pooled": True}})
    assert len(cells) == 2 * 3 * (2 * 7 + 6)
    assert len({cell.key for cell in cells}) == len(cells)
    assert len({cell.label for cell in cells}) == len(cells)
    left = next(cell for cell in cells if cell.label == "PR/one/without-aspen/seed1")
    assert left.tested == ("aspen",)
    assert set(left.trained) == {"birch", "cedar", "elm", "hazel", "larch"}
    local = next(cell for cell in cells if cell.label == "ODX/local/at-elm/seed2")
    assert local.trained == ("elm",)
    assert set(local.tested) == {"aspen", "birch", "cedar", "hazel", "larch", "maple", "willow"}


def test_a_list_makes_a_method_of_each_value_over_the_base() -> None:
    cells = grid(
        base={"memory": {"slots": 2, "momentum": 0.5}},
        methods={
            "slots": {"memory": {"slots": [1, 4]}, "cohort": {"stain": [0.0, 1.2]}},
            "net": {"architecture": "gated_attention"},
        },
        splits=["external"],
        local_sites=False,
    )
    assert [cell.method.name for cell in cells] == ["slots_1_0.0", "slots_1_1.2", "slots_4_0.0", "slots_4_1.2", "net"]
    configs = [cell.config(Path("out")) for cell in cells]
    assert [config.memory.slots for config in configs] == [1, 1, 4, 4, 2]
    assert {config.memory.momentum for config in configs} == {0.5}
    assert configs[-1].model.architecture == "gated_attention"
    assert [cell.method.cohort.stain for cell in cells] == [0.0, 1.2, 0.0, 1.2, 0.6]


def test_a_key_is_of_what_is_computed() -> None:
    base = keys()
    assert keys(name="other", methods={"another": {}}, jobs=1, resamples=100, references=[]) == base
    assert keys(methods={"one": {"memory": {"mode": "anchors", "momentum": 0.9}}}) == base, "the defaults, spelt out"
    others = [
        {"version": 2},
        {"seeds": [2]},
        {"tasks": ["ODX"]},
        {"cohort": {"kind": "demo", "stain": 0.7}},
        {"cohort": {"kind": "demo", "warp": 0.1}},
        {"base": {"memory": {"slots": 5}}},
        {"methods": {"one": {"pooled": True}}},
        {"methods": {"one": {"genomics": "shuffled"}}},
        {"methods": {"one": {"without_genomics": []}}},
        {"methods": {"one": {"random_memory": True}}},
    ]
    found = [keys(**other) for other in others]
    for number, one in enumerate(found):
        assert not one & base, others[number]
        assert all(not one & other for other in found[:number])


def test_a_comparison_may_name_local_models_only_where_there_are_any() -> None:
    target = {"method": "one", "reference": "every_local", "at_least": 0}
    assert grid(targets=[target])
    with pytest.raises(UserError, match="every_local") as caught:
        grid(targets=[target], local_sites=False)
    assert caught.value.code == "study-reference"


@pytest.mark.parametrize("name", ["main", "ablations"])
def test_a_committed_plan_lays_out_the_grid_that_its_head_states(name: str) -> None:
    path = STUDIES / f"{name}.yaml"
    plan = load(path, StudyPlan)
    cells = cells_of(plan, hospitals_of(plan, path), path, {})
    count = len({cell.key for cell in cells})
    assert f"{count:,} cells" in path.read_text("utf-8")
    assert count * plan.seconds_per_cell / 2 / 3600 < 6, "half of twelve hours of two cores"


def test_every_committed_plan_is_a_plan() -> None:
    found = {path.stem: load(path, StudyPlan) for path in STUDIES.glob("*.yaml")}
    assert set(found) >= {"main", "ablations", "crc"}
    assert all(plan.name == stem for stem, plan in found.items())
