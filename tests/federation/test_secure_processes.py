"""Secure sums over processes and mutual TLS, with a site killed (kill -9) at each of the five steps."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from momkd_fl.federation import state as states
from momkd_fl.federation.messages import SUM_STEPS
from momkd_fl.synth.cohort import SynthSite, write_consortium

pytestmark = pytest.mark.process

STEPS = [kind.name for kind in SUM_STEPS]
SITES = (SynthSite("ash", 24), SynthSite("birch", 24), SynthSite("cedar", 24), SynthSite("fir", 24))


@dataclass
class Killings:
    """What had been seen when a site had been killed at a step and the round was over."""

    status: dict[str, int]
    rounds: dict[str, dict[str, str]]
    said: str
    site_said: str
    ended: int
    ledger: str


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, new_consortium: Any, party: Any) -> Killings:
    """One run: fir is killed at a step, started again to be killed at the next, and so on."""
    root = tmp_path_factory.mktemp("killed")
    folder = write_consortium(root / "hospitals", SITES, seed=3, dim=16, mean_patches=16, tasks=("PR",))
    del folder
    members = dict.fromkeys((site.name for site in SITES), "train")
    consortium = new_consortium(
        root,
        members,
        sources={site: root / "hospitals" / site / "site.yaml" for site in members},
        rounds={"count": 500, "quorum": 3, "deadline_s": 100, "gather_s": 100},
        aggregation={"kind": "secagg", "step_deadline_s": 60},
        memory={"slots": 2, "source": "random", "genomics": False},
    )
    one = party(consortium)
    one.start_server()
    for site in ("ash", "birch", "cedar"):
        one.start_site(site)
    status, rounds = {}, {}
    for step in STEPS:
        started = ("tests.federation.killed_client", step, "--site", str(consortium.site_file("fir")))
        process = one.processes._start("fir", *started, to_log=True)
        status[step] = process.wait(100)
        one.start_site("fir")  # whoever comes back has forgotten the sum, and the step need not wait for its deadline
        one.wait_said("server", f"fir dropped out at step '{step}'")
        rounds[step] = settled(one, consortium.output)
        fir = one.processes.running["fir"]
        fir.send_signal(signal.SIGTERM)
        fir.wait(30)
    one.start_site("fir")
    one.wait_said("fir", "Round")
    server = one.processes.running["server"]
    server.send_signal(signal.SIGTERM)
    ended = one.end("server", 60)
    ledger = Path(one.consortium.keys / "ash" / "egress" / "ledger.jsonl").read_text("utf-8")
    return Killings(status, rounds, one.said("server"), one.said("fir"), ended, ledger)


def settled(one: Any, output: Path) -> dict[str, str]:
    """States of the newest round once one more than now is in the checkpoint."""
    from tests.federation.conftest import until

    path = output / "checkpoint.safetensors"
    before = states.load(path).round
    until(lambda: states.load(path).round > before, "another round is over")
    return dict(states.load(path).history[-1].states)


@pytest.mark.parametrize("step", STEPS)
def test_a_site_killed_at_a_step_drops_out_and_the_run_goes_on(killed: Killings, step: str) -> None:
    assert killed.status[step] == -signal.SIGKILL
    assert f"fir dropped out at step '{step}'" in killed.said
    states_then = killed.rounds[step]
    assert all(states_then[site] == "trained" for site in ("ash", "birch", "cedar"))


def test_nobody_fails_and_every_masked_answer_is_in_the_ledger(killed: Killings) -> None:
    assert killed.ended == 130, killed.said
    assert "Traceback" not in killed.said + killed.site_said
    assert re.search(r'"kind":\s*"mask-train"', killed.ledger)
    assert not re.search(r'"kind":\s*"train"', killed.ledger)
