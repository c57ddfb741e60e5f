"""What secure sums cost a run over processes: one server, a process a site, mutual TLS, gate, books and both drivers.

Nobody trains: a site's answer is noise of the asked length, plain or masked. The plain round beside it is the same
answer in one message. A site that is gone refuses the third step, so that its masks must be recovered. ``error`` is the
largest difference of a weight after one secure round to the same after one plain round of the same answers, against the
bound that the encoding states; ``recovery_s`` is the fifth step alone: asking for the shares, and taking the masks off.

    python -m benchmarks secagg_processes [--quick] [--rounds 5] [--case 1m_x_10]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from benchmarks.figures import Figure, at_most, print_figures, without_targets
from momkd_fl.cli.consortium import provision
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.policy import SmallNumbers
from momkd_fl.config.site import Egress
from momkd_fl.errors import UserError
from momkd_fl.federation import messages
from momkd_fl.federation.aggregation import public_norm
from momkd_fl.federation.books import Books
from momkd_fl.federation.contract import contract_for
from momkd_fl.federation.dialogue import ask_all
from momkd_fl.federation.egress import Gate
from momkd_fl.federation.flower import FleetServer, SiteSession
from momkd_fl.federation.messages import (
    JOIN,
    MASK,
    SUM_STEPS,
    TRAIN,
    UNMASK,
    Kind,
    Train,
    TrainReply,
    open_request,
)
from momkd_fl.federation.sum_keys import Peers, SumKeys
from momkd_fl.federation.sum_parts import GENES_LIMIT, Flat, Part, encoding, update_encoding
from momkd_fl.federation.sum_site import SumSite
from momkd_fl.federation.sums import SecureSums
from momkd_fl.federation.watch import unwatched
from momkd_fl.secagg.manifest import least_threshold
from momkd_fl.security.allowlist import ALLOW_LIST_FILE, read_allow_list
from momkd_fl.security.party import party_of
from momkd_fl.security.pki import certificate_sha256, public_key_of
from momkd_fl.security.signing import load_signing_key

HOST, RUN = "127.0.0.1", "bench-00000000"
SIZES, QUICK_SIZES = ((1_000_000, 3), (1_000_000, 10), (10_000_000, 3), (10_000_000, 10)), ((20_000, 4),)
SITE_CPU_S, WALL_S, BYTES_RATIO = 0.2, 1.5, 2.1
"""Targets at 1 M numbers and 10 sites: what a secure round takes more than a plain one, and its bytes by plain ones."""
WAIT_S = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; exit status 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smoke run: few numbers, once")
    parser.add_argument("--case", action="append", help="only this size, such as 1m_x_10; may be given again")
    for hidden in ("--part", "--keys", "--site"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    for hidden in ("--port", "--numbers", "--sites"):
        parser.add_argument(hidden, type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part == "server":
        return _serve(options)
    if options.part == "site":
        return _take_part(options)
    figures = [Figure("secagg_processes.extra_round_trips", len(SUM_STEPS) - 1, "round trips")]
    cases = {_name(*size): size for size in (QUICK_SIZES if options.quick else SIZES)}
    if options.case and not set(options.case) <= set(cases):
        parser.error(f"there are the sizes {', '.join(cases)}")
    for name, (numbers, sites) in cases.items():
        if not options.case or name in options.case:
            figures += _measured(name, numbers, sites, 1 if options.quick else options.rounds)
    return print_figures(without_targets(figures) if options.quick else figures)


def _name(numbers: int, sites: int) -> str:
    return f"{numbers // 1_000_000}m_x_{sites}" if numbers >= 1_000_000 else f"{numbers}_x_{sites}"


def _measured(name: str, numbers: int, sites: int, rounds: int) -> Iterator[Figure]:
    """The figures of one size, from its own processes."""
    names = [f"site{number:02d}" for number in range(sites)]
    with tempfile.TemporaryDirectory(prefix="secagg-processes-") as folder, ExitStack() as running:
        provision(Path(folder), "benchmark", names)
        shared = ["--keys", folder, "--numbers", str(numbers), "--sites", str(sites), "--rounds", str(rounds)]
        server = running.enter_context(_process(["--part", "server", *shared]))
        port = str(_line(server)["port"])
        for site in names:
            running.enter_context(_process(["--part", "site", "--site", site, "--port", port, *shared]))
        found = _line(server)
    plain, secure = found["plain"], found["secure"]
    targets = (numbers, sites) == (1_000_000, 10)
    for what, unit, most in (("wall_s", "s", WALL_S), ("site_cpu_s", "CPU-s", SITE_CPU_S)):
        for how, one in (("plain", plain), ("secure", secure)):
            yield Figure(f"secagg_processes.{what}.{how}.{name}", round(one[what], 4), unit)
        extra = round(secure[what] - plain[what], 4)
        yield at_most(f"secagg_processes.{what}.extra.{name}", extra, unit, most if targets else None)
    ratio = round(secure["bytes"] / plain["bytes"], 4)
    yield at_most(f"secagg_processes.up_bytes_vs_plain.{name}", ratio, "ratio", BYTES_RATIO)
    yield at_most(f"secagg_processes.error.{name}", found["error"], "weight", found["error_max"])
    for gone, seconds in found["gone_s"].items():
        yield Figure(f"secagg_processes.round_s.{name}.{gone}_gone", round(seconds["wall_s"], 4), "s")
        yield Figure(f"secagg_processes.recovery_s.{name}.{gone}_gone", round(seconds["recovery_s"], 4), "s")


@contextmanager
def _process(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.secagg_processes", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        found: dict[str, Any] = json.loads(line)
        return found
    raise RuntimeError("the server ended before it had measured anything")


def _config(keys: Path, names: list[str]) -> FederationConfig:
    raw: dict[str, Any] = {"name": "bench", "task": "PR", "encoder": {"name": "none", "dim": 8}}
    raw |= {"output_dir": str(keys / "out"), "members": {name: {} for name in names}}
    raw["rounds"] = {"quorum": 1, "deadline_s": WAIT_S}
    raw["aggregation"] = {"kind": "secagg", "step_deadline_s": WAIT_S}
    return FederationConfig.model_validate(raw)


def _parts(config: FederationConfig, numbers: int) -> list[Part]:
    return [
        Part("update.histology", (numbers,), update_encoding(config, numbers)),
        Part("statistics.sum_sq", (64,), encoding(config, GENES_LIMIT)),
    ]


def _peers(keys: Path) -> Peers:
    coordinator = bytes.fromhex(party_of(keys / "server" / "server.crt").signing_key)
    return Peers(coordinator, read_allow_list(keys / ALLOW_LIST_FILE).identities())


# ------------------------------------------------------------------------------------------------------- the server


class Stepped:
    """The grid, and when the fifth step began."""

    def __init__(self, grid: Any) -> None:
        self._grid, self.unmasking_began = grid, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(self, asked: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the grid's."""
        asked = list(asked)
        if asked and str(asked[0].content["envelope"]["kind"]) == UNMASK.name:
            self.unmasking_began = time.monotonic()
        replies: Iterable[Message] = self._grid.send_and_receive(asked, timeout=timeout)
        return replies


class Rounds:
    """Plain and secure rounds over one grid."""

    def __init__(self, grid: Any, keys: Path, names: list[str], numbers: int) -> None:
        self.grid, self.names, self.numbers = grid, names, numbers
        self.config = _config(keys, names)
        signing = SumKeys(load_signing_key(keys / "server" / "server.sign.key"), lambda: _peers(keys))
        (keys / "out").mkdir()
        self.stepped = Stepped(grid)
        self.sums = SecureSums(self.config, self.stepped, signing, keys / "out", unwatched(self.config))
        self.recovery_s: list[float] = []
        self.body = Train(proximal_mu=0.0, learning_rate_share=1.0)
        self.weights = {"weights": {"histology": np.zeros(numbers, np.float32)}}
        self.number = 0

    def plain(self) -> NDArray[np.float64]:
        """Every site's update in the clear, added up: their mean."""
        self.number += 1
        answers = ask_all(
            self.grid, TRAIN, self.body, self.names, run=RUN, round=self.number, timeout_s=WAIT_S, arrays=self.weights
        )
        total = np.zeros(self.numbers)
        for _, parcel in answers:
            total += parcel.arrays["update"]["histology"]
        if len(answers.parcels) != len(self.names):
            raise RuntimeError(f"a plain round failed: {answers.refusals}")
        return total / len(self.names)

    def secure(self, gone: int = 0) -> NDArray[np.float64]:
        """The same as a secure sum; of ``gone`` sites the masked answer never comes."""
        self.number += 1
        members: dict[str, dict[str, Any]] = {name: {"holds": []} for name in self.names}
        attempt = self.sums.ask(
            TRAIN, self.body, self.weights, _parts(self.config, self.numbers), self.names,
            members=members, run=RUN, round=self.number,
        )  # fmt: skip
        self.recovery_s.append(time.monotonic() - self.stepped.unmasking_began)
        if attempt.total is None or len(attempt.total.survivors) != len(self.names) - gone:
            raise RuntimeError(f"a secure round failed: {attempt.dropped}")
        return attempt.total.values["update.histology"] / len(attempt.total.survivors)

    def error(self) -> tuple[float, float]:
        """Largest difference of a weight between a secure and a plain round of the same answers, and its bound."""
        sites = len(self.names)
        found = float(np.abs(self.secure() - self.plain()).max())
        return found, update_encoding(self.config, self.numbers).error_max(sites) / sites

    def without(self, gone: int, rounds: int) -> dict[str, float]:
        """Median seconds of a secure round, and of its last step, in which so many sites refuse its third step."""
        self.tell({"gone": 1}, self.names[:gone])
        wall_s = self.measured(lambda: self.secure(gone), rounds)["wall_s"]
        self.tell({"gone": 0}, self.names[:gone])
        return {"wall_s": wall_s, "recovery_s": statistics.median(self.recovery_s[-rounds:])}

    def tell(self, what: dict[str, int], sites: list[str], kind: str = "query.note") -> list[float]:
        """A note to some sites; their CPU-seconds so far."""
        record = ConfigRecord(dict(what))
        asked = [Message(RecordDict({"note": record}), self.grid.node_of(site), kind) for site in sites]
        replies = self.grid.send_and_receive(asked, timeout=WAIT_S)
        return [float(reply.content["note"]["cpu_s"]) for reply in replies]

    def measured(self, one: Any, rounds: int) -> dict[str, float]:
        """Median wall seconds, and a site's CPU-seconds and bytes up, of a round; the first is not counted."""
        one()
        cpu_s, before = sum(self.tell({}, self.names)), self._bytes()
        seconds = []
        for _ in range(rounds):
            started = time.monotonic()
            one()
            seconds.append(time.monotonic() - started)
            print(f"{self.numbers} x {len(self.names)}: {seconds[-1]:.3f} s", file=sys.stderr, flush=True)
        share = rounds * len(self.names)
        carried = (self._bytes() - before) / share
        used = (sum(self.tell({}, self.names)) - cpu_s) / share
        return {"wall_s": statistics.median(seconds), "site_cpu_s": used, "bytes": carried}

    def _bytes(self) -> int:
        return sum(one.received for one in self.grid.stats.traffic.values())


def _serve(options: argparse.Namespace) -> int:
    keys, names = Path(options.keys), [f"site{number:02d}" for number in range(options.sites)]
    with FleetServer(
        host=HOST, port=0, ca=keys / "root" / "ca.crt", certificate=keys / "server" / "server.crt",
        private_key=keys / "server" / "server.key", passphrase=None,
        sites={name: public_key_of(keys / name / f"{name}.crt") for name in names}, max_message_bytes=2**30,
    ) as server:  # fmt: skip
        print(json.dumps({"port": server.port}), flush=True)
        while server.grid.online() < set(names):
            time.sleep(0.05)
        rounds = Rounds(server.grid, keys, names, options.numbers)
        found: dict[str, Any] = {"plain": rounds.measured(rounds.plain, options.rounds)}
        found["secure"] = rounds.measured(rounds.secure, options.rounds)
        most = len(names) - least_threshold(len(names))
        found["gone_s"] = {gone: rounds.without(gone, options.rounds) for gone in sorted({0, min(1, most), most})}
        found["error"], found["error_max"] = rounds.error()
        rounds.tell({}, names, "query.bye")
        print(json.dumps(found), flush=True)
    return 0


# ---------------------------------------------------------------------------------------------------------- a site


class NoiseSite(SumSite):
    """A site whose every answer is the same noise; the rest of its part in a sum is the product's."""

    def __init__(self, site: str, keys: Path, numbers: int) -> None:
        rng, config = np.random.default_rng(), _config(keys, [site])
        within = public_norm(config, numbers) / 2  # a norm that no round clips
        update = (within / np.sqrt(numbers) * rng.normal(size=numbers)).astype(np.float32)
        self.noise: Flat = {"update.histology": update, "statistics.sum_sq": np.ones(64, np.float32)}
        self.config, self.numbers, self.gone = config, numbers, False
        self.gate = _gate(site, keys, numbers)
        signing = SumKeys(load_signing_key(keys / site / f"{site}.sign.key"), lambda: _peers(keys))
        nobody = dict.fromkeys(("select", "initialise", "train", "evaluate"))
        part: Any = SimpleNamespace(site=site, state_dir=keys / site, config_of=lambda run: self.config, **nobody)
        super().__init__(part, self.gate, signing)

    def _answer(self, question: Any, model: bytes) -> Any:
        return SimpleNamespace(made=self.noise, kept=self.noise, charges=())

    def _parts(self, question: Any, config: FederationConfig, weights: list[float]) -> list[Part]:
        return _parts(config, self.numbers)

    def _holdings(self, config: FederationConfig) -> frozenset[str]:
        return frozenset()


def _gate(site: str, keys: Path, numbers: int) -> Gate:
    folder = keys / site / "books"
    folder.mkdir()
    where = Egress.model_validate(
        {name: folder / name for name in ("policy", "signing_key", "ledger", "odometer", "publications")}
    )
    policy = contract_for(
        site, "train", coordinator_sha256=certificate_sha256(keys / "server" / "server.crt"), runs=["*"], tasks=["*"],
        expires=datetime.now(UTC).date() + timedelta(days=1), numbers_max=2 * numbers + 1000,
        small_numbers=SmallNumbers(minimum_per_class=1, minimum_per_slot=1),
    )  # fmt: skip
    key = load_signing_key(keys / site / f"{site}.sign.key")
    Books.create(where, key, site, policy.budget)
    return Gate(policy, Books.open(where, key, policy.budget))


def _app(site: NoiseSite) -> ClientApp:
    app = ClientApp()

    def answered(kind: Kind[Any, Any], request: Message) -> Message:
        parcel = open_request(request, kind)
        if kind is TRAIN:
            body: Any = TrainReply(seconds={}, losses={}, loss_sum=[], monitors={})
            arrays: Any = {"update": {"histology": site.noise["update.histology"]}}
        elif kind is MASK and site.gone:
            raise UserError("site-gone", "This site does not answer, as it was told to.")
        else:
            body, arrays = site.join(parcel) if kind is JOIN else site.step(kind)(parcel)
        return site.gate.send(kind, request, parcel, body, arrays, task="", charges=())

    def serve(kind: Kind[Any, Any], request: Message) -> Message:
        try:
            return answered(kind, request)
        except UserError as mistake:
            return messages.refuse(request, mistake.code)

    @app.train()
    def train(request: Message, context: Context) -> Message:
        return serve(TRAIN, request)

    for kind in SUM_STEPS:

        @app.query(kind.name)
        def step(request: Message, context: Context, kind: Kind[Any, Any] = kind) -> Message:
            return serve(kind, request)

    for note in ("note", "bye"):

        @app.query(note)
        def noted(request: Message, context: Context) -> Message:
            site.gone = bool(request.content["note"].get("gone", site.gone))
            record = ConfigRecord({"cpu_s": time.process_time()})
            return Message(RecordDict({"note": record}), reply_to=request)

    return app


def _take_part(options: argparse.Namespace) -> int:
    keys, name = Path(options.keys), options.site
    session = SiteSession(
        f"https://{HOST}:{options.port}", ca=keys / "root" / "ca.crt", certificate=keys / name / f"{name}.crt",
        private_key=keys / name / f"{name}.key", passphrase=None, poll_max_s=1.0, give_up_after_s=30.0,
        say=lambda event, fields: None,
    )  # fmt: skip
    context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
    app = _app(NoiseSite(name, keys, options.numbers))
    session.run(app, context, threading.Event(), lambda message: message.metadata.message_type == "query.bye")
    return 0


if __name__ == "__main__":
    sys.exit(main())
