"""``momkd demo``: a whole consortium on this machine, over mutual TLS, ending in a report."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from momkd_fl.cli.consortium import Processes, free_port, provision, write_federation, write_site
from momkd_fl.errors import UserError
from momkd_fl.synth.cohort import DEMO_SITES, SynthSite, write_consortium

TASK = "PR"
DIM = 256
SETTINGS: dict[str, Any] = {
    "model": {"hidden_dim": 64, "memory_dim": 32, "neighbours": 4, "dropout": 0.25},
    "memory": {"slots": 4},
    "training": {"patients_per_step": 8, "learning_rate": 4e-3, "max_patches": 32, "precision": "fp32"},
    "genes": {"panel": "pam50"},
}
ROUNDS = 15
COMPILE = (
    "from momkd_fl.training.kernels import compile_kernels; "
    f"compile_kernels('momkd', {SETTINGS['training']['precision']!r})"
)
"""Run once beside the writing of data: nine processes that start together on a new machine would each compile."""


@dataclass(frozen=True)
class Layout:
    """Where the demo keeps what."""

    out: Path

    @property
    def data(self) -> Path:
        """The hospitals' own files."""
        return self.out / "data"

    @property
    def keys(self) -> Path:
        """Keys and certificates."""
        return self.out / "keys"

    @property
    def server(self) -> Path:
        """The coordinator's checkpoint and its own report."""
        return self.out / "server"

    @property
    def federation(self) -> Path:
        """The coordinator's file."""
        return self.out / "federation.yaml"

    def site_file(self, site: str) -> Path:
        """A site's file."""
        return self.out / "sites" / f"{site}.yaml"

    def state(self, site: str) -> Path:
        """A site's state."""
        return self.out / "sites" / site


def run_demo(
    out: Path,
    stop: threading.Event,
    *,
    rounds: int | None,
    patients: int | None,
    seed: int,
    fresh: bool,
    plain: bool | None,
) -> Path | None:
    """Set up, run and compare; returns the page's path, or None when it was stopped (the same command goes on)."""
    started = time.monotonic()
    layout = Layout(out)
    compiling = subprocess.Popen([sys.executable, "-c", COMPILE], stderr=subprocess.DEVNULL)
    asked = {"rounds": rounds or ROUNDS, "patients": patients, "seed": seed}
    try:
        sites = _prepare(layout, asked, fresh)
        if compiling.poll() is None:
            _say("Compiling the fast paths for this processor (the first time only).")
        compiling.wait()  # where it fails, the sites compile for themselves
    finally:
        compiling.kill()
    if stop.is_set():
        return None
    prepared = time.monotonic()
    with Processes(out / "logs") as processes:
        if not _finished(layout):
            _run(processes, layout, sites, plain, stop)
        if stop.is_set():
            return None
        federated = time.monotonic()
        _say("The federation has finished. Now the models to compare it with.")
        page = _compare(processes, layout, stop, started, prepared, federated)
    return page


def _prepare(layout: Layout, asked: dict[str, Any], fresh: bool) -> list[SynthSite]:
    """Write data, keys and configurations; an earlier demo with the same options is gone on with."""
    marker = layout.out / "demo.json"
    if fresh and marker.exists():
        shutil.rmtree(layout.out)
    if marker.exists() and json.loads(marker.read_text("utf-8")) != asked:
        raise UserError(
            "demo-other-options",
            f"{layout.out}: an earlier demo with other options is kept here. Add --fresh to replace it, or choose "
            "another folder with --out.",
        )
    if layout.out.exists() and any(layout.out.iterdir()) and not marker.exists():
        raise UserError(
            "demo-folder-in-use", f"{layout.out}: the folder is not empty and holds no demo. Choose another."
        )
    layout.out.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(asked), "utf-8")
    sites = _scaled(asked["patients"])
    names = [site.name for site in sites]
    if not all((layout.data / name / "site.yaml").exists() for name in names):
        _say(f"Writing {len(sites)} synthetic hospitals to {layout.data}.")
        shutil.rmtree(layout.data, ignore_errors=True)
        write_consortium(layout.data, sites, seed=asked["seed"], dim=DIM, tasks=(TASK,))
    provision(layout.keys, "demo consortium", names)
    port = free_port()
    for site in sites:
        source = layout.data / site.name / "site.yaml"
        state = layout.state(site.name)
        write_site(layout.site_file(site.name), source, layout.keys, port, state, runs=("demo",), tasks=(TASK,))
    trainers = sum(site.role == "train" for site in sites)
    run = {
        "name": "demo",
        "task": TASK,
        "encoder": {"name": f"synthetic-{DIM}", "dim": DIM},
        "output_dir": str(layout.server),
        "seed": asked["seed"],
        "rounds": {"count": asked["rounds"], "quorum": max(2, trainers - 2), "deadline_s": 120, "gather_s": 120},
        "telemetry": {"log": str(layout.server / "log.jsonl"), "metrics_port": free_port()},
        **SETTINGS,
    }
    write_federation(layout.federation, run, {site.name: site.role for site in sites}, layout.keys, port)
    return sites


def _scaled(patients: int | None) -> list[SynthSite]:
    if patients is None:
        return list(DEMO_SITES)
    largest = max(site.patients for site in DEMO_SITES)
    return [
        dataclasses.replace(site, patients=max(24, round(site.patients * patients / largest))) for site in DEMO_SITES
    ]


def _finished(layout: Layout) -> bool:
    return (layout.server / "results.json").exists()


def _run(
    processes: Processes, layout: Layout, sites: list[SynthSite], plain: bool | None, stop: threading.Event
) -> None:
    """Start the server and one client per site, and wait for all of them."""
    _say(f"Starting one server and {len(sites)} sites as processes, over mutual TLS.")
    server = processes.start_server(layout.federation, *(["--plain"] if plain else []))
    for site in sites:
        processes.start_site(site.name, layout.site_file(site.name))
    while server.poll() is None and not stop.wait(0.1):
        for name, process in processes.running.items():
            if name != "server" and process.poll() not in (None, 0):
                raise UserError("demo-site-failed", f"Site {name} ended early. See {processes.logs / f'{name}.log'}.")
    if stop.is_set():
        return
    if server.returncode != 0 or not _finished(layout):
        raise UserError("demo-server-failed", "The server ended without a result; its last lines above say why.")
    for name, process in processes.running.items():
        if process.wait(timeout=60) != 0:
            raise UserError("demo-site-failed", f"Site {name} failed. See {processes.logs / f'{name}.log'}.")


def _compare(
    processes: Processes, layout: Layout, stop: threading.Event, started: float, prepared: float, federated: float
) -> Path | None:
    """Train the comparators, compare on the held-out patients' own predictions, and write the page."""
    from momkd_fl.cli.comparison import compare_and_report  # imports torch

    return compare_and_report(
        federation=layout.federation,
        site_files={path.stem: path for path in sorted((layout.out / "sites").glob("*.yaml"))},
        states_dir=layout.out / "sites",
        comparators=layout.out / "comparators",
        out=layout.out,
        stop=stop,
        say=_say,
        peak_rss_mb=lambda: processes.peak_rss_mb,
        started=started,
        phases={"prepare": prepared - started, "federated": federated - prepared},
    )


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
