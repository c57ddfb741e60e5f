"""``momkd study``: a tiny plan to its end, killed and gone on with, mistakes in a plan, a cell that fails."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from momkd_fl.cli import main

DIM = 16
Write = Callable[..., Path]


@pytest.fixture(scope="session")
def write_plan(hospitals: Path) -> Write:
    """``(folder, **sections)``: a plan of two methods over three small hospitals; sections replace its own."""

    def write(folder: Path, **sections: Any) -> Path:
        raw = {
            "name": "tiny",
            "cohort": {
                "kind": "sites",
                "sites": {site: str(hospitals / site / "site.yaml") for site in ("ash", "birch", "holly")},
                "encoder": {"name": f"synthetic-{DIM}", "dim": DIM},
            },
            "tasks": ["PR"],
            "seeds": [3],
            "base": {
                "model": {"hidden_dim": 16, "memory_dim": 8},
                "memory": {"slots": 2, "init_iterations": 2, "anchor_iterations": 2},
                "training": {"patients_per_step": 8, "learning_rate": 1e-3, "precision": "fp32"},
                "genes": {"panel": "pam50"},
                "rounds": {"count": 1},
            },
            "methods": {"federated": {"random_memory": True}, "pooled": {"pooled": True}},
            "references": ["pooled"],
            "targets": [{"method": "federated", "reference": "every_local", "at_least": -1}],
            "class_minimum": 2,
            "resamples": 100,
            **sections,
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "study.yaml"
        path.write_text(yaml.safe_dump(raw), "utf-8")
        return path

    return write


def study(plan: Path, out: Path, *more: str) -> list[str]:
    return ["study", "--plan", str(plan), "--out", str(out), *more]


def table(out: Path) -> list[dict[str, str]]:
    """The results without what a clock says."""
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["statistic"] != "seconds_per_cell"]


def records(out: Path) -> dict[str, dict[str, Any]]:
    found = {path.parent.name: json.loads(path.read_text("utf-8")) for path in out.glob("cells/*/record.json")}
    return {key: {**record, "seconds": None} for key, record in found.items()}


@pytest.fixture(scope="session")
def finished(write_plan: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ran to its end undisturbed."""
    folder = tmp_path_factory.mktemp("finished")
    command = [sys.executable, "-m", "momkd_fl.cli.main", *study(write_plan(folder), folder / "out", "--jobs", "1")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "8 cells, 0 finished. 8 x 15.0 s / 1 processes = 2 min" in done.stderr.splitlines()[0]
    assert "[8/8] PR/" in done.stderr
    assert "| federated.random_memory | all |" in done.stdout
    return folder / "out"


@pytest.mark.process
def test_every_cell_leaves_predictions_a_record_and_its_row(finished: Path) -> None:
    found = records(finished)
    assert len(found) == 8
    for key, record in found.items():
        assert record["key"] == key
        folder = finished / "cells" / key
        assert {path.stem for path in (folder / "predictions").iterdir()} == set(record["tested"])
        assert {path.stem for path in (folder / "validation").iterdir()} == set(record["trained"])
        assert (record["method"] == "federated") == (folder / "random_memory").exists()
    results = json.loads((finished / "results.json").read_text("utf-8"))
    assert {(row["split"], row["method"]) for row in results["rows"]} == {
        (split, method)
        for split in ("leave_one_site_out", "external")
        for method in ("federated", "federated.random_memory", "pooled")
    }
    assert set(results["matrix"]["PR"]) == {"ash", "birch"}
    assert set(results["matrix"]["PR"]["ash"]) == {"birch", "holly"}
    assert not (finished / "work").exists() or not list((finished / "work").iterdir())


@pytest.mark.process
def test_killed_in_the_middle_it_goes_on_to_the_same_table(write_plan: Write, finished: Path, tmp_path: Path) -> None:
    plan, out = write_plan(tmp_path), tmp_path / "out"
    running = subprocess.Popen(
        [sys.executable, "-m", "momkd_fl.cli.main", *study(plan, out, "--jobs", "1")], stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not list(out.glob("cells/*/record.json")):
        assert time.monotonic() < until
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(0.5)  # its processes end by themselves
    before = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/record.json")}
    assert 0 < len(before) < 8
    assert main.main(study(plan, out, "--jobs", "1")) == 0
    assert records(out) == records(finished)
    assert table(out) == table(finished)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())


@pytest.mark.process
def test_a_cell_that_fails_is_noted_and_the_others_go_on(
    write_plan: Write, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    methods = {"federated": {"random_memory": True}, "gene": {"genes": {"minimum": 999}}}
    plan, out = write_plan(tmp_path, methods=methods, references=[], splits=["external"], targets=[]), tmp_path / "out"
    assert main.main(study(plan, out, "--only", "without-holly", "--jobs", "1")) == 1
    said = capfd.readouterr().err
    assert "PR/gene/without-holly/seed3 failed when it was last tried" in said
    (noted,) = out.glob("failed/*.json")
    failure = json.loads(noted.read_text("utf-8"))
    assert failure["cell"] == "PR/gene/without-holly/seed3"
    assert failure["code"]
    assert len(records(out)) == 1
    assert main.main(study(plan, out, "--status")) == 0
    said = capfd.readouterr().err
    assert "4 cells, 1 finished" in said
    assert failure["code"] in said


@pytest.mark.process
def test_private_cells_say_what_they_claim_spend_and_release(write_plan: Write, tmp_path: Path) -> None:
    private = {"memory": "local", "epsilon": 8, "releases": 1, "site_patients": 500}
    methods = {
        "infinity": {"memory": {"slots": 1}},
        "memory": {"memory": {"slots": 1, "assignment": "hard"}, "privacy": private},
        "alone": {"memory": {"slots": 1, "assignment": "hard"}, "privacy": {**private, "share": "memory"}},
    }
    training = {"patients_per_step": 8, "learning_rate": 1e-3, "precision": "fp32", "standardise": "none"}
    base = {"model": {"hidden_dim": 16, "memory_dim": 8}, "training": training, "genes": {"panel": "pam50"}}
    own = {"methods": methods, "base": {**base, "rounds": {"count": 1}}, "local_sites": False, "splits": ["external"]}
    targets = [{"method": "memory", "reference": "released", "at_least": 0.5}]
    plan, out = write_plan(tmp_path, **own, references=[], targets=targets), tmp_path / "out"
    assert main.main(study(plan, out, "--jobs", "1")) == 0
    found = {record["method"]: record for record in records(out).values()}
    assert "privacy" not in found["infinity"]
    given = found["memory"]["privacy"]
    assert given["spent"]["ash"] == pytest.approx(8.0)
    assert given["spent"]["birch"] < 8.0, "it has no genomics, so releases less"
    assert (given["epsilon_run"], given["conditional"], given["dropped"]) == (None, True, [])
    assert set(given["released"]) == {"anchors", "slots", "slots_genomics", "slots_histology"}
    assert found["alone"]["privacy"]["epsilon_run"] == pytest.approx(8.0)
    assert (found["memory"]["validation_auroc"], found["memory"]["chosen_round"]) == (None, 1)
    cell = out / "cells" / found["alone"]["key"]
    kept = {path.parent.name: path.read_bytes() for path in cell.glob("students/*/holly.csv")}
    assert set(kept) == {"ash", "birch"}
    assert (cell / "predictions" / "holly.csv").read_bytes() in kept.values()
    assert "## Privacy by patient" in (out / "results.md").read_text("utf-8")


def test_a_finished_study_trains_nothing(
    write_plan: Write, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "results.csv").read_bytes()
    assert main.main(study(write_plan(tmp_path), finished)) == 0
    assert "8 cells, 8 finished. 0 x" in capsys.readouterr().err
    assert (finished / "results.csv").read_bytes() == before


def test_two_studies_do_not_write_to_one_folder(
    write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from momkd_fl.federation.study_queue import alone

    with alone(tmp_path / "out"):
        assert main.main(study(write_plan(tmp_path), tmp_path / "out")) == 2
    assert "another study is writing here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"mehods": {}}, "'mehods' is not a known key; did you mean 'methods'?"),
        (
            {"methods": {"a": {"memory": {"slotz": 3}}}},
            "methods.a: 'memory.slotz' is not a known key; did you mean 'slots'",
        ),
        ({"methods": {"a": {"memmory": {}}}}, "methods.a: 'memmory' is not a known key; did you mean 'memory'?"),
        ({"methods": {"a": {"memory": {"mode": "magic"}}}}, "methods.a: 'memory.mode'"),
        ({"methods": {"a": {"task": "ODX"}}}, "methods.a: the study sets 'task' itself"),
        ({"methods": {"a": {"cohort": {"colour": 1}}}}, "methods.a.cohort: 'colour' cannot differ between methods"),
        ({"methods": {"a": {"without_genomics": ["oak"]}}}, "names 'oak', which is no training site"),
        ({"methods": {"local": {}}}, "'local' is the name of the sites' own models"),
        ({"base": {"memory": {"slots": [1, 2]}}}, "'base' holds a list"),
        ({"references": ["released"]}, "'released' belongs to 'targets'"),
        ({"methods": {"released": {}}}, "'released' is what a target asks a share of slots by"),
        (
            {
                "methods": {
                    "a": {
                        "random_memory": True,
                        "memory": {"slots": 1, "assignment": "hard"},
                        "training": {"standardise": "none"},
                        "privacy": {"share": "memory"},
                    }
                }
            },
            "methods.a: random_memory scores the shared weights again",
        ),
        ({"references": ["teacher"]}, "'teacher' stands in 'references' or 'targets' but is no method"),
        ({"tasks": []}, "'tasks'"),
        ({"cohort": {"kind": "demo"}, "tasks": ["KRAS"]}, "the cohort has no task 'KRAS'; choose from PR"),
        ({"cohort": {"kind": "sites"}}, "kind 'sites' needs 'sites' and 'encoder'"),
    ],
)
def test_a_mistake_in_the_plan_is_a_sentence(
    write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], sections: dict[str, Any], sentence: str
) -> None:
    own = {"references": [], "targets": []} if "methods" in sections else {}
    assert main.main(study(write_plan(tmp_path, **(own | sections)), tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert str(tmp_path / "study.yaml") in said


def test_nothing_chosen_and_jobs_below_one_are_said(
    write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path)
    assert main.main(study(plan, tmp_path / "out", "--only", "KRAS")) == 2
    assert "No cell of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.main(study(plan, tmp_path / "out", "--jobs", "0"))
    assert os.listdir(tmp_path) == ["study.yaml"]
