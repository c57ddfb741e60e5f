"""A consortium on loopback: keys, files and one real process per party."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import psutil
import yaml

from momkd_fl.cli.provision_root import make_trial
from momkd_fl.config.policy import ANY, SmallNumbers, policy_text
from momkd_fl.config.site import Egress
from momkd_fl.security.allowlist import ALLOW_LIST_FILE
from momkd_fl.security.charter import CHARTER_FILE
from momkd_fl.security.detached import sign_file
from momkd_fl.security.pki import certificate_sha256
from momkd_fl.security.signing import load_signing_key

HOST = "127.0.0.1"
SYNTHETIC_DAYS = 365
"""How long the contract of a synthetic hospital holds."""
STOP_S = 10.0
_PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """A TCP port on loopback that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def provision(keys: Path, name: str, sites: list[str]) -> None:
    """Everybody's keys and certificates, charter and allow-list under ``keys``; kept where they already are."""
    if (keys / "root" / "ca.crt").exists():
        return
    make_trial(keys, name, ["localhost", HOST], sites)


def write_site(
    path: Path,
    source: Path,
    keys: Path,
    port: int,
    state: Path,
    *,
    runs: tuple[str, ...] = (ANY,),
    tasks: tuple[str, ...] = (ANY,),
    **sections: Any,
) -> None:
    """The site's file for ``momkd-client``: the data section of ``source`` plus connection, certificates and state.

    With it come a signed contract that hides nothing, since these patients are synthetic, and the gate's books.
    """
    raw = yaml.safe_load(source.read_text("utf-8"))
    raw["data"] = _absolute(raw["data"], source.parent)
    site = raw["site"]
    raw |= {
        "state_dir": str(state),
        "threads": 1,
        "connection": {"url": f"https://{HOST}:{port}", "poll_max_s": 0.25},
        "tls": _tls(keys, site),
        "consortium": _consortium(keys, site),
        "telemetry": {"log": str(state / "log.jsonl")},
        "egress": _egress(keys, site, raw.get("role", "train"), runs, tasks),
    }
    _write(path, raw | sections)


def _egress(keys: Path, site: str, role: str, runs: tuple[str, ...], tasks: tuple[str, ...]) -> dict[str, str]:
    """The section ``egress`` with what it names, made where it is not there yet."""
    from momkd_fl.federation.books import Books  # imports Flower
    from momkd_fl.federation.contract import contract_for

    folder = keys / site / "egress"
    found = {
        "policy": str(folder / "policy.yaml"),
        "signing_key": str(keys / site / f"{site}.sign.key"),
        "ledger": str(folder / "ledger.jsonl"),
        "odometer": str(folder / "odometer.jsonl"),
        "publications": str(folder / "publications.json"),
    }
    egress = Egress.model_validate(found)
    if not egress.policy.exists():
        certificate = keys / "server" / "server.crt"
        policy = contract_for(
            site,
            role,
            coordinator_sha256=certificate_sha256(certificate),
            runs=list(runs),
            tasks=list(tasks),
            expires=datetime.now(UTC).date() + timedelta(days=SYNTHETIC_DAYS),
            small_numbers=SmallNumbers(minimum_per_class=1, minimum_per_slot=1, scores="exact"),
        )
        key = load_signing_key(egress.signing_key)
        folder.mkdir(exist_ok=True)
        Books.create(egress, key, site, policy.budget)
        egress.policy.write_text(policy_text(policy), "utf-8")
        sign_file(egress.policy, key)
    return found


def write_federation(path: Path, run: Mapping[str, Any], sites: Mapping[str, str], keys: Path, port: int) -> None:
    """The coordinator's file: ``run`` (name, task, encoder, ...) plus members by role, address and certificates."""
    members = {site: {"certificate": str(keys / site / f"{site}.crt"), "role": role} for site, role in sites.items()}
    raw = dict(run) | {"members": members, "listen": {"host": HOST, "port": port}, "tls": _tls(keys, "server")}
    raw |= {"consortium": _consortium(keys, "server"), "signing_key": str(keys / "server" / "server.sign.key")}
    _write(path, raw)


def _tls(keys: Path, name: str) -> dict[str, str]:
    return {
        "ca": str(keys / "root" / "ca.crt"),
        "certificate": str(keys / name / f"{name}.crt"),
        "private_key": str(keys / name / f"{name}.key"),
    }


def _consortium(keys: Path, name: str) -> dict[str, str]:
    return {
        "charter": str(keys / CHARTER_FILE),
        "allow_list": str(keys / ALLOW_LIST_FILE),
        "seen": str(keys / name / "allow-list.seen.json"),
    }


def _absolute(data: dict[str, Any], base: Path) -> dict[str, Any]:
    data = dict(data, features=[str((base / folder).resolve()) for folder in data["features"]])
    for section in ("labels", "slides", "genomics"):
        if section in data:
            data[section] = dict(data[section], path=str((base / data[section]["path"]).resolve()))
    return data


def _write(path: Path, raw: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(raw), sort_keys=False), "utf-8")


@dataclass
class Processes:
    """The processes of a consortium; leaving the context ends all of them, however it is left.

    Each child dies with this process, even if this process is killed (Linux). ``logs`` receives what the sites
    print; the server prints to this terminal unless ``quiet``.
    """

    logs: Path
    quiet: bool = False
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    peak_rss_mb: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)
    _files: list[IO[bytes]] = field(default_factory=list)

    def start_server(self, config: Path, *options: str) -> subprocess.Popen[bytes]:
        """Start ``momkd-server``."""
        return self._start("server", "momkd_fl.cli.server", "--config", str(config), *options, to_log=self.quiet)

    def start_site(self, site: str, config: Path) -> subprocess.Popen[bytes]:
        """Start ``momkd-client`` for one site."""
        return self._start(site, "momkd_fl.cli.client", "--site", str(config), to_log=True)

    def _start(self, name: str, module: str, *arguments: str, to_log: bool) -> subprocess.Popen[bytes]:
        output: IO[bytes] | None = None
        if to_log:
            self.logs.mkdir(parents=True, exist_ok=True)
            output = (self.logs / f"{name}.log").open("ab")
            self._files.append(output)
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches this process only, which then ends its children in order
            preexec_fn=_die_with_parent,
        )
        self.running[name] = process
        return process

    def __enter__(self) -> Processes:
        threading.Thread(target=self._sample_memory, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for process in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_S
        for process in self.running.values():
            try:
                process.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for file in self._files:
            file.close()

    def _sample_memory(self) -> None:
        """Peak of the resident memory of this process and all children together."""
        while not self._ended.wait(0.5):
            total = 0
            for pid in [os.getpid(), *(process.pid for process in self.running.values())]:
                with contextlib.suppress(psutil.Error):
                    total += psutil.Process(pid).memory_info().rss
            self.peak_rss_mb = max(self.peak_rss_mb, total / 2**20)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
