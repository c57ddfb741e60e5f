"""``momkd simulate`` with what a federation is compared with."""

from __future__ import annotations

import json

import pytest

from momkd_fl.cli import main
from momkd_fl.evaluation.results_file import read_results


@pytest.mark.process
def test_a_simulation_with_its_comparators(files, capsys) -> None:
    command = ["simulate", "--federation", str(files.federation), "--comparators", "--plain"]
    assert main.main(command) == 0
    assert f"Report: {files.output / 'report.html'}" in capsys.readouterr().out
    results = read_results(files.output / "results.json")
    assert results.origin == "simulation"
    assert set(results.held_out) == {"federated", "pooled", "local_median", "no_genomics_control", "random_memory"}
    for by_task in results.held_out.values():
        assert set(by_task["PR"].sites) == {"holly"}
    assert {pair.reference for pair in results.differences if pair.method == "federated"} == {
        "pooled",
        "local_median",
        "no_genomics_control",
        "random_memory",
    }
    assert len(results.local_models["PR"]) == 2
    assert set(results.matrix["PR"]) == {*results.local_models["PR"], "federated"}
    assert all(set(row) == {"holly"} for row in results.matrix["PR"].values())
    assert [(one.patients, one.site) for one in results.transfer] == [("validation", None), ("held_out", None)]
    assert {"calibration", "calibration_raw", "decision"} <= {curve.kind for curve in results.curves}
    raw = json.loads((files.output / "results.json").read_text("utf-8"))
    assert raw["schema"] == "momkd-results/1"

    before = {path: path.stat().st_mtime_ns for path in files.output.glob("comparators/*/sites/*/predictions_test.csv")}
    assert len(before) >= 4
    assert main.main(command) == 0, "a second time it takes what is there"
    assert "Resuming run" in capsys.readouterr().err
    for path, written in before.items():
        if "random_memory" not in path.parts:
            assert path.stat().st_mtime_ns == written


def test_where_no_weights_are_shared_every_site_s_student_is_scored(files) -> None:
    for key, value in {
        "memory": {"slots": 1, "assignment": "hard", "anchor_iterations": 1, "anchor_dim": 4},
        "training": {"patients_per_step": 8, "precision": "fp32", "standardise": "none"},
        "privacy": {"memory": "local", "share": "memory", "epsilon": 8.0, "releases": 1, "site_patients": 2000},
    }.items():
        files.edit(files.federation, key, value)
    assert main.main(["simulate", "--federation", str(files.federation), "--plain"]) == 0
    results = read_results(files.output / "results.json")
    assert set(results.held_out["federated"]["PR"].sites) == {"holly"}
    assert results.protection.epsilon == {"ash": pytest.approx(8.0), "birch": pytest.approx(8.0), "holly": 0.0}
    assert set(results.protection.slots_released) == {"anchors", "slots"}
    card = (files.output / "model_card.md").read_text("utf-8")
    assert "at most ε = 8 at δ = 1e-05" in card
    assert "ever moved by a release" in card
    assert "never weights" in card
    assert "No differential privacy bound is claimed" not in card
    scored = sorted(path.parent.parent.parent.name for path in files.output.glob("comparators/*/sites/holly/*.csv"))
    assert scored == ["own-ash", "own-birch"]
