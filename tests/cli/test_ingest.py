"""``momkd ingest`` as a person meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from momkd_fl.cli import main


@pytest.fixture
def site(hospitals: Path, tmp_path: Path) -> Path:
    raw = yaml.safe_load((hospitals / "ash" / "site.yaml").read_text())
    raw["data"]["features"] = [str(hospitals / "ash" / folder) for folder in raw["data"]["features"]]
    raw["data"]["labels"]["path"] = str(hospitals / "ash" / raw["data"]["labels"]["path"])
    raw["data"].pop("genomics")
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_ingest_verify_and_again(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ingest", "--site", str(site), "--out", str(tmp_path / "store")]
    assert main.main(command) == 0
    assert "0 unchanged" in capsys.readouterr().out
    assert main.main([*command, "--verify"]) == 0
    assert "every slide is whole" in capsys.readouterr().out
    assert main.main(command) == 0
    assert "0 slides written" in capsys.readouterr().out
    shard = next((tmp_path / "store").glob("*.bin"))
    shard.write_bytes(b"\0" * shard.stat().st_size)
    assert main.main([*command, "--verify"]) == 1
    assert shard.name in capsys.readouterr().err


def test_without_a_folder_it_says_what_to_set(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["ingest", "--site", str(site)]) == 2
    assert "data.store" in capsys.readouterr().err
