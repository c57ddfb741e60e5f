"""Server and sites over mutual TLS on loopback: what a site may do, what gets lost, who waits for whom."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from momkd_fl.errors import UserError
from momkd_fl.federation import flower
from momkd_fl.federation.flower import FleetServer, SiteSession
from momkd_fl.federation.grid import RunStopped
from momkd_fl.federation.packing import pack
from momkd_fl.federation.session import Gone
from momkd_fl.federation.transport import client_context
from momkd_fl.security.keystore import load_private_key
from momkd_fl.security.pki import create_root, issue_server, issue_site, public_key_of

SITES = ("ash", "birch", "cedar")
PATIENCE_S = 60.0
CAP = 1 << 20


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    create_root(folder, "consortium")
    issue_server(folder, folder, "server", ["localhost", "127.0.0.1"])
    for site in (*SITES, "stranger"):
        issue_site(folder, folder, site)
    create_root(folder / "other", "another")
    issue_site(folder / "other", folder / "other", "ash")
    return folder


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server sets the process's Flower identity: put it back afterwards. And questions are held for a moment only."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, getattr(TaskIdentity, name))
    monkeypatch.setattr(flower, "HOLD_S", 0.2)


def new_server(keys: Path, port: int = 0, cap: int = CAP) -> FleetServer:
    return FleetServer(
        host="127.0.0.1",
        port=port,
        ca=keys / "ca.crt",
        certificate=keys / "server.crt",
        private_key=keys / "server.key",
        passphrase=None,
        sites={site: public_key_of(keys / f"{site}.crt") for site in SITES},
        max_message_bytes=cap,
    )


@pytest.fixture
def server(keys: Path) -> Iterator[FleetServer]:
    with new_server(keys) as running:
        yield running


@dataclass
class Site:
    """A session in a thread. ``at_work`` is set when a message has reached the app; ``go`` lets it answer."""

    session: SiteSession
    events: list[tuple[str, dict[str, Any]]]
    app: ClientApp
    stop: threading.Event = field(default_factory=threading.Event)
    ended: list[Any] = field(default_factory=list)

    def start(self) -> Site:
        def run() -> None:
            context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
            try:
                self.ended.append(self.session.run(self.app, context, self.stop, is_last))
            except BaseException as problem:
                self.ended.append(problem)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        return self

    def end(self) -> Any:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.ended[0]

    def names(self) -> list[str]:
        return [event for event, _ in self.events]


def is_last(message: Message) -> bool:
    return message.metadata.message_type == "query.finish"


def echo(work: Callable[[Message], None] = lambda message: None) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(request: Message, context: Context) -> Message:
        work(request)
        return Message(RecordDict(dict(request.content.items())), reply_to=request)

    @app.query("finish")
    def finish(request: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=request)

    return app


NewSite = Callable[..., Site]


@pytest.fixture
def new_site(keys: Path) -> Iterator[NewSite]:
    """``(server or port, site, app=..., ca=..., give_up_after_s=...)``; what still runs is stopped afterwards."""
    opened: list[Site] = []

    def make(
        server: FleetServer | int,
        site: str,
        app: ClientApp | None = None,
        *,
        ca: Path | None = None,
        folder: Path | None = None,
        host: str = "127.0.0.1",
        give_up_after_s: float = PATIENCE_S,
    ) -> Site:
        port = server if isinstance(server, int) else server.port
        folder = folder or keys
        events: list[tuple[str, dict[str, Any]]] = []
        session = SiteSession(
            f"https://{host}:{port}",
            ca=ca or folder / "ca.crt",
            certificate=folder / f"{site}.crt",
            private_key=folder / f"{site}.key",
            passphrase=None,
            poll_max_s=0.2,
            give_up_after_s=give_up_after_s,
            say=lambda event, fields: events.append((event, fields)),
        )
        made = Site(session, events, app or echo())
        opened.append(made)
        return made

    yield make
    for site in opened:
        site.stop.set()
    for site in opened:
        if hasattr(site, "thread"):
            site.thread.join(10)


@pytest.fixture
def call(keys: Path, server: FleetServer) -> Iterator[Callable[[str], flower._FleetCalls]]:
    """A site's calls one by one, without the session around them."""
    opened = []

    def make(site: str) -> flower._FleetCalls:
        tls = client_context(keys / "ca.crt", keys / f"{site}.crt", keys / f"{site}.key", None)
        calls = flower._FleetCalls(
            f"https://127.0.0.1:{server.port}", tls, load_private_key(keys / f"{site}.key", None)
        )
        opened.append(calls)
        calls.activate()
        return calls

    yield make
    for calls in opened:
        calls.close()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def ask(server: FleetServer, *sites: str, values: Any = (1.0, 2.0), kind: str = "train") -> list[Message]:
    weights = ArrayRecord([np.asarray(values, np.float32)])
    return [
        Message(
            RecordDict({"weights": weights, "config": ConfigRecord({"a": 1})}),
            dst_node_id=server.grid.node_of(site),
            message_type=kind,
            group_id="4",
        )
        for site in sites
    ]


def receive(server: FleetServer, messages: list[Message], timeout: float = PATIENCE_S) -> list[Message]:
    return list(server.grid.send_and_receive(messages, timeout=timeout))


class Sending:
    """``send_and_receive`` in a thread, for tests that play the site by hand."""

    def __init__(self, server: FleetServer, messages: list[Message], timeout: float = PATIENCE_S) -> None:
        self.replies: list[Message] = []
        self._thread = threading.Thread(
            target=lambda: self.replies.extend(server.grid.send_and_receive(messages, timeout=timeout)), daemon=True
        )
        self._thread.start()

    def end(self) -> list[Message]:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.replies


def take_message(calls: flower._FleetCalls) -> Message:
    for _ in range(30):
        message = calls.receive()
        if message is not None:
            return message
    raise AssertionError("no message came")


def answer(message: Message, values: Any = (5.0,)) -> Message:
    content = RecordDict({"weights": ArrayRecord([np.asarray(values, np.float32)])})
    return Message(pack(content, salted=True), reply_to=message)


def nothing_left(server: FleetServer) -> bool:
    links = server._links
    held = [links.object_store.store, links.message_ins_store, links.message_res_store, links.uploads, links.complete]
    return not any(held) and not any(links.readable.values())


def refused(step: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        step()
    return caught.value.response.status_code, caught.value.response.json()["detail"]


# --- rounds


def test_messages_go_and_come_whole(server: FleetServer, new_site: NewSite) -> None:
    sites = {name: new_site(server, name).start() for name in SITES}
    until(lambda: server.grid.online() == set(SITES))
    values = np.random.default_rng(0).standard_normal(70_000).astype(np.float32)
    replies = receive(server, ask(server, *SITES, values=values))
    assert {server.grid.sites[reply.metadata.src_node_id] for reply in replies} == set(SITES)
    for reply in replies:
        np.testing.assert_array_equal(reply.content["weights"].to_numpy_ndarrays()[0], values)
        assert reply.content["config"]["a"] == 1
        assert reply.metadata.group_id == "4"
    assert nothing_left(server)
    traffic = server.grid.stats.traffic["ash"]
    assert 280_000 < traffic.sent < 290_000
    assert 280_000 < traffic.received < 290_000
    assert len(receive(server, ask(server, *SITES, kind="query.finish"))) == 3
    assert [site.end() for site in sites.values()] == ["finished"] * 3
    assert sites["ash"].names() == ["active", "received", "sent", "received", "sent", "finished"]


def test_replies_come_as_they_arrive(server: FleetServer, new_site: NewSite) -> None:
    go = threading.Event()

    def work(message: Message) -> None:
        go.wait(PATIENCE_S)

    new_site(server, "ash", echo(work)).start()
    new_site(server, "birch").start()
    replies = server.grid.send_and_receive(ask(server, "ash", "birch"), timeout=PATIENCE_S)
    first = next(replies)
    assert server.grid.sites[first.metadata.src_node_id] == "birch"
    assert not server._links.complete
    go.set()
    assert server.grid.sites[next(replies).metadata.src_node_id] == "ash"


def test_a_late_reply_is_dropped_and_the_site_goes_on(server: FleetServer, new_site: NewSite) -> None:
    go, seen = threading.Event(), []

    def work(message: Message) -> None:
        seen.append(message)
        go.wait(PATIENCE_S)

    site = new_site(server, "ash", echo(work)).start()
    sending = Sending(server, ask(server, "ash"), timeout=0.5)
    assert sending.end() == []
    until(lambda: bool(seen) or not server._links.message_ins_store)
    assert nothing_left(server)
    go.set()
    assert len(receive(server, ask(server, "ash"))) == 1
    assert not seen[1:] or "dropped" in site.names()
    assert nothing_left(server)


def test_a_message_nobody_fetched_is_withdrawn(server: FleetServer, new_site: NewSite) -> None:
    assert receive(server, ask(server, "ash"), timeout=0.05) == []
    assert nothing_left(server)
    site = new_site(server, "ash").start()
    until(lambda: "active" in site.names())
    time.sleep(0.2)
    assert "received" not in site.names()


def test_whoever_stops_iterating_withdraws_the_rest(server: FleetServer, new_site: NewSite) -> None:
    new_site(server, "ash").start()
    replies = server.grid.send_and_receive(ask(server, "ash", "birch"), timeout=PATIENCE_S)
    next(replies)
    replies.close()
    assert nothing_left(server)


def test_replies_wait_at_their_sites_until_there_is_room(
    server: FleetServer, new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower, "REPLIES_AT_ONCE", 1)
    at_work = threading.Barrier(len(SITES) + 1)
    for name in SITES:
        new_site(server, name, echo(lambda message: at_work.wait(PATIENCE_S) and None)).start()
    replies = server.grid.send_and_receive(ask(server, *SITES), timeout=PATIENCE_S)
    seen: list[Message] = []
    thread = threading.Thread(target=lambda: seen.append(next(replies)), daemon=True)
    thread.start()
    at_work.wait(PATIENCE_S)
    thread.join(PATIENCE_S)
    time.sleep(0.5)
    assert len(server._links.uploads) + len(server._links.complete) == 1
    assert len([*seen, *replies]) == len(SITES)
    assert nothing_left(server)


def test_flowers_two_step_way_of_asking(server: FleetServer, new_site: NewSite) -> None:
    new_site(server, "ash").start()
    ids = server.grid.push_messages(ask(server, "ash", "birch"))
    replies: list[Message] = []
    until(lambda: bool(replies.extend(server.grid.pull_messages(ids)) or replies))
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids[:1]
    assert server.grid.pull_messages(ids) == []


def test_stop_ends_waiting_and_flowers_samplers(server: FleetServer) -> None:
    sending = Sending(server, ask(server, "ash"))
    until(lambda: bool(server._links.message_ins_store))
    started = time.monotonic()
    server.grid.stop()
    assert sending.end() == []
    assert time.monotonic() - started < 5
    with pytest.raises(RunStopped):
        server.grid.get_node_ids()


def test_a_bug_in_the_app_says_no_more_than_its_kind(server: FleetServer, new_site: NewSite) -> None:
    def fail(message: Message) -> None:
        raise ValueError("patient 17")

    new_site(server, "ash", echo(fail)).start()
    (reply,) = receive(server, ask(server, "ash"))
    assert reply.has_error()
    assert "patient" not in reply.error.reason
    assert nothing_left(server)


def test_a_stopped_site_leaves(server: FleetServer, new_site: NewSite) -> None:
    site = new_site(server, "ash").start()
    until(lambda: server.grid.online() == {"ash"})
    site.stop.set()
    assert site.end() == "stopped"
    assert server.grid.online() == set()


# --- what gets lost


def test_a_restarted_site_gets_its_message_again(server: FleetServer, call: Any, new_site: NewSite) -> None:
    crashed = call("ash")
    sending = Sending(server, ask(server, "ash", "birch"))
    crashed.confirm(take_message(crashed))
    new_site(server, "ash").start()
    new_site(server, "birch").start()
    assert len(sending.end()) == 2
    assert server.grid.stats.resent == 1
    assert nothing_left(server)


def test_a_message_that_was_lost_on_the_way_is_delivered_again(server: FleetServer, call: Any) -> None:
    calls = call("ash")
    sending = Sending(server, ask(server, "ash"))
    first, second = take_message(calls), take_message(calls)
    assert first.metadata.message_id == second.metadata.message_id
    calls.confirm(second)
    assert calls.receive() is None
    calls.push(answer(second), 0.0)
    assert len(sending.end()) == 1
    assert server.grid.stats.resent == 0


def test_an_interrupted_upload_goes_on_where_it_stopped(
    server: FleetServer, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = call("ash")
    sending = Sending(server, ask(server, "ash"))
    message = take_message(calls)
    calls.confirm(message)
    reply, pushed = answer(message), []
    push_object = calls._client.PushObject

    def dropped_after_one(request: Any) -> Any:
        if len(pushed) == 1:
            pushed.append("dropped")
            raise httpx.ReadError("connection lost")
        pushed.append(request.object_id)
        return push_object(request)

    monkeypatch.setattr(calls._client, "PushObject", dropped_after_one)
    with pytest.raises(httpx.ReadError):
        calls.push(reply, 0.0)
    calls.push(reply, 0.0)
    assert len(sending.end()) == 1
    assert len(pushed) == len(set(pushed))  # nothing was sent twice


def test_a_restarted_server_is_joined_again(keys: Path, new_site: NewSite) -> None:
    with new_server(keys) as first:
        port = first.port
        site = new_site(first, "ash").start()
        until(lambda: first.grid.online() == {"ash"})
    until(lambda: "connecting" in site.names())
    with new_server(keys, port) as second:
        until(lambda: second.grid.online() == {"ash"})
        assert len(receive(second, ask(second, "ash"))) == 1
    assert site.names().count("active") == 2


def test_a_reply_to_a_server_that_is_gone_is_dropped(keys: Path, new_site: NewSite) -> None:
    go, at_work = threading.Event(), threading.Event()

    def work(message: Message) -> None:
        at_work.set()
        go.wait(PATIENCE_S)

    with new_server(keys) as first:
        port = first.port
        site = new_site(first, "ash", echo(work)).start()
        sending = Sending(first, ask(first, "ash"))
        assert at_work.wait(PATIENCE_S)
        first.grid.stop()
        sending.end()
    with new_server(keys, port) as second:
        go.set()
        until(lambda: second.grid.online() == {"ash"})
        assert len(receive(second, ask(second, "ash"))) == 1
    assert "dropped" in site.names()


# --- what a site may not do


def test_a_site_reads_only_its_own_messages(server: FleetServer, call: Any) -> None:
    ash, birch = call("ash"), call("birch")
    sending = Sending(server, ask(server, "ash"), timeout=2)
    message = take_message(ash)
    assert birch.receive() is None
    run_id, question = message.metadata.run_id, message.metadata.message_id
    (objects,) = server._links.readable[server.grid.node_of("ash")].values()
    for each in objects:
        request = PullObjectRequest(node=birch._node, run_id=run_id, object_id=each)
        assert refused(lambda request=request: birch._client.PullObject(request)) == (409, "message-gone")
    foreign = ConfirmMessageReceivedRequest(node=birch._node, run_id=run_id, message_object_id=question)
    assert refused(lambda: birch._client.ConfirmMessageReceived(foreign)) == (409, "message-gone")
    assert ash.receive() is not None  # it was not deleted
    as_ash = PullObjectRequest(node=ash._node, run_id=run_id, object_id=next(iter(objects)))
    assert refused(lambda: birch._client.PullObject(as_ash))[0] == 401
    sending.end()


def test_a_site_answers_only_for_itself(server: FleetServer, call: Any) -> None:
    ash, birch = call("ash"), call("birch")
    sending = Sending(server, ask(server, "ash"), timeout=3)
    message = take_message(ash)
    reply = answer(message)
    reply.metadata.__dict__["_message_id"] = reply.object_id

    def push(sender: Any, node: Any) -> Any:
        return sender._client.PushMessages(
            PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
            )
        )

    assert refused(lambda: push(birch, birch._node)) == (403, "sender-mismatch")
    assert refused(lambda: push(birch, ash._node))[0] == 401
    own_name = answer(message)
    own_name.metadata.__dict__["_src_node_id"] = birch._node.node_id
    assert refused(lambda: birch.push(own_name, 0.0)) == (409, "message-gone")
    session = push(ash, ash._node).session_id
    some_id, some = next(iter(get_all_nested_objects(reply).items()))
    foreign = PushObjectRequest(
        node=birch._node,
        run_id=message.metadata.run_id,
        session_id=session,
        object_id=some_id,
        object_content=some.deflate(),
    )
    assert refused(lambda: birch._client.PushObject(foreign)) == (409, "message-gone")
    ash.push(reply, 0.0)
    (arrived,) = sending.end()
    assert server.grid.sites[arrived.metadata.src_node_id] == "ash"


def test_what_cannot_be_unpacked_is_an_error_of_that_reply(server: FleetServer, call: Any) -> None:
    calls = call("ash")
    sending = Sending(server, ask(server, "ash"))
    message = take_message(calls)
    calls.push(Message(RecordDict({"head": ConfigRecord({"index": "["})}), reply_to=message), 0.0)
    (reply,) = sending.end()
    assert (reply.error.code, reply.error.reason) == (flower.UNUSABLE_REPLY, "message-schema")
    assert nothing_left(server)


def test_a_reply_above_the_cap_is_refused_and_forgotten(server: FleetServer, new_site: NewSite) -> None:
    app = ClientApp()

    @app.train()
    def train(request: Message, context: Context) -> Message:
        return Message(RecordDict({"w": ArrayRecord([np.zeros(CAP // 4 + 1, np.float32)])}), reply_to=request)

    site = new_site(server, "ash", app).start()
    (reply,) = receive(server, ask(server, "ash"))
    assert reply.error.reason == "message-too-large"
    problem = site.end()
    assert isinstance(problem, UserError)
    assert problem.code == "message-too-large"
    assert nothing_left(server)


def test_an_unknown_run_is_refused(server: FleetServer, call: Any) -> None:
    calls = call("ash")
    request = PullObjectRequest(node=calls._node, run_id=99, object_id="0" * 64)
    assert refused(lambda: calls._client.PullObject(request)) == (409, "run-unknown")


# --- who gets in


def test_a_key_that_is_not_listed_is_told_so(server: FleetServer, new_site: NewSite) -> None:
    problem = new_site(server, "stranger").start().end()
    assert isinstance(problem, UserError)
    assert problem.code == "key-not-allowed"
    assert "stranger.crt" in problem.sentence


def test_a_server_of_another_root_is_not_trusted(server: FleetServer, keys: Path, new_site: NewSite) -> None:
    problem = new_site(server, "ash", folder=keys / "other").start().end()
    assert isinstance(problem, UserError)
    assert problem.code == "server-wrong-ca"


def test_a_server_of_another_name_is_not_trusted(keys: Path, tmp_path: Path, new_site: NewSite) -> None:
    issue_server(tmp_path, keys, "server", ["example.org"])
    with FleetServer(
        host="127.0.0.1",
        port=0,
        ca=keys / "ca.crt",
        certificate=tmp_path / "server.crt",
        private_key=tmp_path / "server.key",
        passphrase=None,
        sites={},
        max_message_bytes=CAP,
    ) as elsewhere:
        problem = new_site(elsewhere, "ash").start().end()
    assert isinstance(problem, UserError)
    assert problem.code == "server-name-mismatch"


def raw(server: FleetServer, context: ssl.SSLContext, request: bytes) -> bytes:
    """Whatever comes back on a bare TLS connection."""
    with (
        socket.create_connection(("127.0.0.1", server.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(request)
        return tls.recv(1 << 16)


def post(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


@pytest.mark.parametrize("certificate", [None, "other/ash"])
def test_without_a_certificate_of_the_consortium_nothing_is_heard(
    server: FleetServer, keys: Path, certificate: str | None
) -> None:
    context = ssl.create_default_context(cafile=keys / "ca.crt")
    if certificate:
        context.load_cert_chain(keys / f"{certificate}.crt", keys / f"{certificate}.key")
    try:
        heard = raw(server, context, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    except (ssl.SSLError, ConnectionError):
        heard = b""
    assert heard == b""


def site_context(keys: Path, site: str) -> ssl.SSLContext:
    return client_context(keys / "ca.crt", keys / f"{site}.crt", keys / f"{site}.key", None)


def test_only_tls_1_3(server: FleetServer, keys: Path) -> None:
    context = ssl.create_default_context(cafile=keys / "ca.crt")
    context.load_cert_chain(keys / "ash.crt", keys / "ash.key")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        raw(server, context, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/openapi.json",
        "/v1/fleet/register-node",
        "/v1/fleet/get-run",
        "/v1/fleet/get-fab",
        "/v1/control/start-run",
    ],
)
def test_nothing_else_is_served(server: FleetServer, keys: Path, path: str) -> None:
    for method in ("GET", "POST"):
        connection = http.client.HTTPSConnection("localhost", server.port, context=site_context(keys, "ash"))
        connection.request(method, path)
        assert connection.getresponse().status == 404
        connection.close()


def test_health(server: FleetServer, keys: Path) -> None:
    connection = http.client.HTTPSConnection("localhost", server.port, context=site_context(keys, "ash"))
    connection.request("GET", "/health")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b'{"status": "ok"}')
    connection.close()


def test_a_certificate_serves_its_own_key_only(server: FleetServer, keys: Path) -> None:
    calls = flower._FleetCalls(
        f"https://127.0.0.1:{server.port}", site_context(keys, "ash"), load_private_key(keys / "birch.key", None)
    )
    assert refused(calls.activate) == (403, "key-mismatch")
    calls.close()
    assert server.grid.online() == set()


def test_bodies_are_capped_before_they_are_read(server: FleetServer, keys: Path) -> None:
    calls = flower._FleetCalls("https://x", site_context(keys, "ash"), load_private_key(keys / "ash.key", None))
    request = httpx.Request("POST", "https://x")
    calls.intercept(type("Call", (), {"request": request}), lambda call: httpx.Response(200))
    signed = [f"{name}: {value}" for name, value in request.headers.items() if name not in ("host", "content-length")]
    path = "/v1/fleet/push-object"
    huge = raw(server, site_context(keys, "ash"), post(path, *signed, "Content-Length: 1000000000000"))
    assert b"413" in huge.splitlines()[0]
    endless = raw(server, site_context(keys, "ash"), post(path, *signed, "Transfer-Encoding: chunked"))
    assert b"411" in endless.splitlines()[0]


# --- clocks, starts


@pytest.mark.parametrize("off_s", [60, -600])
def test_a_wrong_clock_is_corrected_for_and_told(server: FleetServer, new_site: NewSite, off_s: int) -> None:
    site = new_site(server, "ash")
    site.session._calls.clock_offset = timedelta(seconds=off_s)  # type: ignore[attr-defined]
    site.start()
    assert len(receive(server, ask(server, "ash"))) == 1
    assert "clock" in site.names()


def test_a_clock_that_is_hours_off_ends_it(keys: Path, server: FleetServer, new_site: NewSite) -> None:
    session = new_site(server, "ash").session
    response = httpx.Response(401, headers={"date": "Mon, 01 Jan 2001 00:00:00 GMT"}, json={"detail": "no"})
    with pytest.raises(UserError, match="clock") as caught:
        session._refusal(response)
    assert caught.value.code == "clock-skew"


def test_a_port_in_use(server: FleetServer, keys: Path) -> None:
    with pytest.raises(UserError) as caught:
        new_server(keys, server.port)
    assert caught.value.code == "port-in-use"


def test_two_sites_with_one_key(keys: Path) -> None:
    with pytest.raises(UserError) as caught:
        FleetServer(
            host="127.0.0.1",
            port=0,
            ca=keys / "ca.crt",
            certificate=keys / "server.crt",
            private_key=keys / "server.key",
            passphrase=None,
            sites={"ash": public_key_of(keys / "ash.crt"), "birch": public_key_of(keys / "ash.crt")},
            max_message_bytes=CAP,
        )
    assert caught.value.code == "key-shared"


def write_expired(folder: Path, ca_folder: Path) -> None:
    """A server's certificate that ended yesterday, with its key."""
    key, now = ec.generate_private_key(ec.SECP384R1()), datetime.now(UTC)
    root = x509.load_pem_x509_certificate((ca_folder / "ca.crt").read_bytes())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now - timedelta(days=1))
        .sign(load_private_key(ca_folder / "ca.key", None), hashes.SHA384())
    )
    (folder / "server.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "server.key").touch(0o600)
    (folder / "server.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_an_expired_certificate_is_not_served(keys: Path, tmp_path: Path) -> None:
    write_expired(tmp_path, keys)
    with pytest.raises(UserError) as caught:
        FleetServer(
            host="127.0.0.1",
            port=0,
            ca=keys / "ca.crt",
            certificate=tmp_path / "server.crt",
            private_key=tmp_path / "server.key",
            passphrase=None,
            sites={},
            max_message_bytes=CAP,
        )
    assert caught.value.code == "certificate-expired"


def test_a_server_that_is_not_there(new_site: NewSite) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    site = new_site(port, "ash", give_up_after_s=0.5).start()
    problem = site.end()
    assert isinstance(problem, UserError)
    assert problem.code == "server-unreachable"
    assert "connecting" in site.names()


def test_a_reply_of_an_earlier_server_is_not_sent(keys: Path, call: Any, server: FleetServer) -> None:
    calls = call("ash")
    sending = Sending(server, ask(server, "ash"), timeout=1)
    reply = answer(take_message(calls))
    calls._node = flower.Node(node_id=4711)
    with pytest.raises(Gone):
        calls.push(reply, 0.0)
    sending.end()
