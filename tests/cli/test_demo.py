"""``momkd demo``: nothing is left of it, however it ends, and the same command goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from momkd_fl.cli.demo import Layout, _prepare
from momkd_fl.errors import UserError
from momkd_fl.evaluation.results_file import read_results

PATIENCE_S = 200.0
OPTIONS = ("--patients", "24", "--rounds", "2", "--plain")


@dataclass
class Demo:
    """One start of the command."""

    out: Path
    said: Path
    process: subprocess.Popen[bytes]

    @staticmethod
    def start(out: Path) -> Demo:
        said = out.parent / "said.log"
        with said.open("ab") as file:
            line = [sys.executable, "-m", "momkd_fl.cli.main", "demo", "--out", str(out), *OPTIONS]
            return Demo(out, said, subprocess.Popen(line, stdout=file, stderr=file, start_new_session=True))

    def text(self) -> str:
        return self.said.read_text("utf-8")

    def until(self, holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            if self.process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"no {what} (status {self.process.returncode}):\n{self.text()[-3000:]}")
            time.sleep(0.02)

    def end(self, number: int) -> int:
        os.kill(self.process.pid, number)
        return self.process.wait(60)

    def family(self) -> list[psutil.Process]:
        """Every process it started, also theirs, but for the sites' short-lived readers of attributes."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "momkd_fl.data.attributes" not in process.cmdline():
                    found.append(process)
        return found


def all_end(processes: list[psutil.Process], within_s: float) -> None:
    """Fails when one of them is still there."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    left = [process.cmdline() for process in alive if process.is_running()]
    for process in alive:
        process.kill()
    assert not left


def rounds_done(out: Path) -> int:
    path = out / "server" / "log.jsonl"
    return path.read_text("utf-8").count('"round_finished"') if path.exists() else 0


def ours(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have become a command of ours."""
    return [one for one in processes if {"momkd_fl.cli.server", "momkd_fl.cli.client"} & set(one.cmdline())]


@pytest.mark.process
def test_however_it_is_ended_nothing_is_left_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """One demo, four starts: killed at its start, asked to stop in a round, killed while it compares, finished."""
    out = tmp_path / "demo"

    demo = Demo.start(out)
    demo.until(lambda: len(ours(demo.family())) == 9, "server and eight sites")
    family = demo.family()
    assert demo.end(signal.SIGKILL) == -signal.SIGKILL
    all_end(family, 30)

    demo = Demo.start(out)
    demo.until(lambda: rounds_done(out) >= 1, "finished round")
    family = demo.family()
    assert len(family) == 9
    assert demo.end(signal.SIGINT) == 130
    all_end(family, 1)
    assert not (out / "server" / "results.json").exists()

    demo = Demo.start(out)
    demo.until(lambda: "models to compare with" in demo.text(), "comparison")
    assert "Resuming run" in demo.text()
    demo.until(lambda: any("spawn_main" in " ".join(one.cmdline()) for one in demo.family()), "comparing process")
    family = demo.family()
    assert demo.end(signal.SIGKILL) == -signal.SIGKILL
    all_end(family, 30)

    demo = Demo.start(out)
    assert demo.process.wait(PATIENCE_S) == 0, demo.text()[-3000:]
    assert demo.text().count("Resuming run") == 1, "the federation had finished: only the comparison goes on"
    results = read_results(out / "results.json")
    assert [entry.round for entry in results.rounds] == [1, 2]
    assert {"federated", "pooled", "local_median", "no_genomics_control"} <= set(results.held_out)
    assert set(results.held_out["federated"]["PR"].sites) == {"maple", "willow"}
    assert results.seconds.run > 0
    assert results.peak_rss_mb > 100
    assert (out / "report.html").stat().st_size > 10_000
    assert rounds_done(out) == 2
    for site in ("aspen", "maple"):
        assert (out / "sites" / site / "model.safetensors").exists()


def test_another_demo_s_folder_is_not_mixed_with_this_one(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps({"rounds": 3, "patients": 24, "seed": 0}))
    (tmp_path / "kept.txt").write_text("x")
    with pytest.raises(UserError, match="--fresh") as caught:
        _prepare(Layout(tmp_path), {"rounds": 4, "patients": 24, "seed": 0}, fresh=False)
    assert caught.value.code == "demo-other-options"
    assert (tmp_path / "kept.txt").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_other_things_is_never_emptied(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError) as caught:
        _prepare(Layout(tmp_path), {"rounds": 4, "patients": 24, "seed": 0}, fresh=fresh)
    assert caught.value.code == "demo-folder-in-use"
    assert (tmp_path / "thesis.txt").exists()
