"""``momkd withdraw`` as a person meets it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from momkd_fl.cli import main


@pytest.fixture
def site(alone: Path, tmp_path: Path) -> Path:
    raw = yaml.safe_load(alone.read_text())
    raw["state_dir"] = str(tmp_path / "state")
    raw["data"]["store"] = str(tmp_path / "store")
    alone.write_text(yaml.safe_dump(raw))
    return alone


def test_withdraw_and_again(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(site.read_text())
    with Path(raw["data"]["labels"]["path"]).open(encoding="utf-8") as file:
        column = raw["data"]["labels"].get("patient") or "patient"
        patient = next(csv.DictReader(file))[column]
    assert main.main(["ingest", "--site", str(site)]) == 0
    before = len(list((tmp_path / "store").glob("*.bin")))
    command = ["withdraw", "--site", str(site), "--patient", patient, "--reason", "asked"]
    assert main.main(command) == 0
    said = capsys.readouterr().out
    assert "was put on the list" in said
    assert "ingested slide(s)" in said
    after = len(list((tmp_path / "store").glob("*.bin")))
    assert after < before
    assert main.main(command) == 0
    assert "already on the list" in capsys.readouterr().out
    assert main.main(["ingest", "--site", str(site)]) == 0
    assert len(list((tmp_path / "store").glob("*.bin"))) == after


def test_an_unknown_patient(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["withdraw", "--site", str(site), "--patient", "nobody"]) == 2
    assert "no patient 'nobody'" in capsys.readouterr().err
    assert not (tmp_path / "state" / "withdrawn.jsonl").exists()
