"""``momkd report``: the same files again from ``results.json``, and sentences where there is none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from momkd_fl.cli import main
from momkd_fl.evaluation.results import (
    SCHEMA,
    Cohort,
    Estimate,
    HeldOut,
    Protection,
    Provenance,
    Results,
    Round,
    Seconds,
    Selection,
    TaskCohort,
)
from momkd_fl.evaluation.results_file import read_results, write_results

FILES = ["model_card.md", "report.html", "results.csv", "results.json"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a small finished run."""
    auroc = Estimate(0.8, 0.7, 0.9)
    results = Results(
        schema=SCHEMA,
        name="small",
        created="2026-01-15T10:20:00Z",
        origin="simulation",
        tasks=["PR"],
        seconds=Seconds(None, 12.0),
        peak_rss_mb=400.0,
        quorum=1,
        rounds=[Round(1, 2.0, 1000, {"trained": ["ash"]})],
        cohorts=[
            Cohort(site, role, 60, 60, 0, {"PR": TaskCohort(60, 0.5)})
            for site, role in (("ash", "train"), ("holly", "evaluate"))
        ],
        held_out={"federated": {"PR": HeldOut(auroc, auroc, {"holly": auroc})}},
        selection={"PR": Selection(1, "AUROC", 0.5)},
        provenance=Provenance(*("a" * 64 for _ in range(6)), seeds={"run": 0}),
        protection=Protection("in_process", "plain"),
    )
    write_results(results, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_gets_all_four_files_beside_its_results(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "results.json").read_bytes()
    (run / "results.csv").unlink()
    assert main.main(["report", str(run)]) == 0
    assert f"Report: {run / 'report.html'}" in capsys.readouterr().out
    assert sorted(path.name for path in run.iterdir()) == FILES
    assert (run / "results.json").read_bytes() == before
    assert "AUROC of 0.80" in (run / "report.html").read_text("utf-8")


def test_a_results_file_goes_to_another_folder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    assert main.main(["report", str(run / "results.json"), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert read_results(out / "results.json") == read_results(run / "results.json")
    assert sorted(path.name for path in run.iterdir()) == ["results.csv", "results.json"]


def test_a_folder_without_results_says_where_they_are_or_how_to_get_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["report", str(tmp_path)]) == 2
    assert f"Did you mean {run}? [report-no-results]" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "empty").mkdir()
    assert main.main(["report", str(tmp_path / "empty")]) == 2
    assert "resume the run first" in capsys.readouterr().err


def test_a_path_that_is_not_there_or_no_results_gets_a_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["report", str(tmp_path / "gone.json")]) == 2
    assert "results-missing" in capsys.readouterr().err
    raw = json.loads((run / "results.json").read_text("utf-8"))
    (run / "results.json").write_text(json.dumps({**raw, "quorum": -1}), "utf-8")
    assert main.main(["report", str(run)]) == 2
    told = capsys.readouterr().err
    assert "'quorum'" in told
    assert "Traceback" not in told


def test_a_folder_that_cannot_be_written_to_gets_a_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    assert main.main(["report", str(run), "--out", os.fspath(tmp_path / "file")]) == 2
    assert "report-unwritable" in capsys.readouterr().err
