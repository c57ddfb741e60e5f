"""The progress view: plain lines in a pipe, a live view in a terminal."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest
from rich.console import Console

from momkd_fl.telemetry.progress import LiveProgress, PlainProgress, Progress, duration

SITES = ["north", "south", "east"]


def plain() -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    return Progress.open(4, SITES, quorum=2, evaluators=["east"], stream=stream), stream


def test_a_pipe_gets_plain_lines() -> None:
    progress, stream = plain()
    assert isinstance(progress, PlainProgress)
    with progress:
        progress.say("Waiting for the sites.")
        progress.site("north", "online")
        progress.round(1, 2.0, 2, 0.7512, 0.61)
        progress.round(2, 2.0, 2)
    assert stream.getvalue().splitlines() == [
        "Waiting for the sites.",
        "site north: online",
        "round 1/4 · 2.0 s · 2 of 2 sites, quorum 2 · validation AUROC 0.751 · loss 0.610 · about 6.0 s left",
        "round 2/4 · 2.0 s · 2 of 2 sites, quorum 2 · validation AUROC not estimable · about 4.0 s left",
    ]


def test_routine_states_are_no_lines_and_trouble_is_one_each_time() -> None:
    progress, stream = plain()
    for state in ("online", "working", "done", "online", "working", "missing", "missing", "working", "late"):
        progress.site("north", state)
    progress.sites({"south": "online", "north": "late"})
    assert stream.getvalue().splitlines() == [
        "site north: online",
        "site north: missing",
        "site north: online again",
        "site north: late",
        "site south: online",
    ]


def test_a_closed_stream_does_not_end_the_run() -> None:
    progress, stream = plain()
    stream.close()
    progress.say("nobody reads this")
    progress.round(1, 1.0, 2)


def test_the_last_round_has_nothing_left() -> None:
    progress, stream = plain()
    progress.round(4, 1.0, 2, 0.8, 0.5)
    assert "left" not in stream.getvalue()


def test_the_live_view_shows_rounds_sites_and_figures() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    progress = LiveProgress(4, SITES, 2, ["east"], screen, console)
    with progress:
        progress.site("north", "working")
        progress.site("south", "late")
        progress.say("A [sentence] with brackets.")
        progress.round(2, 1.5, 2, 0.8, 0.5)
    text = screen.getvalue()
    for seen in (
        "2/4",
        "about 3.0 s left",
        "▶ working",
        "! late",
        "evaluates",
        "site south: late",
        "A [sentence] with brackets.",
        "2 of 2 sites, quorum 2 · validation AUROC 0.800 · loss 0.500",
    ):
        assert seen in text


_IN_TERMINAL = """
from momkd_fl.telemetry.progress import Progress
with Progress.open(2, ["north"]) as progress:
    progress.round(1, 1.0, 1, 0.75)
    print(type(progress).__name__)
"""


@pytest.mark.parametrize(("term", "view"), [("xterm-256color", "LiveProgress"), ("dumb", "PlainProgress")])
def test_a_terminal_gets_the_live_view(term: str, view: str) -> None:
    control, terminal = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", _IN_TERMINAL],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": term},
        timeout=30,
        check=True,
    )
    os.close(terminal)
    assert done.stdout.decode().strip() == view
    assert b"0.750" in os.read(control, 65536)
    os.close(control)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (42.4, "42 s"), (180, "3 min"), (3595, "1 h 00 min"), (3900, "1 h 05 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_importing_telemetry_imports_nothing_heavy() -> None:
    code = (
        "import sys, momkd_fl.telemetry.progress, momkd_fl.telemetry.logs\n"
        "print(sorted({'torch', 'pandas', 'numpy', 'rich', 'flwr', 'prometheus_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
