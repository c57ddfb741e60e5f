"""``momkd ledger``: says what it checked and what it could not, and never prints a damaged ledger."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from momkd_fl.cli import main
from momkd_fl.security.ledger import Entry, Ledger
from momkd_fl.security.signing import create_signing_key


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    written = Ledger.create(tmp_path / "ledger.jsonl", create_signing_key(tmp_path, "ash"), "ash")
    for round_, epsilon in ((1, 0.5), (2, None)):
        left = None if epsilon is None else 8 - epsilon
        written.append(
            Entry(f"2026-03-01T10:00:0{round_}+00:00", "her2", round_, "train", f"{round_:064x}", 9, epsilon, left)
        )
    written.close()
    return tmp_path / "ledger.jsonl"


def run(ledger: Path, action: str, *more: str | Path) -> int:
    return main.main(["ledger", action, "--ledger", str(ledger), *map(str, more)])


def test_verify_says_what_it_could_not_check(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ledger, "verify") == 0
    said = capsys.readouterr().err
    assert "2 messages" in said
    assert "not compared" in said
    assert "No head" in said
    head = said.splitlines()[-1].removeprefix("momkd ledger: ").removeprefix("Head: ")
    assert run(ledger, "verify", "--public-key", ledger.with_name("ash.sign.pub"), "--head", head) == 0
    assert len(capsys.readouterr().err.splitlines()) == 2
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-1]))
    assert run(ledger, "verify") == 0
    assert run(ledger, "verify", "--head", head) == 2
    assert "[ledger-truncated]" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["verify", "show", "export"])
def test_a_changed_ledger_is_refused_by_each(
    ledger: Path, action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.write_bytes(ledger.read_bytes().replace(b'"bytes":9', b'"bytes":8', 1))
    more = ["--out", tmp_path / "out.csv"] if action == "export" else []
    assert run(ledger, action, *more) == 2
    shown = capsys.readouterr()
    assert "[ledger-signature]" in shown.err
    assert not shown.out
    assert not (tmp_path / "out.csv").exists()


def test_show_prints_one_line_a_message(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ledger, "show") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "round 1  train  9 bytes" in first
    assert "ε spent 0.500, left 7.500" in first
    assert "no budget" in second


def test_export_writes_what_the_ledger_holds(ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ledger, "export", "--out", tmp_path / "out.csv") == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epsilon_spent"] for row in rows] == ["0.5", ""]
    assert run(ledger, "export", "--out", tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert found["site"] == "ash"
    assert [message["digest"] for message in found["messages"]] == [row["digest"] for row in rows]
    assert run(ledger, "export", "--out", tmp_path / "out.xlsx") == 2
    assert "[ledger-export]" in capsys.readouterr().err


def test_a_head_of_another_form_is_refused(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ledger, "verify", "--head", "3:abc") == 2
    assert "[ledger-head-form]" in capsys.readouterr().err
