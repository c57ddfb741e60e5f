"""The log holds allow-listed fields and nothing else."""

from __future__ import annotations

import json
import math
import re
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.errors import UserError
from momkd_fl.telemetry.logs import COORDINATOR_FIELDS, FIELDS, JsonLog


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_says_when_what_where_and_the_fields(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "log.jsonl"
    with JsonLog(path, "north", strict=True) as log:
        log.event("round_finished", round=3, seconds=1.25, phase="train", outcome="ok", code=None)
    (line,) = lines(path)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "info",
        "event": "round_finished",
        "site": "north",
        "round": 3,
        "seconds": 1.25,
        "phase": "train",
        "outcome": "ok",
    }
    assert path.stat().st_mode & 0o077 == 0


def test_lines_are_appended_to_those_of_the_last_run(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        with JsonLog(path, "north", strict=True) as log:
            log.event("started")
    assert [line["event"] for line in lines(path)] == ["started", "started"]


PRIVATE = "TCGA-A6-2671"


@pytest.mark.parametrize(
    "fields",
    [
        {"patient": PRIVATE},
        {"patients": 7},
        {"error": "no such file: /data/TCGA-A6-2671.h5"},
        {"phase": PRIVATE},
        {"outcome": PRIVATE},
        {"state": PRIVATE},
        {"code": PRIVATE},
        {"code": "bag empty: /data/x"},
        {"digest": PRIVATE},
        {"version": PRIVATE},
        {"site": "south"},
        {"seconds": math.nan},
        {"seconds": PRIVATE},
        {"round": -1},
        {"round": True},
        {"resumed": 1},
        {"auroc": 0.75},
    ],
)
def test_a_stray_field_or_value_is_refused_when_strict_and_dropped_when_not(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=name) as refusal:
        JsonLog(None, "north", strict=True).event("happened", **fields)
    assert PRIVATE not in str(refusal.value)

    path = tmp_path / "log.jsonl"
    with JsonLog(path, "north", strict=False) as log:
        log.event("happened", round=1, **({} if name == "round" else fields))
        if name == "round":
            log.event("happened", **fields)
        assert log.fields_dropped == 1
    assert PRIVATE not in path.read_text()
    happened, *_, closed = lines(path)
    assert happened["site"] == "north"
    assert closed["event"] == "log_closed"
    assert closed["fields_dropped"] == 1


def test_only_the_coordinator_has_figures_over_sites_and_lines_about_sites(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with JsonLog(path, "coordinator", sites=["north", "south"], strict=True) as log:
        log.event("reply", site="south", bytes_received=4096)
        log.event("round_finished", round=1, replies=2, quorum=2, auroc=0.81, slot_movement=0.01)
        with pytest.raises(ValueError, match="site"):
            log.event("reply", site="east")
    assert [line["site"] for line in lines(path)] == ["south", "coordinator"]


def test_no_field_is_a_class_count_or_a_text() -> None:
    names = " ".join([*FIELDS, *COORDINATOR_FIELDS])
    assert not re.search("patient|positive|negative|class|label|gene|slide|message|error|path|text", names)


@pytest.mark.parametrize("event", ["", "Round", "round finished", "round-finished", "x" * 60, PRIVATE])
def test_an_event_is_a_word(event: str) -> None:
    with pytest.raises(ValueError, match="snake_case"):
        JsonLog(None, "north", strict=False).event(event)


def test_a_level_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="level"):
        JsonLog(None, "north").event("happened", level="debug")


@given(name=st.text(min_size=1, max_size=20), value=st.text(max_size=30))
def test_no_text_gets_through_but_words_that_are_listed(name: str, value: str) -> None:
    log = JsonLog(None, "north", strict=False)
    if name in {"event", "level", "self"}:
        return
    log.event("happened", **{name: value})
    assert log.fields_dropped == 1 or FIELDS[name](value) or (name, value) == ("site", "north")


def test_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with JsonLog(path, "north", strict=True) as log:

        def tick() -> None:
            for number in range(200):
                log.event("tick", round=number)

        threads = [threading.Thread(target=tick) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(lines(path)) == 800


def test_a_log_that_cannot_be_opened_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"telemetry\.log") as problem:
        JsonLog(tmp_path / "file" / "log.jsonl", "north")
    assert problem.value.code == "log-not-writable"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_does_not_end_the_run() -> None:
    log = JsonLog(Path("/dev/full"), "north", strict=True)
    log.event("happened")
    assert log.lines_lost == 1
    log.close()
