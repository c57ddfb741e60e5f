"""The ledger: whatever is done to it shows, and it has no room for a patient's name."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from momkd_fl.errors import UserError
from momkd_fl.security.ledger import Entry, Ledger, LedgerHead, verify

KEY, OTHER = Ed25519PrivateKey.from_private_bytes(b"a" * 32), Ed25519PrivateKey.from_private_bytes(b"b" * 32)
PUBLIC = KEY.public_key()
COUNT = 5


def entry(round_: int, **changed: Any) -> Entry:
    values = {
        "time": f"2026-03-01T10:00:{round_:02d}+00:00",
        "run": "her2-2026",
        "round": round_,
        "kind": "train",
        "digest": f"{round_:064x}",
        "bytes": 1000 + round_,
        "epsilon_spent": 0.5 * round_,
        "epsilon_left": 8 - 0.5 * round_,
    }
    return Entry(**(values | changed))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ledger = Ledger.create(tmp_path / "ledger.jsonl", KEY, "ash")
    for round_ in range(1, COUNT):
        ledger.append(entry(round_))
    ledger.close()
    return tmp_path / "ledger.jsonl"


def code_of(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return caught.value.code


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def written_anew(path: Path, key: Ed25519PrivateKey, rounds: Iterator[int] | range) -> None:
    path.unlink()
    ledger = Ledger.create(path, key, "ash")
    for round_ in rounds:
        ledger.append(entry(round_))
    ledger.close()


def test_a_ledger_reads_back_as_it_was_written(path: Path) -> None:
    found = verify(path, PUBLIC)
    assert found.site == "ash"
    assert found.entries == tuple(entry(round_) for round_ in range(1, COUNT))
    assert path.stat().st_mode & 0o777 == 0o600
    ledger = Ledger(path, KEY, found.heads)
    head = ledger.append(entry(COUNT))
    ledger.close()
    assert verify(path, PUBLIC, [*found.heads, head]).head == head


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("edit", "ledger-signature"),
        ("edit the first line", "ledger-signature"),
        ("delete", "ledger-order"),
        ("insert a copy", "ledger-order"),
        ("insert one's own", "ledger-signature"),
        ("reorder", "ledger-order"),
        ("space", "ledger-damaged"),
        ("half a line", "ledger-damaged"),
        ("another field", "ledger-damaged"),
        ("empty", "ledger-damaged"),
    ],
)
def test_tampering_shows(path: Path, change: str, code: str) -> None:
    lines = lines_of(path)
    head = verify(path).heads[1]
    path.write_bytes(
        b"".join(
            {
                "edit": [*lines[:2], lines[2].replace(b'"bytes":1002', b'"bytes":1'), *lines[3:]],
                "edit the first line": [lines[0].replace(b"ash", b"oak"), *lines[1:]],
                "delete": [*lines[:2], *lines[3:]],
                "insert a copy": [*lines[:3], lines[2], *lines[3:]],
                "insert one's own": [*lines[:2], forged(head), *lines[2:]],
                "reorder": [*lines[:2], lines[3], lines[2], *lines[4:]],
                "space": [lines[0].replace(b":", b": ", 1), *lines[1:]],
                "half a line": [*lines[:-1], lines[-1][:40]],
                "another field": [lines[0], json.dumps(json.loads(lines[1]) | {"patient": "x"}).encode() + b"\n"],
                "empty": [],
            }[change]
        )
    )
    assert code_of(lambda: verify(path, PUBLIC)) == code
    assert code_of(lambda: verify(path)) == code, "without the key on record it shows as well"


def forged(head: LedgerHead) -> bytes:
    from momkd_fl.security import ledger

    return ledger._line(OTHER, head.digest, head.lines + 1, {**vars(entry(9))})


def test_a_shortened_ledger_shows_by_the_heads_of_others(path: Path) -> None:
    heads = verify(path).heads
    lines = lines_of(path)
    for kept in range(1, COUNT):
        path.write_bytes(b"".join(lines[:kept]))
        assert verify(path, PUBLIC).head == heads[kept - 1], "the control: by itself it looks whole"
        for held in heads[kept:]:
            assert code_of(lambda held=held: verify(path, PUBLIC, [held])) == "ledger-truncated"
    assert code_of(lambda: Ledger(path, KEY, heads)) == "ledger-truncated", "and it is not continued"


def test_a_ledger_written_anew_with_the_same_key_shows_by_the_heads_of_others(path: Path) -> None:
    heads = verify(path).heads
    written_anew(path, KEY, range(6, 12))
    verify(path, PUBLIC)
    assert code_of(lambda: verify(path, PUBLIC, heads[1:2])) == "ledger-forked"


def test_a_swapped_key_shows(path: Path) -> None:
    heads = verify(path).heads
    written_anew(path, OTHER, range(1, COUNT))
    assert verify(path).key == OTHER.public_key(), "the control: it holds together, with a key that it names itself"
    assert code_of(lambda: verify(path, PUBLIC)) == "ledger-key"
    assert code_of(lambda: verify(path, None, heads)) == "ledger-forked"
    assert code_of(lambda: Ledger(path, KEY)) == "ledger-key"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_flipped_bit_goes_unseen(path: Path, data: st.DataObject) -> None:
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    target = path.with_name("changed")
    target.write_bytes(bytes(changed))
    with pytest.raises(UserError):
        verify(target, PUBLIC)


def test_a_line_cut_short_by_death_is_dropped_when_the_site_goes_on(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"entry":{"byt')
    assert code_of(lambda: verify(path)) == "ledger-damaged"
    ledger = Ledger(path, KEY, verify_bytes(whole, path).heads)
    ledger.append(entry(COUNT))
    ledger.close()
    assert len(verify(path, PUBLIC).entries) == COUNT


def verify_bytes(whole: bytes, path: Path) -> Any:
    copy = path.with_name("copy")
    copy.write_bytes(whole)
    return verify(copy)


def test_two_writers_are_one_too_many(path: Path) -> None:
    first = Ledger(path, KEY)
    assert code_of(lambda: Ledger(path, KEY)) == "ledger-in-use"
    first.close()
    Ledger(path, KEY).close()


def test_a_full_disk_is_said_and_leaves_no_half_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, write = Ledger(path, KEY), os.write
    room = [100]

    def full(descriptor: int, data: Any) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] = 0
        return write(descriptor, bytes(data)[:100])

    monkeypatch.setattr(os, "write", full)
    assert code_of(lambda: ledger.append(entry(COUNT))) == "ledger-not-written"
    monkeypatch.undo()
    Ledger(path, KEY).close()
    assert len(verify(path, PUBLIC).entries) == COUNT - 1


def test_a_ledger_is_begun_once(path: Path) -> None:
    assert code_of(lambda: Ledger.create(path, KEY, "ash")) == "ledger-exists"
    assert code_of(lambda: verify(path.with_name("none"))) == "ledger-missing"
    assert code_of(lambda: Ledger(path.with_name("none"), KEY)) == "ledger-missing"


@pytest.mark.parametrize(
    "changed",
    [
        {"run": "patient 12345"},
        {"run": "a/b"},
        {"kind": "Train"},
        {"kind": "x" * 40},
        {"digest": "MRN-0042"},
        {"time": "2026-03-01T10:00:00+01:00"},
        {"time": "yesterday"},
        {"round": -1},
        {"round": True},
        {"bytes": 1.5},
        {"epsilon_spent": "8"},
        {"epsilon_left": float("nan")},
    ],
)
def test_there_is_no_room_for_anything_else(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"time|run|round|epsilon|isoformat"):
        entry(1, **changed)
