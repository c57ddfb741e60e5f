"""What the tests of the federation share: small hospitals, a consortium's files, its processes, sites in process."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from momkd_fl.cli.consortium import Processes, free_port, provision, write_federation, write_site
from momkd_fl.config.base import load
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.federation.client import make_client_app
from momkd_fl.federation.egress import Gate, simulation_gate
from momkd_fl.federation.local import LocalGrid
from momkd_fl.federation.participant import Participant
from momkd_fl.federation.simulate import simulation_keys
from momkd_fl.federation.site_data import cohort_loader
from momkd_fl.federation.sum_keys import SumKeys
from momkd_fl.synth.cohort import SynthSite, write_consortium

DIM = 16
HOSPITALS = (
    SynthSite("ash", 26),
    SynthSite("birch", 24, genomics=False),
    SynthSite("cedar", 24),
    SynthSite("holly", 24, genomics=False, role="evaluate"),
)
RUN: dict[str, Any] = {
    "name": "small",
    "task": "PR",
    "encoder": {"name": f"synthetic-{DIM}", "dim": DIM},
    "seed": 5,
    "model": {"hidden_dim": 16, "memory_dim": 8},
    "memory": {"slots": 2, "init_iterations": 2, "anchor_iterations": 2},
    "training": {"patients_per_step": 8, "learning_rate": 1e-3, "precision": "fp32"},
    "genes": {"panel": "pam50"},
}
PATIENCE_S = 120.0
"""How long a test waits for another process: far longer than it needs on a machine that does nothing else."""


@pytest.fixture(scope="module")
def task() -> Iterator[None]:
    """Flower builds messages only in a process that says which task it runs; put back afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_task_id", "_run_id", "_node_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small hospitals' own files, one folder each."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_consortium(folder, HOSPITALS, seed=11, dim=DIM, mean_patches=24, tasks=("PR",))
    return folder


@dataclasses.dataclass
class Consortium:
    """The files of a consortium under ``root``: keys, the coordinator's file and each site's."""

    root: Path
    hospitals: Path
    members: dict[str, str]
    port: int
    run: dict[str, Any]

    @property
    def federation(self) -> Path:
        return self.root / "federation.yaml"

    @property
    def output(self) -> Path:
        return self.root / "server"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    def site_file(self, site: str) -> Path:
        return self.root / "sites" / f"{site}.yaml"

    def state(self, site: str) -> Path:
        return self.root / "state" / site

    def write(self, **run: Any) -> None:
        """Write the coordinator's file; ``run`` replaces whole sections."""
        self.run |= run
        write_federation(self.federation, self.run, self.members, self.keys, self.port)
        raw = yaml.safe_load(self.federation.read_text("utf-8"))
        for site, member in raw["members"].items():
            member["config"] = str(self.site_file(site))
        self.federation.write_text(yaml.safe_dump(raw), "utf-8")

    def edit_site(self, site: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a site's file."""
        raw = yaml.safe_load(self.site_file(site).read_text("utf-8"))
        change(raw)
        self.site_file(site).write_text(yaml.safe_dump(raw), "utf-8")

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.output / "results.json").read_text("utf-8"))
        return found

    def config(self) -> FederationConfig:
        return load(self.federation, FederationConfig)


NewConsortium = Callable[..., Consortium]


@pytest.fixture(scope="session")
def new_consortium(hospitals: Path) -> NewConsortium:
    """``(root, members, sources=..., **sections)``: a consortium's files on a free port of loopback."""

    def make(
        root: Path, members: dict[str, str], *, sources: dict[str, Path] | None = None, **sections: Any
    ) -> Consortium:
        port = free_port()
        run = {**RUN, "output_dir": str(root / "server"), **sections}
        run.setdefault("telemetry", {"log": str(root / "server" / "log.jsonl")})
        made = Consortium(root, hospitals, members, port, run)
        provision(made.keys, "small consortium", list(members))
        for site in members:
            source = (sources or {}).get(site, hospitals / site / "site.yaml")
            write_site(made.site_file(site), source, made.keys, port, made.state(site))
        made.write()
        return made

    return make


@dataclasses.dataclass
class Party:
    """Processes of one consortium and what they say."""

    consortium: Consortium
    processes: Processes

    def start_server(self, *options: str) -> subprocess.Popen[bytes]:
        return self.processes.start_server(self.consortium.federation, *options)

    def start_site(self, site: str) -> subprocess.Popen[bytes]:
        return self.processes.start_site(site, self.consortium.site_file(site))

    def said(self, name: str) -> str:
        """Everything the server or a site has printed so far, over all its starts."""
        path = self.processes.logs / f"{name}.log"
        return path.read_text("utf-8") if path.exists() else ""

    def wait_said(self, name: str, text: str, times: int = 1) -> None:
        """Until ``name`` has said ``text`` that often; fails when its process ends first."""
        until(lambda: self.said(name).count(text) >= times, f"{name} says {text!r}", lambda: self._alive(name, text))

    def _alive(self, name: str, text: str) -> None:
        process = self.processes.running[name]
        if process.poll() is not None and text not in self.said(name):
            pytest.fail(f"{name} ended with status {process.returncode} before it said {text!r}:\n{self.said(name)}")

    def end(self, name: str, timeout_s: float = PATIENCE_S) -> int:
        """Exit status of ``name`` once it has ended by itself."""
        try:
            return self.processes.running[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} did not end; it said:\n{self.said(name)}\nthe server:\n{self.said('server')}")

    def kill(self, name: str) -> None:
        """``kill -9``."""
        process = self.processes.running[name]
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL


def until(
    holds: Callable[[], bool], what: str, check: Callable[[], None] = lambda: None, timeout_s: float = PATIENCE_S
) -> None:
    """Wait until ``holds``; ``check`` may fail earlier."""
    end = time.monotonic() + timeout_s
    while not holds():
        check()
        if time.monotonic() > end:
            pytest.fail(f"waited {timeout_s:.0f} s in vain until {what}")
        time.sleep(0.01)


@pytest.fixture(scope="module")
def party() -> Iterator[Callable[[Consortium], Party]]:
    """Opens the processes of a consortium; whatever still runs is ended with the module."""
    opened: list[Processes] = []

    def start(consortium: Consortium) -> Party:
        processes = Processes(consortium.root / "logs", quiet=True)
        processes.__enter__()
        opened.append(processes)
        return Party(consortium, processes)

    yield start
    for processes in opened:
        processes.__exit__()


class UnreliableGrid(LocalGrid):
    """Sites in this process, some of which are not there.

    ``present(round, site)`` says whether a site is online while the coordinator prepares that round, and
    ``answers(kind, round, site)`` whether its reply arrives before the deadline. Every message that was delivered
    is kept in ``delivered``, what it held in ``contents``, and what came back in ``replies``.
    """

    def __init__(self, apps: dict[str, Any]) -> None:
        super().__init__(apps)
        self.round = 0
        self.present: Callable[[int, str], bool] = lambda round, site: True
        self.answers: Callable[[str, int, str], bool] = lambda kind, round, site: True
        self.delivered: list[tuple[str, int, str]] = []
        self.contents: list[RecordDict] = []
        self.replies: list[tuple[str, str, Message]] = []

    def online(self) -> set[str]:
        return {site for site in super().online() if self.present(self.round + 1, site)}

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            site = self.sites[message.metadata.dst_node_id]
            kind, number = str(message.content["envelope"]["kind"]), int(message.metadata.group_id)
            if kind == "train":
                self.round = number
            if not self.answers(kind, number, site):
                continue
            self.delivered.append((kind, number, site))
            self.contents.append(message.content)
            for reply in super().send_and_receive([message]):
                self.replies.append((kind, site, reply))
                yield reply


@dataclasses.dataclass
class InProcess:
    """A consortium's participants in this process."""

    config: FederationConfig
    participants: dict[str, Participant]
    said: dict[str, list[str]]
    keys: dict[str, SumKeys]

    def grid(self, gates: dict[str, Gate] | None = None) -> UnreliableGrid:
        """The sites behind their own gates, or those of a simulation."""
        gates = {site: simulation_gate(site) for site in self.participants} | (gates or {})
        apps = {
            site: (
                make_client_app(participant, participant.say, gate=gates[site], keys=self.keys[site]),
                Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={}),
            )
            for site, participant in self.participants.items()
        }
        return UnreliableGrid(apps)


@pytest.fixture(scope="session")
def in_process(tmp_path_factory: pytest.TempPathFactory, hospitals: Path) -> Callable[..., InProcess]:
    """``(members, root=..., **sections)``: a configuration and its participants, without keys or network."""
    torch.set_num_threads(1)

    def make(
        members: dict[str, str], root: Path | None = None, hospitals: Path = hospitals, **sections: Any
    ) -> InProcess:
        root = tmp_path_factory.mktemp("in_process") if root is None else root
        raw = {**RUN, "output_dir": str(root / "server"), **sections}
        raw["members"] = {site: {"role": role} for site, role in members.items()}
        config = FederationConfig.model_validate(raw)
        said: dict[str, list[str]] = {site: [] for site in members}
        participants = {}
        for site, role in members.items():
            own = load(hospitals / site / "site.yaml", SiteConfig, {"role": role})
            say = said[site].append
            participants[site] = Participant(
                site, own.role, cohort_loader(own, say), root / "state" / site, torch.device("cpu"), say
            )
        return InProcess(config, participants, said, simulation_keys([*members]))

    return make


@pytest.fixture
def stop() -> threading.Event:
    """The event that ends a run."""
    return threading.Event()
