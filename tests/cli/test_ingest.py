"""``momkd ingest`` as a person meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from momkd_fl.cli import main


def test_ingest_verify_and_again(alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ingest", "--site", str(alone), "--out", str(tmp_path / "store")]
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


def test_without_a_folder_it_says_what_to_set(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["ingest", "--site", str(alone)]) == 2
    assert "data.store" in capsys.readouterr().err
