"""A whole run, then a search for what must not be in anything that left a site or that the coordinator keeps.

Searched for: patients' ids, runs of gene values, runs of patch embeddings, as text and as the bytes of float16, float32
and float64. The control plants one of each in the same material and must find it.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray

from benchmarks.audit_site import BASE, DIM
from benchmarks.figures import Figure, at_least, at_most
from momkd_fl.config.base import load
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.cohort import Cohort
from momkd_fl.federation.client import make_client_app
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.egress import simulation_gate
from momkd_fl.federation.local import LocalGrid
from momkd_fl.federation.outcome import Circumstances, results_of, write_outcome
from momkd_fl.federation.participant import Participant
from momkd_fl.federation.site_data import cohort_loader
from momkd_fl.federation.watch import open_watch
from momkd_fl.synth.cohort import SynthSite, write_consortium

SITES = (SynthSite("ash", 26), SynthSite("cedar", 24), SynthSite("holly", 24, genomics=False, role="evaluate"))
RUN_LENGTH = 4
"""Neighbouring values searched for together: one alone of them could be there by chance."""


class Tapped(LocalGrid):
    """A grid whose wire is listened to: everything that sites answered."""

    def __init__(self, apps: Mapping[str, Any]) -> None:
        super().__init__(apps)
        self.wire: list[bytes] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """As the grid's, noting every reply."""
        for reply in super().send_and_receive(messages, timeout=timeout):
            if reply.has_error():
                self.wire.append(str(reply.error).encode())
            else:
                self.wire += [
                    array.data for record in reply.content.array_records.values() for array in record.values()
                ]
                self.wire += [str(dict(record)).encode() for record in reply.content.config_records.values()]
            yield reply


@dataclasses.dataclass(frozen=True)
class Secrets:
    """Byte patterns of one site, by what they are."""

    patterns: dict[str, list[bytes]]

    @classmethod
    def of(cls, cohort: Cohort) -> Secrets:
        """Ids of all patients, the genes of those who have some, and a few patches of each."""
        genes = [patient.genes for patient in cohort.patients if patient.genes is not None]
        patches = [cohort.bag(patient).features[[0, -1]] for patient in cohort.patients]
        return cls(
            {
                "ids": [patient.id.encode() for patient in cohort.patients],
                "genes": [pattern for each in genes for pattern in _bytes_of(each)],
                "patches": [pattern for each in patches for row in each for pattern in _bytes_of(row)],
            }
        )

    def found_in(self, material: Iterable[bytes]) -> dict[str, int]:
        """How many patterns of each kind are in the material."""
        whole = b"\n".join(material)
        return {kind: sum(pattern in whole for pattern in patterns) for kind, patterns in self.patterns.items()}


def figures(quick: bool) -> list[Figure]:
    """A private run, and a plain one unless ``quick``: nothing may be found in either, all that was planted must be."""
    privacy = {"memory": "local", "epsilon": 8.0, "releases": 1, "site_patients": 2000}
    made: list[Figure] = []
    runs: dict[str, dict[str, Any]] = {"private": privacy} if quick else {"plain": {}, "private": privacy}
    for name, section in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            material, secrets = _run(Path(folder), section)
        found = [each.found_in(material) for each in secrets]
        planted = [pattern for kind in secrets[0].patterns.values() for pattern in kind[:1]]
        control = secrets[0].found_in([*material, *planted])
        for kind in ("ids", "genes", "patches"):
            made.append(at_most(f"audit.leaks.{name}.{kind}", sum(each[kind] for each in found), "patterns found", 0))
        made.append(
            at_least(f"audit.leaks.{name}.control.planted", float(sum(map(bool, control.values()))), "kinds found", 3)
        )
    return made


def _run(folder: Path, privacy: dict[str, Any]) -> tuple[list[bytes], list[Secrets]]:
    """All that left the sites of one run, all that the coordinator wrote, and what must be in neither."""
    files = write_consortium(folder / "data", SITES, seed=11, dim=DIM, mean_patches=24, tasks=("PR",))
    raw = {**BASE, "privacy": privacy, "output_dir": str(folder / "server")}
    raw |= {"members": {site.name: {"role": site.role} for site in SITES}, "rounds": {"count": 2, "quorum": 2}}
    raw["telemetry"] = {"log": str(folder / "server" / "log.jsonl")}
    config = FederationConfig.model_validate(raw)
    participants = {}
    for site in SITES:
        own = load(files[site.name], SiteConfig, {"role": site.role})
        participants[site.name] = Participant(
            site.name, own.role, cohort_loader(own, _unsaid), folder / "sites" / site.name, torch.device("cpu"), _unsaid
        )
    apps = {
        name: (make_client_app(each, _unsaid, gate=simulation_gate(name)), _context())
        for name, each in participants.items()
    }
    grid = Tapped(apps)
    watch = open_watch(config, plain=True)
    with watch.progress, watch.log, watch.metrics:
        outcome = Coordinator(config, grid, watch, threading.Event(), dict).run()
    assert outcome is not None
    write_outcome(results_of(config, outcome, Circumstances("simulation", 1.0, 1.0)), config.output_dir)
    written = [path.read_bytes() for path in sorted(config.output_dir.rglob("*")) if path.is_file()]
    cohorts = [each._work.cohort for each in participants.values() if each._work is not None]
    return [*grid.wire, *written], [Secrets.of(cohort) for cohort in cohorts]


def _context() -> Context:
    return Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})


def _bytes_of(values: NDArray[Any]) -> list[bytes]:
    """The first values of a vector as floats of each width and as text."""
    first = np.asarray(values[:RUN_LENGTH])
    found = [first.astype(kind).tobytes() for kind in (np.float16, np.float32, np.float64)]
    return [*found, ", ".join(str(float(value)) for value in first).encode()]


def _unsaid(sentence: str) -> None:
    """Sites' own screens are their own."""
