"""What a round costs when nobody trains: time, the server's CPU and memory, bytes on the wire.

One server process, one process per site, mutual TLS on loopback. Every site adds its own noise to the weights, so
that no two replies have bytes in common. Figures go to standard output as JSON lines, progress to standard error;
the exit status is 1 when a target is missed.

    python -m benchmarks.empty_round --sites 3 10 30 --rounds 20
"""

from __future__ import annotations

import argparse
import json
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.figures import Figure, print_figures
from momkd_fl.federation.flower import FleetServer, SiteSession
from momkd_fl.security.pki import create_root, issue_server, issue_site, public_key_of

HOST = "127.0.0.1"
PARAMETERS = 800_000
TENSORS = 8
WARM_UP_ROUNDS = 2
ROUND_TIMEOUT_S = 120.0
# Targets
ROUND_S = {3: 0.5, 10: 1.5}
SERVER_CPU_MS = 50.0
BYTES_RATIO = 1.01
BYTES_FIXED = 4096
RSS_SLOPE = 0.05


@dataclass
class Measured:
    """One federation of ``sites`` sites: median round (s), server CPU per site and round (ms), peak RSS (MB)."""

    sites: int
    round_s: float
    server_cpu_ms: float
    server_rss_mb: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; see the module's text."""
    options = _parser().parse_args(arguments)
    if options.role == "server":
        return _serve(options)
    if options.role == "site":
        return _take_part(options)
    with tempfile.TemporaryDirectory(prefix="empty-round-") as folder:
        keys = _provision(Path(folder), max(options.sites))
        runs = [_measure(keys, sites, options) for sites in sorted(options.sites)]
        ratio = _measure_bytes(keys, min(options.sites), options)
    return _report(runs, ratio, options.parameters)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.empty_round", description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 10, 30], help="numbers of sites to measure")
    parser.add_argument("--rounds", type=int, default=20, help="rounds to measure, after two to warm up")
    parser.add_argument("--parameters", type=int, default=PARAMETERS, help="float32 parameters of the model")
    for hidden in ("--role", "--keys", "--site"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def _provision(folder: Path, sites: int) -> Path:
    create_root(folder / "root", "benchmark")
    issue_server(folder, folder / "root", "server", [HOST])
    for number in range(sites):
        issue_site(folder, folder / "root", f"site{number}")
    return folder


def _report(runs: list[Measured], ratio: float, parameters: int) -> int:
    figures = [_figure(f"round.empty_s.{run.sites}_sites", run.round_s, "s", ROUND_S.get(run.sites)) for run in runs]
    cpu_ms = max(run.server_cpu_ms for run in runs)
    figures.append(_figure("round.server_cpu_ms", cpu_ms, "ms per site and round", SERVER_CPU_MS))
    figures.append(_figure("round.bytes_ratio", ratio, "bytes per byte of parameters, after 4 KB", BYTES_RATIO))
    model_mb = parameters * 4 / 2**20
    for run in runs:
        allowed = runs[0].server_rss_mb + RSS_SLOPE * model_mb * (run.sites - runs[0].sites)
        most = None if run is runs[0] else round(allowed, 1)
        figures.append(_figure(f"round.server_rss_mb.{run.sites}", run.server_rss_mb, "MB", most))
    return print_figures(figures)


def _figure(name: str, value: float, unit: str, most: float | None) -> Figure:
    """A figure that should be at most ``most``."""
    if most is None:
        return Figure(name, round(value, 4), unit)
    return Figure(name, round(value, 4), unit, f"<={most:g}", value <= most)


# ------------------------------------------------------------------------------------------------ the parent's side


def _measure(keys: Path, sites: int, options: argparse.Namespace) -> Measured:
    with ExitStack() as running:
        server, port = _started_server(running, keys, sites, options)
        for number in range(sites):
            running.enter_context(_process("site", keys, port, options, site=f"site{number}"))
        _await_mark(server, "measuring")
        return Measured(sites, **_await_mark(server, "measured"))


def _measure_bytes(keys: Path, sites: int, options: argparse.Namespace) -> float:
    """Bytes of TCP payload by a relay before every site: the worst site and direction."""
    with ExitStack() as running:
        server, port = _started_server(running, keys, sites, options)
        relays = [running.enter_context(Relay(port)) for _ in range(sites)]
        for number, relay in enumerate(relays):
            running.enter_context(_process("site", keys, relay.port, options, site=f"site{number}"))
        _await_mark(server, "measuring")
        before = [list(relay.carried) for relay in relays]
        _await_mark(server, "measured")
        per_round = [
            (after - start) / options.rounds
            for relay, starts in zip(relays, before, strict=True)
            for after, start in zip(relay.carried, starts, strict=True)
        ]
    return (max(per_round) - BYTES_FIXED) / (4 * options.parameters)


def _started_server(
    running: ExitStack, keys: Path, sites: int, options: argparse.Namespace
) -> tuple[subprocess.Popen[str], int]:
    server = running.enter_context(_process("server", keys, 0, options, sites=sites))
    return server, int(_await_mark(server, "listening")["port"])


@contextmanager
def _process(
    role: str, keys: Path, port: int, options: argparse.Namespace, *, site: str = "", sites: int = 1
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.empty_round", "--role", role, "--keys", str(keys)]
    command += ["--port", str(port), "--rounds", str(options.rounds), "--parameters", str(options.parameters)]
    command += ["--sites", str(sites), "--site", site]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        try:
            process.wait(5 if role == "site" else 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _await_mark(server: subprocess.Popen[str], mark: str) -> dict[str, Any]:
    assert server.stdout is not None
    for line in server.stdout:
        found: dict[str, Any] = json.loads(line)
        if found.pop("mark") == mark:
            return found
    raise RuntimeError(f"the server ended before it was {mark}")


@dataclass
class Relay:
    """Passes TCP connections on to ``to_port``; ``carried`` counts bytes to the server and back."""

    to_port: int
    port: int = 0
    carried: list[int] = field(default_factory=lambda: [0, 0])

    def __enter__(self) -> Relay:
        self._selector = selectors.DefaultSelector()
        self._listening = socket.create_server((HOST, 0))
        self.port = self._listening.getsockname()[1]
        self._over = threading.Event()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _carry(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.1):
                if key.fileobj is self._listening:
                    near, _ = self._listening.accept()
                    far = socket.create_connection((HOST, self.to_port))
                    self._selector.register(near, selectors.EVENT_READ, (far, 0))
                    self._selector.register(far, selectors.EVENT_READ, (near, 1))
                elif key.data[0].fileno() >= 0:
                    self._pass_on(key.fileobj, *key.data)

    def _pass_on(self, source: Any, target: socket.socket, direction: int) -> None:
        try:
            data = source.recv(1 << 18)
            target.sendall(data)
        except OSError:
            data = b""
        if data:
            self.carried[direction] += len(data)
            return
        for end in (source, target):
            self._selector.unregister(end)
            end.close()


# ------------------------------------------------------------------------------------------------------- the server


def _serve(options: argparse.Namespace) -> int:
    keys, names = Path(options.keys), [f"site{number}" for number in range(options.sites[0])]
    with FleetServer(
        host=HOST,
        port=options.port,
        ca=keys / "root" / "ca.crt",
        certificate=keys / "server.crt",
        private_key=keys / "server.key",
        passphrase=None,
        sites={name: public_key_of(keys / f"{name}.crt") for name in names},
        max_message_bytes=2**28,
    ) as server:
        _mark("listening", port=server.port)
        grid = server.grid
        while grid.online() < set(names):
            time.sleep(0.05)
        rng = np.random.default_rng(0)
        weights = [rng.standard_normal(options.parameters // TENSORS, dtype=np.float32) for _ in range(TENSORS)]
        seconds: list[float] = []
        cpu_s = 0.0
        for number in range(WARM_UP_ROUNDS + options.rounds):
            if number == WARM_UP_ROUNDS:
                _mark("measuring")
                cpu_s = time.process_time()
            started = time.monotonic()
            weights = _round(grid, names, weights, number)
            seconds.append(time.monotonic() - started)
            print(f"{len(names)} sites, round {number}: {seconds[-1]:.3f} s", file=sys.stderr, flush=True)
        cpu_s = time.process_time() - cpu_s
        _mark(
            "measured",
            round_s=statistics.median(seconds[WARM_UP_ROUNDS:]),
            server_cpu_ms=1000 * cpu_s / options.rounds / len(names),
            server_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
        bye = [Message(RecordDict(), grid.node_of(name), "query.bye") for name in names]
        list(grid.send_and_receive(bye, timeout=10))
    return 0


def _round(grid: Any, names: list[str], weights: list[np.ndarray], number: int) -> list[np.ndarray]:
    """The mean of the sites' replies, added up as they arrive."""
    record = ArrayRecord(weights)
    outgoing = [
        Message(
            RecordDict({"weights": record, "config": ConfigRecord({"round": number})}),
            grid.node_of(name),
            "train",
            group_id=str(number),
        )
        for name in names
    ]
    totals = [np.zeros_like(tensor) for tensor in weights]
    replied = 0
    for reply in grid.send_and_receive(outgoing, timeout=ROUND_TIMEOUT_S):
        for total, array in zip(totals, reply.content["weights"].values(), strict=True):
            total += array.numpy()
        replied += 1
    if replied != len(names):
        raise RuntimeError(f"round {number}: {replied} replies of {len(names)}")
    return [total / np.float32(replied) for total in totals]


def _mark(name: str, **values: float) -> None:
    print(json.dumps({"mark": name, **values}), flush=True)


# ---------------------------------------------------------------------------------------------------------- a site


def _take_part(options: argparse.Namespace) -> int:
    keys, rng, app = Path(options.keys), np.random.default_rng(), ClientApp()

    @app.train()
    def train(request: Message, context: Context) -> Message:
        weights = [array.numpy() for array in request.content["weights"].values()]
        noisy = [tensor + np.float32(rng.standard_normal()) for tensor in weights]
        return Message(
            RecordDict({"weights": ArrayRecord(noisy), "metrics": MetricRecord({"loss": 0.5})}), reply_to=request
        )

    @app.query("bye")
    def bye(request: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=request)

    session = SiteSession(
        f"https://{HOST}:{options.port}",
        ca=keys / "root" / "ca.crt",
        certificate=keys / f"{options.site}.crt",
        private_key=keys / f"{options.site}.key",
        passphrase=None,
        poll_max_s=1.0,
        give_up_after_s=30.0,
        say=lambda event, fields: None,
    )
    context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
    session.run(app, context, threading.Event(), lambda message: message.metadata.message_type == "query.bye")
    return 0


if __name__ == "__main__":
    sys.exit(main())
