"""Real features, labels and expression, from the documented commands to the report; and that these tests do run."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from momkd_fl.cli.main import main

ROOT = Path(__file__).parents[1]
REAL_DATA = Path(os.environ.get("MOMKD_REAL_DATA", ROOT.parent / "shared" / "data"))
SMALL: dict[str, Any] = {
    "model": {"hidden_dim": 16, "memory_dim": 8},
    "memory": {"slots": 2, "init_iterations": 2, "anchor_iterations": 2},
    "training": {"patients_per_step": 16, "learning_rate": 1e-3, "precision": "fp32"},
    "genes": {"panel": "shared"},
}


@pytest.fixture(scope="module")
def real_data() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip(f"the data folder {REAL_DATA} is not there (set MOMKD_REAL_DATA)")
    return REAL_DATA


def command(*words: str) -> list[str]:
    """Run one of the measuring commands as the documentation says; its lines."""
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=True, env=one_thread()
    )
    return done.stdout.splitlines()


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def shrink(federation: Path, rounds: int) -> Path:
    """The same federation with a small student and few rounds."""
    raw = yaml.safe_load(federation.read_text("utf-8"))
    raw |= {**SMALL, "rounds": {"quorum": raw["rounds"]["quorum"], "count": rounds}}
    federation.write_text(yaml.safe_dump(raw), "utf-8")
    return federation


def simulate(federation: Path, *options: str) -> dict[str, Any]:
    """``momkd simulate`` in this process; what it left in results.json."""
    assert main(["simulate", "--federation", str(federation), "--plain", *options]) == 0
    found: dict[str, Any] = json.loads((federation.with_suffix("") / "results.json").read_text("utf-8"))
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predictions(federation: Path, site: str) -> list[dict[str, str]]:
    return rows_of(federation.with_suffix("") / "sites" / site / "predictions_test.csv")


@pytest.fixture(scope="module")
def colorectal(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crc")
    data = str(real_data / "tcga-crc")
    lines = command("benchmarks.crc", "prepare", "--data", data, "--out", str(out), "--seeds", "0")
    assert len(lines) == 2
    return out


@pytest.mark.real
@pytest.mark.parametrize(
    ("trained", "tested", "options"), [("A6", "D5", ["--comparators"]), ("D5", "A6", [])], ids=["A6-D5", "D5-A6"]
)
def test_one_colorectal_hospital_teaches_the_other(
    real_data: Path, colorectal: Path, trained: str, tested: str, options: list[str]
) -> None:
    federation = shrink(colorectal / f"{trained}_to_{tested}-seed0.yaml".lower(), rounds=2)
    results = simulate(federation, *options)
    assert results["origin"] == "simulation"
    assert [one["sites"]["trained"] for one in results["rounds"]] == [[trained]] * 2
    assert all(one["memory"]["slot_movement_rad"] > 0 for one in results["rounds"])
    table = rows_of(real_data / "tcga-crc" / "labels.csv")
    expected = {row["patient"]: float(row["MSI_H"]) for row in table if row["site"] == tested and row["MSI_H"]}
    predicted = predictions(federation, tested)
    assert {row["patient"]: float(row["label"]) for row in predicted} == expected
    assert len({row["p1"] for row in predicted}) > len(predicted) // 2
    pooled = results["held_out"]["federated"]["MSI"]["pooled"]
    assert (pooled["value"], pooled["reason"]) == (None, "fewer than 11 patients of a class")
    methods = {"federated", "pooled", "local_median", "no_genomics_control", "random_memory"}
    assert set(results["held_out"]) == (methods if options else {"federated"})
    assert (federation.with_suffix("") / "report.html").stat().st_size > 10_000


@pytest.mark.real
def test_a_fresh_simulation_is_not_compared_with_older_models(colorectal: Path) -> None:
    federation = colorectal / "d5_to_a6-seed0.yaml"
    left = federation.with_suffix("") / "comparators" / "pooled" / "sites" / "A6" / "predictions_test.csv"
    left.parent.mkdir(parents=True)
    shutil.copy(federation.with_suffix("") / "sites" / "A6" / "predictions_test.csv", left)
    assert set(simulate(federation)["held_out"]) == {"federated", "pooled"}
    assert set(simulate(shrink(federation, rounds=1), "--fresh")["held_out"]) == {"federated"}


@pytest.mark.real
def test_the_semi_real_federation_scores_the_hospitals_that_never_train(real_data: Path, tmp_path: Path) -> None:
    brca = real_data / "tcga-brca"
    words = ["benchmarks.semi_real", "prepare", "--brca", str(brca), "--out", str(tmp_path), "--seed", "7"]
    lines = command(*words, "--tasks", "PR", "--mean-patches", "30")
    federation = tmp_path / "federation-PR.yaml"
    assert lines == [f"momkd simulate --federation {federation} --comparators --jobs 2"]
    results = simulate(shrink(federation, rounds=1))
    training = {"BH", "A2", "E2", "D8", "A8", "AR"}
    assert set(results["rounds"][-1]["sites"]["trained"]) == training
    coverage = {cohort["site"]: cohort["with_genomics"] for cohort in results["cohorts"]}
    assert {site for site, count in coverage.items() if count == 0} == {"A8", "AR", "external"}
    table = rows_of(brca / "labels.csv")
    drawn = [row for row in table if row["has_rna"] == "1" and row["tss"] not in training]  # slides need a profile
    expected = {row["patient"] for row in drawn if row["PR"]}
    assert {row["patient"] for row in predictions(federation, "external")} == expected
    pooled = results["held_out"]["federated"]["PR"]["pooled"]
    assert 0 <= pooled["low"] <= pooled["value"] <= pooled["high"] <= 1


SUITE = {
    "tests/test_other.py": "def test_other():\n    pass\n",
    "tests/test_real.py": "import pytest\n\n@pytest.mark.real\ndef test_real():\n    {body}\n",
}


@pytest.mark.parametrize(
    ("body", "options", "folder_there", "failed"),
    [
        ("pass", [], True, None),
        ("pass", ["-n", "2"], True, None),
        ("pytest.skip('no')", [], True, "was skipped although"),
        ("pass", ["--ignore", "tests/test_real.py"], True, "none of its tests of real data ran"),
        ("pass", ["-n", "2", "--ignore", "tests/test_real.py"], True, "none of its tests of real data ran"),
        ("pass", ["tests", "--ignore", "tests/test_real.py"], True, "none of its tests of real data ran"),
        ("pass", ["tests/test_other.py"], True, None),
        ("pass", ["-k", "other"], True, None),
        ("pytest.skip('no')", [], False, None),
    ],
)
def test_a_whole_run_without_the_tests_of_real_data_fails_where_the_data_is(
    tmp_path: Path, body: str, options: list[str], folder_there: bool, failed: str | None
) -> None:
    for name, text in SUITE.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("{body}", body), "utf-8")
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests" / "conftest.py")
    settings = "[pytest]\ntestpaths = tests\naddopts = --import-mode=importlib\nmarkers = real: x\n"
    (tmp_path / "pytest.ini").write_text(settings, "utf-8")
    there = tmp_path / "data"
    if folder_there:
        there.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**one_thread(), "MOMKD_REAL_DATA": str(there)},
    )
    assert done.returncode == (0 if failed is None else 1), done.stdout
    assert failed is None or failed in done.stdout
