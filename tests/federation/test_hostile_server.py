"""A coordinator with a valid certificate that sends everything it can: the client refuses, logs a code, and stays.

The client is a process of its own, as a hospital runs it, and reaches the server through a proxy's tunnel only.
"""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict, metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.supercore.task_identity import TaskIdentity

from momkd_fl.federation import flower
from momkd_fl.federation.flower import FleetServer
from momkd_fl.federation.messages import (
    EVALUATE,
    FINISH,
    HELLO,
    INITIALISE,
    PLAN,
    SHARED_SECTIONS,
    TRAIN,
    Evaluate,
    Finish,
    Hello,
    Initialise,
    Plan,
    Train,
    ask,
    site_code,
)
from momkd_fl.federation.transport import ANSWER_BYTES_MAX, Send, client_context, http_client, server_context
from momkd_fl.security.pki import public_key_of

pytestmark = pytest.mark.process

RUN = "small-0123abcd"
REFUSED_BY_FLOWER = "transport"
PATIENCE_S = 120.0


@dataclass
class Answer:
    """What the server says instead of the truth, to the next call of a kind."""

    call: str
    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    length: int | None = None


@dataclass
class Hostile:
    """A real server that lies when it is told to, and one real client process."""

    server: FleetServer
    party: Any
    proxy_port: int
    proxy_log: Path
    lies: deque[Answer] = field(default_factory=deque)

    @property
    def node(self) -> int:
        return self.server.grid.node_of("ash")

    def send(self, message: Message) -> Message:
        replies = list(self.server.grid.send_and_receive([message], timeout=PATIENCE_S))
        assert len(replies) == 1, f"no answer; the client said:\n{self.party.said('ash')}"
        return replies[0]

    def code(self, message: Message) -> str:
        """By which code the client refuses."""
        reply = self.send(message)
        assert reply.has_error(), "it was answered"
        return site_code(reply)

    def shared(self) -> dict[str, Any]:
        return dict(self.party.consortium.config().model_dump(mode="json", include=set(SHARED_SECTIONS)))

    def hello(self, run: str = RUN, **changes: Any) -> Message:
        body = Hello(federation={**self.shared(), **changes})
        return ask(HELLO, body, self.node, run=run, round=0, arrays={})

    def is_served(self) -> None:
        """The client answers an honest message."""
        reply = self.send(self.hello())
        assert not reply.has_error(), (reply.error, self.party.said("ash"))
        assert json.loads(str(reply.content["envelope"]["body"]))["site"] == "ash"

    def raw(self, content: RecordDict, kind: str = "train") -> Message:
        message = Message(content, dst_node_id=self.node, message_type="train", group_id="1")
        message.metadata.__dict__["_message_type"] = kind
        return message

    def logged(self) -> list[dict[str, Any]]:
        text = (self.party.consortium.state("ash") / "log.jsonl").read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def process(self) -> psutil.Process:
        return psutil.Process(self.party.processes.running["ash"].pid)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: Any, new_consortium: Any, party: Callable[..., Any]) -> Iterator[Hostile]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_task_id", "_run_id", "_node_id"):
            patch.setattr(TaskIdentity, name, None)
        patch.setattr(metadata, "validate_message_type", lambda kind: True)  # this side may send any
        consortium = new_consortium(tmp_path_factory.mktemp("hostile"), {"ash": "train"}, rounds={"quorum": 1})
        keys, log = consortium.keys, consortium.root / "proxy.log"
        script = Path(__file__).with_name("connect_proxy.py")
        proxy = subprocess.Popen([sys.executable, str(script), str(log)], stdout=subprocess.PIPE, text=True)
        assert proxy.stdout is not None
        port = int(proxy.stdout.readline())
        consortium.edit_site("ash", lambda raw: raw["connection"].update(proxy=f"http://127.0.0.1:{port}"))
        server = FleetServer(
            host="127.0.0.1",
            port=consortium.port,
            ca=keys / "root" / "ca.crt",
            certificate=keys / "server" / "server.crt",
            private_key=keys / "server" / "server.key",
            passphrase=None,
            sites={"ash": public_key_of(keys / "ash" / "ash.crt")},
            max_message_bytes=1 << 28,
            allow_list=lambda: (keys / "allow-list.json").read_bytes(),
        )
        made = Hostile(server, party(consortium), port, log)
        honest = flower._Fleet._serve

        async def serve(self: Any, scope: Any, receive: Any, send: Send) -> None:
            call = scope["path"].rpartition("/")[2]
            if made.lies and made.lies[0].call == call:
                await flower.read_body(receive, scope)
                await _lie(made.lies.popleft(), send)
            else:
                await honest(self, scope, receive, send)

        patch.setattr(flower._Fleet, "_serve", serve)
        try:
            with server:
                made.party.start_site("ash")
                made.is_served()
                yield made
        finally:
            proxy.terminate()
            proxy.communicate(timeout=10)


async def _lie(answer: Answer, send: Send) -> None:
    size = len(answer.body) if answer.length is None else answer.length
    headers = [(b"content-type", b"application/protobuf"), (b"content-length", str(size).encode()), *answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    for start in range(0, len(answer.body), 1 << 16):
        await send({"type": "http.response.body", "body": answer.body[start : start + (1 << 16)], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


# --- messages that are none of this protocol's


PROGRAM = ConfigRecord({"fab": b"PK\x03\x04 import os", "entry_point": "evil:main", "hash": "0" * 64})


@pytest.mark.parametrize(
    "kind",
    ["query", "query.run", "query.get_fab", "query.install", "train.fab", "train.__init__", "evaluate.code",
     "system", "reconnect", "query." + "x" * 5000],
)  # fmt: skip
def test_a_kind_of_message_that_nobody_serves(hostile: Hostile, kind: str) -> None:
    assert hostile.code(hostile.raw(RecordDict({"fab": PROGRAM, "envelope": PROGRAM}), kind)) == REFUSED_BY_FLOWER


@pytest.mark.parametrize("kind", [".", "query.", "query.os.system", "query.hello.hello"])
def test_a_kind_of_message_that_is_none(hostile: Hostile, kind: str) -> None:
    """There is nobody to answer to; it does not stand in the way of what comes after it."""
    message = hostile.raw(RecordDict({"fab": PROGRAM, "envelope": PROGRAM}), kind)
    assert not list(hostile.server.grid.send_and_receive([message], timeout=1.0))
    hostile.is_served()


def envelope(**changes: Any) -> ConfigRecord:
    body = Train(proximal_mu=0.0, learning_rate_share=1.0).model_dump_json()
    right = {"kind": "train", "protocol": 1, "run": RUN, "round": 1, "body": body}
    return ConfigRecord({name: value for name, value in {**right, **changes}.items() if value is not None})


DEEP = '{"a":' * 5000 + "1" + "}" * 5000


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"protocol": 0}, "message-version"),
        ({"protocol": 2}, "message-version"),
        ({"protocol": "1"}, "message-version"),
        ({"protocol": None}, "message-version"),
        ({"kind": "hello"}, "message-schema"),
        ({"kind": "evaluate"}, "message-schema"),
        ({"run": None}, "message-schema"),
        ({"round": "1"}, "message-schema"),
        ({"body": None}, "message-schema"),
        ({"body": b"\x80\x04\x95 a pickle"}, "message-schema"),
        ({"body": "{}"}, "message-schema"),
        ({"body": DEEP}, "message-schema"),
        ({"body": "x" * (1 << 21)}, "message-schema"),
        ({"body": '{"proximal_mu":0.0,"learning_rate_share":1.0,"hook":"os.system"}'}, "message-schema"),
        ({"body": '{"proximal_mu":NaN,"learning_rate_share":1.0}'}, "message-schema"),
    ],
)
def test_an_envelope_that_is_wrong(hostile: Hostile, changes: dict[str, Any], code: str) -> None:
    assert hostile.code(hostile.raw(RecordDict({"envelope": envelope(**changes)}))) == code


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (Array("float32", (1,), "numpy.ndarray", b""), "message-schema"),
        (Array("float32", (1 << 40,), "numpy.ndarray", header("(1099511627776,)")), "message-schema"),
        (Array("object", (1,), "numpy.ndarray", header("(1,)", "|O") + b"\x80\x04K\x01."), "message-schema"),
        (Array("float64", (1,), "numpy.ndarray", header("(1,)", "<f8") + b"\0" * 8), "message-schema"),
        (Array("float32", (1,), "pickle", header("(1,)") + b"\0" * 3), "message-schema"),
        (Array("float32", (1,), "numpy.ndarray", header("(1,)") + b"\0\0\xc0\x7f"), "message-not-finite"),
        (Array("float32", (-1,), "numpy.ndarray", header("(-1,)")), "message-schema"),
    ],
)
def test_an_array_that_is_wrong(hostile: Hostile, array: Array, code: str) -> None:
    for group in ("weights", "memory"):
        content = RecordDict({"envelope": envelope(), group: ArrayRecord({"histology": array})})
        assert hostile.code(hostile.raw(content)) == code


def test_groups_that_no_question_has(hostile: Hostile) -> None:
    good = ArrayRecord({"a": Array(np.zeros(1, np.float32))})
    for extra in ({"update": good}, {"scores": good}, {"weights": MetricRecord({"a": 1.0})}, {"x": ConfigRecord({})}):
        assert hostile.code(hostile.raw(RecordDict({"envelope": envelope(), **extra}))) == "message-schema"
    assert hostile.code(hostile.raw(RecordDict())) == "message-schema"
    heads = ConfigRecord({"heads": '{"ledger":{"lines":"many"}}', "signature": b"wrong"})
    assert hostile.code(hostile.raw(RecordDict({"envelope": envelope(), "anchor": heads}))) == "message-schema"


# --- messages of this protocol at the wrong time, for the wrong run, outside the contract


def test_runs_and_plans_that_were_not_agreed(hostile: Hostile) -> None:
    node = hostile.node
    hostile.is_served()
    train = Train(proximal_mu=0.0, learning_rate_share=1.0)
    assert hostile.code(ask(TRAIN, train, node, run="small-ffffffff", round=1, arrays={})) == "plan-missing"
    evaluate = Evaluate(split="test", threshold=None, calibration=None, final=True)
    assert hostile.code(ask(EVALUATE, evaluate, node, run="another-00000000", round=1, arrays={})) == "plan-missing"
    start = Initialise(step="slots", iteration=0)
    assert hostile.code(ask(INITIALISE, start, node, run="x", round=0, arrays={})) == "plan-missing"
    assert hostile.code(ask(PLAN, Plan(panel=[], architecture=""), node, run="x", round=0, arrays={})) == "plan-missing"
    over = Finish(outcome="finished", code="finished", sentence="It is over.")
    assert hostile.code(ask(FINISH, over, node, run="another-00000000", round=1, arrays={})) == "plan-missing"
    hostile.is_served()


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation_code": "evil"},
        {"model": {"architecture": "os.system"}},
        {"training": {"local_epochs": 10**9, "hook": "x"}},
        {"encoder": None},
        {"task": {"a": 1}},
    ],
)
def test_a_plan_with_settings_that_do_not_exist(hostile: Hostile, changes: dict[str, Any]) -> None:
    assert hostile.code(hostile.hello(**changes)) in {"config-unknown-key", "config-value"}


# --- answers that are no answers


def nested(depth: int) -> ObjectTree:
    tree = ObjectTree(object_id="leaf")
    for number in range(depth):
        above = ObjectTree(object_id=f"node{number}")
        above.children.append(tree)
        tree = above
    return tree


def pulled(tree: ObjectTree | None, error: bool = False) -> bytes:
    message = Message(RecordDict(), dst_node_id=1, message_type="train", group_id="1")
    message.metadata.__dict__["_message_id"] = "0" * 64
    if error:
        message.metadata.__dict__["_message_type"] = "train"
        message = Message(Error(1, "evil"), reply_to=message)
    found = PullMessagesResponse(messages_list=[message_to_proto(message)])
    if tree is not None:
        found.message_object_trees.append(tree)
    return bytes(found.SerializeToString())


WIDE = ObjectTree(object_id="root", children=[ObjectTree(object_id=str(n)) for n in range(5000)])
BOMB = gzip.compress(bytes(1 << 26))


def objects(**fields: Any) -> bytes:
    return bytes(PullObjectResponse(**fields).SerializeToString())


ANSWERS: dict[str, Callable[[], Answer]] = {
    "messages, no protobuf": lambda: Answer("pull-messages", b"\xff" * 100),
    "messages, a page": lambda: Answer("pull-messages", b"<html>captive portal</html>"),
    "messages, no objects": lambda: Answer("pull-messages", pulled(None)),
    "messages, deep": lambda: Answer("pull-messages", pulled(nested(40))),
    "messages, deeper": lambda: Answer("pull-messages", pulled(nested(95))),
    "messages, wide": lambda: Answer("pull-messages", pulled(WIDE)),
    "messages, an error": lambda: Answer("pull-messages", pulled(nested(1), error=True)),
    "messages, large": lambda: Answer("pull-messages", bytes(ANSWER_BYTES_MAX + 1)),
    "messages, a bomb": lambda: Answer("pull-messages", BOMB, headers=((b"content-encoding", b"gzip"),)),
    "messages, cut": lambda: Answer("pull-messages", b"short", length=100),
    "messages, 204": lambda: Answer("pull-messages", b"", 204),
    "messages, 307": lambda: Answer("pull-messages", b"", 307, ((b"location", b"http://127.0.0.1:9/inside"),)),
    "messages, 302": lambda: Answer("pull-messages", b"", 302, ((b"location", b"file:///etc/passwd"),)),
    "messages, 400": lambda: Answer("pull-messages", b"\xff", 400),
    "messages, 409": lambda: Answer("pull-messages", b'{"detail": ["not", "a", "word"]}', 409),
    "messages, 500": lambda: Answer("pull-messages", b"", 500),
    "object, no protobuf": lambda: Answer("pull-object", b"\xff" * 10),
    "object, empty": lambda: Answer("pull-object", objects(object_found=True, object_available=True)),
    "object, of a class that is none": lambda: Answer(
        "pull-object",
        objects(object_found=True, object_available=True, object_content=b'{"type":"os.system"}\0x'),
    ),
    "object, not there": lambda: Answer("pull-object", objects(object_found=False)),
    "object, large": lambda: Answer("pull-object", bytes(ANSWER_BYTES_MAX + 1)),
    "object, 307": lambda: Answer("pull-object", b"", 307, ((b"location", b"https://127.0.0.1:9/"),)),
    "confirmation": lambda: Answer("confirm-message-received", b"\xff" * 10),
    "reply": lambda: Answer("push-messages", b"\xff" * 10),
    "reply's object": lambda: Answer("push-object", b"\xff" * 10),
    "session": lambda: Answer("activate-node", b"\xff" * 10),
    "heartbeat": lambda: Answer("send-node-heartbeat", b"\xff" * 10),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_none(hostile: Hostile, name: str) -> None:
    """The client goes on and answers the honest message that follows; its memory has not grown by what was sent."""
    answer = ANSWERS[name]()
    before = hostile.process().memory_info().rss
    hostile.lies.append(answer)
    if answer.call == "activate-node":
        hostile.lies.appendleft(Answer("pull-messages", b'{"detail": "unauthenticated"}', 401))
    list(hostile.server.grid.send_and_receive([hostile.hello()], timeout=2.0))
    hostile.lies.clear()
    hostile.is_served()
    assert hostile.process().memory_info().rss - before < 1 << 27


def test_in_the_end_the_client_is_there_and_has_logged_codes_only(hostile: Hostile) -> None:
    hostile.is_served()
    assert hostile.process().is_running()
    codes = {line["code"] for line in hostile.logged() if line["event"] == "refused"}
    assert {"message-not-served", "message-schema", "message-version", "message-not-finite", "plan-missing"} <= codes
    said = hostile.party.said("ash")
    assert "evil" not in json.dumps(hostile.logged())
    assert "Traceback" not in said, said


# --- below the messages


def test_the_client_listens_to_nobody_and_talks_to_the_proxy_alone(hostile: Hostile) -> None:
    """Outbound only; what the proxy carries begins as a TLS handshake (record type 22), for the coordinator alone."""
    hostile.is_served()
    connections = hostile.process().net_connections("inet")
    assert connections
    assert {each.status for each in connections}.isdisjoint({psutil.CONN_LISTEN})
    assert {each.raddr.port for each in connections if each.raddr} == {hostile.proxy_port}
    lines = [line.split(" ") for line in hostile.proxy_log.read_text("utf-8").splitlines()]
    assert lines
    assert all(target == f"127.0.0.1:{hostile.server.port}" and first[:4] == "1603" for target, first in lines)


def test_a_server_that_speaks_an_older_tls_is_not_talked_to(hostile: Hostile) -> None:
    keys: Path = hostile.party.consortium.keys
    context = server_context(
        keys / "root" / "ca.crt", keys / "server" / "server.crt", keys / "server" / "server.key", None
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            try:
                context.wrap_socket(plain, server_side=True)
            except OSError:
                plain.close()

        threading.Thread(target=serve, daemon=True).start()
        own = client_context(keys / "root" / "ca.crt", keys / "ash" / "ash.crt", keys / "ash" / "ash.key", None)
        with http_client(own, 10.0) as client, pytest.raises(httpx.ConnectError):
            client.get(f"https://127.0.0.1:{listener.getsockname()[1]}/")
