"""The allow-list at work: who is let in, who is shut out while the server runs, and whom a site talks to."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from momkd_fl.cli.provision_root import KEYHOLDER, make_trial
from momkd_fl.config.site import Connection, Consortium, Tls
from momkd_fl.errors import UserError
from momkd_fl.federation import flower, identity
from momkd_fl.federation.flower import FleetServer, SiteSession
from momkd_fl.federation.identity import Admission, Membership, ending, expiries, passphrase_of, proxy_of, tell_of_ends
from momkd_fl.federation.transport import Proxy, client_context, http_client, server_context
from momkd_fl.security.allowlist import AllowList, read_allow_list, revise
from momkd_fl.security.charter import read_charter
from momkd_fl.security.pki import issue_server, load_certificate, public_key_of
from momkd_fl.security.signing import load_signing_key
from momkd_fl.telemetry.logs import JsonLog
from momkd_fl.telemetry.metrics import ClientMetrics

SITES = ("ash", "birch")
PATIENCE_S = 30.0


@dataclass
class Party:
    """One consortium's keys, and what each party has on its own disk below ``own``."""

    keys: Path
    own: Path
    events: list[str] = field(default_factory=list)

    def tls(self, name: str) -> Tls:
        folder = self.keys / name
        return Tls(
            ca=self.keys / "root" / "ca.crt",
            certificate=folder / f"{name}.crt",
            private_key=folder / f"{name}.key",
        )

    def consortium(self, name: str) -> Consortium:
        return Consortium(
            charter=self.keys / "consortium.json",
            allow_list=self.own / f"{name}.list.json",
            seen=self.own / f"{name}.seen.json",
        )

    def hand_out(self, made: AllowList, *names: str) -> None:
        for name in names:
            self.consortium(name).allow_list.write_bytes(made.text())

    def first(self) -> AllowList:
        return read_allow_list(self.keys / "allow-list.json")

    def next(self, previous: AllowList, **changes: Any) -> AllowList:
        charter = read_charter(self.keys / "consortium.json", self.keys / "root" / "ca.crt")
        key = load_signing_key(self.keys / "root" / f"{KEYHOLDER}.sign.key")
        return revise(charter, previous, **changes).signed(KEYHOLDER, key)

    def membership(self, name: str) -> Membership:
        return Membership(self.consortium(name), self.tls(name), name)

    def admission(self) -> Admission:
        members = {site: public_key_of(self.tls(site).certificate) for site in SITES}
        return Admission(self.consortium("server"), self.tls("server"), members)

    def server(self, admission: Admission, certificate: str = "server") -> FleetServer:
        tls = self.tls(certificate)
        return FleetServer(
            host="127.0.0.1",
            port=0,
            ca=tls.ca,
            certificate=tls.certificate,
            private_key=tls.private_key,
            passphrase=None,
            sites={site: public_key_of(self.tls(site).certificate) for site in SITES},
            max_message_bytes=1 << 20,
            admits=admission.admits,
            allow_list=admission.content,
        )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("consortium")
    make_trial(folder, "trial", ["127.0.0.1"], list(SITES))
    issue_server(folder / "intruder", folder / "root", "intruder", ["127.0.0.1"])
    return folder


@pytest.fixture
def party(keys: Path, tmp_path: Path) -> Party:
    made = Party(keys, tmp_path)
    made.hand_out(made.first(), "server", *SITES)
    return made


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, getattr(TaskIdentity, name))
    monkeypatch.setattr(flower, "HOLD_S", 0.1)
    monkeypatch.setattr(identity, "LOOK_EVERY_S", 0.0)


def code_of(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return caught.value.code


@dataclass
class Site:
    """A session in a thread that ends by itself or at the end of the test."""

    ended: list[Any]
    events: list[tuple[str, dict[str, Any]]]
    stop: threading.Event
    thread: threading.Thread

    def end(self) -> Any:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.ended[0]

    def wait(self, event: str) -> dict[str, Any]:
        for _ in range(int(PATIENCE_S * 100)):
            if found := [fields for name, fields in self.events if name == event]:
                return found[0]
            self.thread.join(0.01)
        raise AssertionError(self.events)


@pytest.fixture
def start(party: Party) -> Iterator[Callable[..., Site]]:
    opened: list[Site] = []

    def make(site: str, server: FleetServer, *, proxy: Proxy | None = None) -> Site:
        tls, events, ended, stop = party.tls(site), [], [], threading.Event()
        session = SiteSession(
            f"https://127.0.0.1:{server.port}",
            ca=tls.ca,
            certificate=tls.certificate,
            private_key=tls.private_key,
            passphrase=None,
            poll_max_s=0.1,
            give_up_after_s=PATIENCE_S,
            say=lambda event, fields: events.append((event, fields)),
            proxy=proxy,
            meet=party.membership(site).meet,
        )

        def run() -> None:
            context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
            try:
                ended.append(session.run(app(), context, stop, lambda message: True))
            except BaseException as problem:
                ended.append(problem)

        made = Site(ended, events, stop, threading.Thread(target=run, daemon=True))
        made.thread.start()
        opened.append(made)
        return made

    yield make
    for site in opened:
        site.stop.set()
        site.thread.join(10)


def app() -> ClientApp:
    made = ClientApp()

    @made.train()
    def train(request: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=request)

    return made


# --- the two ends, without a network


def test_a_site_that_is_not_listed_does_not_start(party: Party) -> None:
    assert party.membership("ash").allow_list.version == 1
    party.hand_out(party.next(party.first(), revoke=["ash"]), "ash")
    assert code_of(party.membership, "ash") == "allowlist-not-listed"
    party.consortium("ash").allow_list.write_bytes(party.first().text())
    assert code_of(party.membership, "ash") == "allowlist-not-listed", "the newer list was seen, and is remembered"


def test_a_certificate_of_another_site_is_not_this_one_s(party: Party) -> None:
    assert code_of(Membership, party.consortium("ash"), party.tls("birch"), "ash") == "site-name-mismatch"


def test_a_list_without_enough_signatures_or_time_keeps_everybody_out(party: Party) -> None:
    bare = party.next(party.first()).model_copy(update={"signatures": {}})
    party.hand_out(bare, "ash", "server")
    assert code_of(party.membership, "ash") == "allowlist-unsigned"
    assert code_of(party.admission) == "allowlist-unsigned"
    old = party.next(party.first(), now=datetime.now(UTC) - timedelta(days=91))
    party.hand_out(old, "ash", "server")
    assert code_of(party.membership, "ash") == "allowlist-expired"
    assert code_of(party.admission) == "allowlist-expired"


def test_the_server_lets_in_whom_the_list_names_now(party: Party) -> None:
    admission, told = party.admission(), []
    admission.tell = told.append
    assert admission.outsiders() == []
    second = party.next(party.first(), revoke=["birch"])
    party.hand_out(second, "server")
    assert admission.outsiders() == ["birch"]
    party.hand_out(party.first(), "server")
    assert admission.outsiders() == ["birch"], "an older list brings nobody back"
    party.consortium("server").allow_list.write_bytes(b"{")
    assert admission.outsiders() == ["birch"]
    assert [mistake.code for mistake in told] == ["allowlist-rolled-back", "document-invalid"]
    assert code_of(party.admission) == "document-invalid"
    party.hand_out(party.first(), "server")
    assert code_of(party.admission) == "allowlist-rolled-back", "nor does a restart"


def test_a_list_that_ends_while_the_server_runs_lets_nobody_in(party: Party) -> None:
    admission = party.admission()
    admission.allow_list = admission.allow_list.model_copy(update={"expires": datetime.now(UTC)})
    assert admission.outsiders() == list(SITES)


def test_a_coordinator_that_was_revoked_serves_nobody(party: Party) -> None:
    admission = party.admission()
    party.hand_out(party.next(party.first(), revoke=["server"]), "server")
    assert admission.outsiders() == list(SITES)
    assert code_of(party.admission) == "allowlist-not-listed"


def test_another_certificate_of_a_listed_name_is_not_let_in(party: Party) -> None:
    tls = {"ash": public_key_of(party.tls("birch").certificate)}
    assert Admission(party.consortium("server"), party.tls("server"), tls).outsiders() == ["ash"]


# --- over mutual TLS


def test_a_site_is_shut_out_while_the_server_runs(party: Party, start: Callable[..., Site]) -> None:
    admission = party.admission()
    with party.server(admission) as server:
        ash, birch = start("ash", server), start("birch", server)
        ash.wait("active")
        birch.wait("active")
        party.hand_out(party.next(party.first(), revoke=["birch"]), "server")
        problem = birch.end()
        assert isinstance(problem, UserError)
        assert problem.code == "key-not-allowed"
        assert ash.thread.is_alive()


def test_a_site_takes_the_newer_list_from_the_coordinator_and_keeps_it(
    party: Party, start: Callable[..., Site]
) -> None:
    second = party.next(party.first(), revoke=["birch"])
    party.hand_out(second, "server")
    with party.server(party.admission()) as server:
        start("ash", server).wait("active")
    assert party.membership("ash").allow_list == second


def test_a_coordinator_with_an_old_list_is_not_talked_to(party: Party, start: Callable[..., Site]) -> None:
    party.hand_out(party.next(party.first(), revoke=["birch"]), "ash")
    with party.server(party.admission()) as server:
        assert start("ash", server).end().code == "allowlist-rolled-back"


def test_a_server_with_a_certificate_that_is_not_listed_is_not_talked_to(
    party: Party, start: Callable[..., Site]
) -> None:
    with party.server(party.admission(), certificate="intruder") as server:
        problem = start("ash", server).end()
    assert problem.code == "allowlist-not-listed"
    assert "intruder" in problem.sentence


def test_the_list_says_who_is_a_server(party: Party) -> None:
    membership = party.membership("ash")
    server = load_certificate(party.tls("server").certificate).public_bytes(Encoding.DER)
    membership.meet(server, None)
    made = membership.allow_list
    as_site = [one.model_copy(update={"kind": "site"}) if one.kind == "server" else one for one in made.parties]
    membership.allow_list = made.model_copy(update={"parties": tuple(as_site)})
    with pytest.raises(UserError):
        membership.meet(server, None)
    site = load_certificate(party.tls("birch").certificate).public_bytes(Encoding.DER)
    assert code_of(party.membership("ash").meet, site, None) == "allowlist-not-listed", "birch is in, but no server"


def test_a_redirection_is_not_followed(party: Party) -> None:
    """A hostile coordinator could have a site post its answer to a machine inside the hospital."""
    reached: list[str] = []

    class Inside(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reached.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    inside = HTTPServer(("127.0.0.1", 0), Inside)
    server_tls = party.tls("server")

    class Coordinator(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(307)
            self.send_header("location", f"http://127.0.0.1:{inside.server_port}/secret")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    outside = HTTPServer(("127.0.0.1", 0), Coordinator)
    context = server_context(server_tls.ca, server_tls.certificate, server_tls.private_key, None)
    outside.socket = context.wrap_socket(outside.socket, server_side=True)
    for one in (inside, outside):
        threading.Thread(target=one.serve_forever, daemon=True).start()
    tls = party.tls("ash")
    client = http_client(client_context(tls.ca, tls.certificate, tls.private_key, None), 10.0)
    with client:
        assert client.get(f"https://127.0.0.1:{outside.server_port}/").status_code == 307
        assert reached == []
        calls = flower._FleetCalls(
            f"https://127.0.0.1:{outside.server_port}",
            client_context(tls.ca, tls.certificate, tls.private_key, None),
            flower.private_key_of(tls.certificate, tls.private_key, None),
            meet=lambda shown, offered: None,
        )
        with pytest.raises(httpx.HTTPStatusError):
            calls.activate()
        calls.close()
    assert reached == []
    for one in (inside, outside):
        one.shutdown()
        one.server_close()


# --- through a proxy


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[..., tuple[int, Path]]]:
    """A tunnelling proxy in a process of its own: its port, and its log of (target, first bytes) lines."""
    running: list[subprocess.Popen[str]] = []

    def make(*credentials: str) -> tuple[int, Path]:
        log = tmp_path / f"proxy{len(running)}.log"
        script = Path(__file__).with_name("connect_proxy.py")
        running.append(
            subprocess.Popen([sys.executable, str(script), str(log), *credentials], stdout=subprocess.PIPE, text=True)
        )
        assert running[-1].stdout is not None
        return int(running[-1].stdout.readline()), log

    yield make
    for process in running:
        process.terminate()
        process.communicate(timeout=10)


@pytest.mark.process
def test_a_round_goes_through_a_proxy_that_sees_tls_only(
    party: Party, start: Callable[..., Site], proxy: Callable[..., tuple[int, Path]]
) -> None:
    port, log = proxy()
    with party.server(party.admission()) as server:
        site = start("ash", server, proxy=proxy_of(Connection(url="https://hub", proxy=f"http://127.0.0.1:{port}")))
        site.wait("active")
        question = Message(RecordDict(), dst_node_id=server.grid.node_of("ash"), message_type="train", group_id="1")
        (reply,) = server.grid.send_and_receive([question], timeout=PATIENCE_S)
        assert not reply.has_error()
        assert site.end() == "finished"
        lines = log.read_text().splitlines()
    assert lines
    for line in lines:  # a TLS handshake record (22) of version 3.x, and no plain HTTP
        assert line.split(" ")[0] == f"127.0.0.1:{server.port}"
        assert line.split(" ")[1].startswith("1603")


@pytest.mark.process
def test_a_proxy_s_password_comes_from_the_environment(
    party: Party,
    start: Callable[..., Site],
    proxy: Callable[..., tuple[int, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port, log = proxy("momkd:a:word")
    monkeypatch.setenv("PROXY_AUTH", "momkd:a:word")
    connection = Connection(url="https://hub", proxy=f"http://127.0.0.1:{port}", proxy_auth_env="PROXY_AUTH")
    with party.server(party.admission()) as server:
        without = start("birch", server, proxy=Proxy(f"http://127.0.0.1:{port}"))
        assert "407" in without.wait("connecting")["reason"]
        assert not log.exists()
        start("ash", server, proxy=proxy_of(connection)).wait("active")
    assert log.exists()


def test_a_proxy_of_the_environment_is_not_taken(
    party: Party, start: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with party.server(party.admission()) as server:
        start("ash", server).wait("active")


# --- ends and passphrases


def test_a_contract_ends_like_a_credential_at_the_end_of_its_last_day(party: Party, tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    ends = expiries(party.tls("ash"), party.first(), today + timedelta(days=3))
    assert ends["contract"] == datetime.combine(today + timedelta(days=4), datetime.min.time(), UTC)
    assert set(ending(ends)) == {"contract"}
    said: list[str] = []
    with JsonLog(tmp_path / "log.jsonl", "ash", strict=True) as log, ClientMetrics() as metrics:
        tell_of_ends(ends, said.append, log, metrics)
        left = metrics.registry.get_sample_value("momkd_site_credential_days_left", {"credential": "contract"})
    assert left is not None
    assert 3 < left <= 4
    assert "Set 'expires'" in said[0]
    assert '"credential":"contract"' in (tmp_path / "log.jsonl").read_text()


def test_whoever_shows_the_ends_hears_of_a_newer_list(party: Party) -> None:
    heard: list[int] = []
    admission = party.admission()
    admission.changed = lambda newest: heard.append(newest.version)
    party.hand_out(party.next(party.first()), "server")
    assert admission.admits("ash")
    assert heard == [2]
    heard.clear()
    membership = party.membership("ash")
    membership.changed = lambda newest: heard.append(newest.version)
    server = load_certificate(party.tls("server").certificate).public_bytes(Encoding.DER)
    membership.meet(server, None)
    assert heard == [membership.allow_list.version]


def test_ends_are_said_logged_and_shown(party: Party, tmp_path: Path) -> None:
    ends = expiries(party.tls("ash"), party.first())
    assert set(ends) == {"certificate", "root", "allow-list"}
    assert ending(ends) == {}
    ends["certificate"] = datetime.now(UTC) + timedelta(days=29, hours=1)
    ends["allow-list"] = datetime.now(UTC) + timedelta(days=13, hours=1)
    said: list[str] = []
    with JsonLog(tmp_path / "log.jsonl", "ash", strict=True) as log, ClientMetrics() as metrics:
        tell_of_ends(ends, said.append, log, metrics)
        left = metrics.registry.get_sample_value("momkd_site_credential_days_left", {"credential": "certificate"})
    assert left == pytest.approx(29.04, abs=0.01)
    assert len(said) == 2
    assert "certificate ends in 29 days" in said[0]
    text = (tmp_path / "log.jsonl").read_text()
    assert '"credential":"allow-list","days_left":13.0' in text


def test_a_passphrase_comes_from_a_file_of_its_owner(party: Party, tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_text("correct horse battery\n")
    path.chmod(0o600)
    tls = party.tls("ash").model_copy(update={"passphrase_file": path})
    assert passphrase_of(tls) == b"correct horse battery"
    path.chmod(0o640)
    assert code_of(passphrase_of, tls) == "key-mode"
    link = tmp_path / "link"
    link.symlink_to(path)
    assert code_of(passphrase_of, tls.model_copy(update={"passphrase_file": link})) == "key-symlink"
    path.chmod(0o600)
    path.write_text("short")
    assert code_of(passphrase_of, tls) == "passphrase-short"
    with pytest.raises(ValueError, match="not both"):
        Tls(ca=path, certificate=path, private_key=path, passphrase_file=path, passphrase_env="X")
