"""A whole run as real processes over TLS, then a search for what must not be in anything that it left behind.

Searched for: patients' ids, runs of gene values, runs of patch embeddings, as text and as the bytes of float16, float32
and float64. Searched in: what sites sent before it was encrypted, logs and screens, /metrics of all processes, what the
coordinator keeps (checkpoint, heads, report), what a site keeps of a run (model, plan), and its books. Predictions
hold ids and stay at the site. Controls: each place with one of each put in, and a run in which one site leaks.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.audit_site import BASE, DIM
from benchmarks.figures import Figure, at_least, at_most
from momkd_fl.cli.consortium import Processes, free_port, provision, write_federation, write_site
from momkd_fl.config.base import load
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.cohort import Cohort
from momkd_fl.federation.site_data import cohort_loader
from momkd_fl.synth.cohort import SynthSite, write_consortium

ROOT = Path(__file__).resolve().parent.parent
SITES = (SynthSite("ash", 26), SynthSite("cedar", 24), SynthSite("holly", 24, genomics=False, role="evaluate"))
RUN_LENGTH = 4
"""Neighbouring values searched for together: one alone of them could be there by chance."""
PLACES = ("wire", "logs", "metrics", "coordinator", "site", "books")
PRIVACY: dict[str, Any] = {"memory": "local", "epsilon": 8.0, "releases": 1, "site_patients": 2000}
LIMIT_S = 600.0
Material = Mapping[str, list[bytes]]
"""What was found in each place."""


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
    """A private run, a plain one unless ``quick``, and one with a site that leaks, which must be found out."""
    runs = {"private": PRIVACY} if quick else {"private": PRIVACY, "plain": {}}
    made: list[Figure] = []
    for name, privacy in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            material, secrets = run_processes(Path(folder), privacy)
        size = sum(len(each) for pieces in material.values() for each in pieces)
        print(f"{name}: searched {size:,} bytes", file=sys.stderr, flush=True)
        for place in PLACES:
            found = sum(sum(each.found_in(material[place]).values()) for each in secrets)
            made.append(at_most(f"audit.leaks.{name}.{place}", found, "patterns found", 0))
    for place in PLACES:
        planted = [secret for kind in secrets[0].patterns.values() for secret in kind[:1]]
        hit = secrets[0].found_in([*material[place], *planted])
        made.append(at_least(f"audit.leaks.control.{place}", float(sum(map(bool, hit.values()))), "kinds found", 3))
    with tempfile.TemporaryDirectory() as folder:
        material, secrets = run_processes(Path(folder), PRIVACY, leaking="ash")
    hit = secrets[0].found_in(material["wire"])
    made.append(at_least("audit.leaks.control.leaking_site", float(sum(map(bool, hit.values()))), "kinds found", 3))
    return made


def run_processes(folder: Path, privacy: dict[str, Any], leaking: str = "") -> tuple[Material, list[Secrets]]:
    """One run of a server and its sites, each a process; what they left, by place, and each site's secrets."""
    files = write_consortium(folder / "data", SITES, seed=11, dim=DIM, mean_patches=24, tasks=("PR",))
    keys, port, output = folder / "keys", free_port(), folder / "server"
    ports = {name: free_port() for name in ("server", *files)}
    provision(keys, "audit", list(files))
    run = {name: value for name, value in BASE.items() if name != "members"}
    run |= {"privacy": privacy, "output_dir": str(output), "rounds": {"count": 2, "quorum": 2, "gather_s": 120}}
    run["telemetry"] = {"log": str(output / "log.jsonl"), "metrics_port": ports["server"]}
    federation = folder / "federation.yaml"
    write_federation(federation, run, {site.name: site.role for site in SITES}, keys, port)
    metrics: set[bytes] = set()
    with Processes(folder / "logs", quiet=True) as processes:
        processes.start_server(federation)
        for site in SITES:
            own, state = folder / "sites" / f"{site.name}.yaml", folder / "state" / site.name
            told = {"log": str(state / "log.jsonl"), "metrics_port": ports[site.name]}
            write_site(own, files[site.name], keys, port, state, telemetry=told, role=site.role)
            options = ["--leak"] if site.name == leaking else []
            processes.running[site.name] = _start_tapped(folder, site.name, own, options)
        _watch(processes, ports.values(), metrics, folder)
    return _material(folder, metrics), [_secrets(files[site.name], federation, site.role) for site in SITES]


def _start_tapped(folder: Path, site: str, own: Path, options: list[str]) -> subprocess.Popen[bytes]:
    """``momkd-client`` with a tap on its wire."""
    command = [sys.executable, "-m", "benchmarks.tapped_site", str(own), str(folder / f"{site}.wire"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "logs" / f"{site}.log").open("ab") as screen:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=screen, stderr=screen, env=environment)


def _watch(processes: Processes, ports: Iterable[int], metrics: set[bytes], folder: Path) -> None:
    """Read every /metrics until all processes have ended well (raises RuntimeError with their words otherwise)."""
    end = time.monotonic() + LIMIT_S
    while any(process.poll() is None for process in processes.running.values()):
        for port in ports:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    metrics.add(answer.read())
            except OSError:  # not up yet, or ended
                pass
        failed = any(process.poll() not in (None, 0) for process in processes.running.values())
        if failed or time.monotonic() > end:
            break
        time.sleep(0.2)
    status = {name: process.poll() for name, process in processes.running.items()}
    if any(status.values()) or None in status.values():
        said = "\n".join(path.read_text("utf-8") for path in sorted((folder / "logs").glob("*.log")))
        raise RuntimeError(f"the run did not end well: {status}\n{said}")


def _material(folder: Path, metrics: set[bytes]) -> Material:
    def read(*patterns: str) -> list[bytes]:
        return [path.read_bytes() for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]

    found = {
        "wire": read("*.wire"),
        "logs": read("logs/*.log", "state/*/log.jsonl", "server/log.jsonl"),
        "metrics": sorted(metrics),
        "coordinator": read("server/**/*"),
        "site": read("state/**/*.safetensors", "state/**/*.json"),
        "books": read("keys/*/egress/*"),
    }
    if empty := [place for place in PLACES if not any(found[place])]:
        raise RuntimeError(f"nothing was there to search in: {', '.join(empty)}")
    return found


def _secrets(file: Path, federation: Path, role: str) -> Secrets:
    """Of the cohort as the site reads it."""
    own = load(file, SiteConfig, {"role": role})
    cohort, _ = cohort_loader(own, _unsaid)(load(federation, FederationConfig))
    return Secrets.of(cohort)


def _bytes_of(values: NDArray[Any]) -> list[bytes]:
    """The first values of a vector as floats of each width and as text."""
    first = np.asarray(values[:RUN_LENGTH])
    found = [first.astype(kind).tobytes() for kind in (np.float16, np.float32, np.float64)]
    texts = [[str(float(value)) for value in first], [str(np.float32(value)) for value in first]]
    return [*found, *(between.join(text).encode() for text in texts for between in (", ", ","))]


def _unsaid(sentence: str) -> None:
    """Sites' own screens are their own."""
