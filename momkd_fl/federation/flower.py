"""Flower, embedded: the only module that imports what is not ``flwr.app``, ``flwr.serverapp`` or ``flwr.clientapp``.

Server: Flower's in-memory link state and object store behind Flower's fleet router over mutual TLS, and a Grid that
works on them directly. Site: Flower's fleet client and one warm ClientApp.

Identical tensors in two replies
--------------------------------
Flower knows an object by the hash of its content, so identical tensors of two replies are one object, and its store
registers a reply's tree node by node, taking its lock anew for each. A reply that is consumed (deleted) while
another that shares objects with it is being registered takes away what the registration has already passed: the
parent's registration fails with KeyError, after the reply's header was stored, and whoever collects that reply meets
NoObjectInStoreError (tests/federation/test_flower_objects.py shows both). Three measures, each enough for a part:
registration holds the store's lock as a whole (:class:`_Store`); replies are packed with a random salt, so honest
sites never share objects; and a reply that names an object known from elsewhere is refused, so that nobody can ask
by its hash whether another site has sent something, or pass off what another site sent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from fastapi import FastAPI
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, TIMESTAMP_HEADER, SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.serverapp import Grid
from flwr.supercore import telemetry
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    NOOP_FEDERATION_ID,
    TaskType,
)
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.routers import health
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from flwr.supernode.fleet_http_client import FleetHttpClient
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from momkd_fl.errors import UserError
from momkd_fl.federation.packing import pack, unpack
from momkd_fl.federation.transport import (
    App,
    Gate,
    HttpsServer,
    Receive,
    Scope,
    Send,
    Traffic,
    client_context,
    refuse,
    server_context,
)
from momkd_fl.security.keystore import load_private_key
from momkd_fl.security.pki import check_certificate

FLEET = "/v1/fleet/"
FLEET_CALLS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "pull-object",
    "confirm-message-received",
    "push-messages",
    "push-object",
)
REQUEST_BYTES_MAX = 8 * 2**20
"""Of one request; messages travel in parts of 4 MiB."""
HEARTBEAT_S = 10.0
"""The shortest that Flower allows; a silent session lapses after twice that."""
UPLOADS_AT_ONCE = 4
"""Replies that may be in the server's memory at a time; other sites wait with theirs."""
STALLED_S = 30.0
"""An upload without progress for so long does not keep others waiting."""
UNUSABLE_REPLY = 101
"""Flower error code of a reply that was dropped by the server itself; its reason is a stable code."""
APP_ERROR = 2

Say = Callable[[str, dict[str, Any]], None]


def identify(task_id: int, run_id: int) -> None:
    """Flower builds messages only in a process that says which task it runs; there is one run per process."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, SUPERLINK_NODE_ID


# ---------------------------------------------------------------------------------------------------- server: state


class _Store(InMemoryObjectStore):
    """Registers a whole tree under one lock; nothing can be deleted in between."""

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        with self.lock_store:
            return super().preregister(run_id, object_tree)


@dataclass
class _Upload:
    """A reply on its way in: what is still missing of it, and its size so far."""

    header: Message
    session: str
    objects: tuple[str, ...]
    missing: set[str]
    bytes: int = 0
    progress: float = field(default_factory=time.monotonic)

    @property
    def node(self) -> int:
        return int(self.header.metadata.src_node_id)

    @property
    def question(self) -> str:
        return str(self.header.metadata.reply_to_message_id)


class _Links(InMemoryLinkState):
    """Flower's link state with what it lacks: take-over, ownership of objects, and replies that announce themselves.

    ``changed`` is notified when a reply is complete or a site has come back.
    """

    def __init__(self, store: _Store) -> None:
        super().__init__(NoOpFederationManager(), store)
        self.changed = threading.Condition(self.lock)
        self.sessions: dict[int, int] = {}
        self.readable: dict[int, dict[str, frozenset[str]]] = {}
        self.uploads: dict[str, _Upload] = {}
        self.complete: dict[str, _Upload] = {}
        self.unusable: dict[str, str] = {}

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """The newest signed activation wins: a crashed site comes back before its old session has lapsed."""
        with self.lock:
            self.deactivate_node(node_id)
            if not super().activate_node(node_id, heartbeat_interval):
                return False
            self.sessions[node_id] = self.sessions.get(node_id, 0) + 1
            for upload in [upload for upload in self.uploads.values() if upload.node == node_id]:
                self._forget(upload)
            self.changed.notify_all()
            return True

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        """A reply may name no object that is known from elsewhere; sent again, it goes on where it stopped."""
        question = message.metadata.reply_to_message_id
        if not question:
            stored: tuple[bool, list[str]] = super().store_message_and_object_tree(message, object_tree, session_id)
            return stored
        objects = tuple(dict.fromkeys(node.object_id for node in iterate_object_tree(object_tree)))
        with self.lock:
            before = self.uploads.get(question) or self.complete.get(question)
            known = before.objects if before is not None and before.header.metadata == message.metadata else ()
            if any(each in self.object_store and each not in known for each in objects):
                return False, []
            ok, missing = super().store_message_and_object_tree(message, object_tree, session_id)
            if ok and question not in self.complete:
                carried = before.bytes if before is not None else 0
                self.uploads[question] = _Upload(message, session_id, objects, set(missing), carried)
            return ok, missing

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        """One object of a reply (the coordinator's own messages do not come this way)."""
        stored: bool = super().store_object(run_id, session_id, object_id, object_content)
        with self.lock:
            upload = next((each for each in self.uploads.values() if each.session == session_id), None)
            if stored and upload is not None:
                upload.missing.discard(object_id)
                upload.bytes += len(object_content)
                upload.progress = time.monotonic()
                if not upload.missing:
                    self.complete[upload.question] = self.uploads.pop(upload.question)
                    self.changed.notify_all()
        return stored

    def upload_of(self, node: int, session_id: str) -> _Upload | None:
        """The upload a site may add to under this session."""
        with self.lock:
            return next(
                (each for each in self.uploads.values() if each.session == session_id and each.node == node), None
            )

    def busy(self, question: str) -> bool:
        """Whether a new upload has to wait."""
        now = time.monotonic()
        with self.lock:
            held = len(self.complete) + sum(now - each.progress < STALLED_S for each in self.uploads.values())
            return held >= UPLOADS_AT_ONCE and question not in self.uploads and question not in self.complete

    def drop(self, upload: _Upload, code: str) -> None:
        """Refuse a reply for good."""
        with self.lock:
            self._forget(upload)
            self.unusable[upload.question] = code
            self.changed.notify_all()

    def cancel(self, question: str, node: int) -> None:
        """Forget a message and all that belongs to it, answered or not."""
        with self.lock:
            for upload in (self.uploads.get(question), self.complete.pop(question, None)):
                if upload is not None:
                    self._forget(upload)
            self.unusable.pop(question, None)
            self.readable.get(node, {}).pop(question, None)
            self.delete_messages({question})
            self.object_store.delete(question)

    def _forget(self, upload: _Upload) -> None:
        self.uploads.pop(upload.question, None)
        reply = upload.header.metadata.message_id
        self.message_res_store.pop(reply, None)
        self.message_ins_id_to_message_res_id.pop(upload.question, None)
        self.object_store.delete(reply)


class _Ownership:
    """After authentication: a site reads and answers its own messages only.

    Flower checks who is asking, but neither whether an object belongs to a message for that node, nor whether a
    reply's sender is the node that pushes it, nor whether a confirmed (deleted) message was that node's.
    """

    def __init__(self, app: App, links: _Links, run_id: int, message_bytes_max: int) -> None:
        self._app, self._links, self._run_id, self._message_bytes_max = app, links, run_id, message_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        request = scope.get("state", {}).get("protobuf_request") if scope["type"] == "http" else None
        status, detail = self._verdict(request)
        if status:
            await refuse(send, status, detail)
        else:
            await self._app(scope, receive, send)

    def _verdict(self, request: Any) -> tuple[int, str]:
        if isinstance(request, PushMessagesRequest):
            return self._may_push_message(request)
        if isinstance(request, PushObjectRequest | PullObjectRequest | ConfirmMessageReceivedRequest):
            if request.run_id != self._run_id:
                return 409, "run-unknown"
            readable = self._links.readable.get(request.node.node_id, {})
            if isinstance(request, PushObjectRequest):
                return self._may_push_object(request)
            if isinstance(request, PullObjectRequest):
                allowed = any(request.object_id in objects for objects in list(readable.values()))
            else:
                allowed = request.message_object_id in readable
            return (0, "") if allowed else (409, "message-gone")
        return 0, ""

    def _may_push_message(self, request: PushMessagesRequest) -> tuple[int, str]:
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            return 400, "message-schema"
        metadata = request.messages_list[0].metadata
        if metadata.src_node_id != request.node.node_id:
            return 403, "sender-mismatch"
        if metadata.run_id != self._run_id:
            return 409, "run-unknown"
        asked = self._links.message_ins_store.get(metadata.reply_to_message_id)
        if asked is None or asked.metadata.dst_node_id != request.node.node_id:
            return 409, "message-gone"
        if metadata.message_id != request.message_object_trees[0].object_id:
            return 400, "message-schema"
        return (503, "busy") if self._links.busy(metadata.reply_to_message_id) else (0, "")

    def _may_push_object(self, request: PushObjectRequest) -> tuple[int, str]:
        upload = self._links.upload_of(request.node.node_id, request.session_id)
        if upload is None:
            return 409, "message-gone"
        if upload.bytes + len(request.object_content) > self._message_bytes_max:
            self._links.drop(upload, "message-too-large")
            return 413, "message-too-large"
        return 0, ""


# ----------------------------------------------------------------------------------------------------- server: grid


@dataclass
class GridStats:
    """Bytes by site (request and response bodies), and messages sent again after a site came back."""

    traffic: dict[str, Traffic]
    resent: int = 0


@dataclass
class _Question:
    """A message that has no answer yet; kept so that it can be sent again."""

    message: Message
    node: int
    session: int


class FleetGrid(Grid):
    """Flower's Grid over the sites that connect (made by :class:`FleetServer`)."""

    def __init__(self, links: _Links, run: Any, sites: Mapping[int, str], traffic: dict[str, Traffic]) -> None:
        self._links, self._run, self._stopped = links, run, False
        self.sites = dict(sites)
        self.stats = GridStats(traffic)
        self._nodes = {site: node for node, site in sites.items()}

    @property
    def run(self) -> Any:
        """The only run of this process."""
        return self._run

    def set_run(self, run: Any) -> None:
        """Flower calls this; there is only one run."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message of this run."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def node_of(self, site: str) -> int:
        """Node id of a site on the allow-list."""
        return self._nodes[site]

    def online(self) -> set[str]:
        """Sites with a live session."""
        return {self.sites[node] for node in self._links.get_nodes(self._run.run_id) if node in self.sites}

    def get_node_ids(self) -> list[int]:
        """Nodes with a live session; raises KeyboardInterrupt once stopped, because Flower's samplers loop on this."""
        if self._stopped:
            raise KeyboardInterrupt
        return sorted(self._nodes[site] for site in self.online())

    def stop(self) -> None:
        """Waiting calls return with what they have."""
        with self._links.changed:
            self._stopped = True
            self._links.changed.notify_all()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send; the ids serve :meth:`pull_messages`."""
        known: dict[tuple[int, ...], Any] = {}
        return [self._send(message, known) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Complete replies to these messages; each is given out once."""
        replies = (self._take(question) for question in message_ids)
        return [reply for reply in replies if reply is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send all at once, yield each reply when it is complete; what is unanswered at the end is withdrawn.

        Parameters
        ----------
        messages : iterable of Message
        timeout : float, optional
            Seconds from the first request for a reply; None waits until every site has answered or :meth:`stop`.

        Notes
        -----
        A site that restarts meanwhile is sent its message again. A message that was not answered in time is
        cancelled: a site that returns late does not train for a round that is over. No more than UPLOADS_AT_ONCE
        replies are held; they leave the server's memory as they are yielded.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        known: dict[tuple[int, ...], Any] = {}
        pending: dict[str, _Question] = {}
        messages = list(messages)  # their records have to outlive ``known``
        try:
            for message in messages:
                node = message.metadata.dst_node_id
                session = self._links.sessions.get(node, 0)
                pending[self._send(message, known)] = _Question(message, node, session)
            while pending and self._wait(pending, deadline):
                self._send_again(pending, known)
                for question in list(pending):
                    reply = self._take(question)
                    if reply is not None:
                        del pending[question]
                        yield reply
        finally:
            for question, asked in pending.items():
                self._links.cancel(question, asked.node)

    def _wait(self, pending: Mapping[str, _Question], deadline: float | None) -> bool:
        """Until something can be done; False when it is over."""
        links = self._links
        with links.changed:
            while not self._stopped:
                if any(question in links.complete or question in links.unusable for question in pending):
                    return True
                if any(links.sessions.get(asked.node, 0) != asked.session for asked in pending.values()):
                    return True
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                links.changed.wait(left)
        return False

    def _send_again(self, pending: dict[str, _Question], known: dict[tuple[int, ...], Any]) -> None:
        """Flower delivers once: whoever has restarted has lost its message."""
        for question, asked in list(pending.items()):
            session = self._links.sessions.get(asked.node, 0)
            if session == asked.session or question in self._links.complete:
                continue
            first = asked.session == 0 and not self._delivered(question)
            if first:  # it had never connected: the message still waits for it
                asked.session = session
                continue
            self._links.cancel(question, asked.node)
            del pending[question]
            pending[self._send(asked.message, known)] = _Question(asked.message, asked.node, session)
            self.stats.resent += 1

    def _delivered(self, question: str) -> bool:
        stored = self._links.message_ins_store.get(question)
        return stored is not None and stored.metadata.delivered_at != ""

    def _send(self, message: Message, known: dict[tuple[int, ...], Any]) -> str:
        links, run_id = self._links, self._run.run_id
        metadata = message.metadata
        packed = Message(
            pack(message.content, salted=False, known=known),
            metadata.dst_node_id,
            metadata.message_type,
            ttl=metadata.ttl,
            group_id=metadata.group_id,
        )
        with no_object_id_recompute():
            question: str = packed.object_id
            packed.metadata.__dict__["_message_id"] = question
            tree, objects = get_object_tree(packed), get_all_nested_objects(packed)
            with links.lock:
                links.readable.setdefault(metadata.dst_node_id, {})[question] = frozenset(objects)
                session = links.start_session(run_id)
                ok, missing = links.store_message_and_object_tree(remove_content_from_message(packed), tree, session)
                if not ok:
                    raise RuntimeError(f"Flower refused a message to node {metadata.dst_node_id}")
                for each in missing:
                    links.store_object(run_id, session, each, objects[each].deflate())
        return question

    def _take(self, question: str) -> Message | None:
        """The complete reply to a message, removed from the server's memory."""
        links = self._links
        with links.lock:
            upload, code = links.complete.get(question), links.unusable.get(question)
            if upload is None and code is None:
                return None
            asked = links.message_ins_store[question]
            if upload is None:
                links.cancel(question, asked.metadata.dst_node_id)
                return Message(Error(UNUSABLE_REPLY, code), reply_to=asked)
            contents = {each: links.object_store.get(each) for each in upload.objects}
            links.cancel(question, upload.node)
        header = upload.header
        if header.has_error():
            return header
        try:
            inflated = inflate_object_from_contents(header.metadata.message_id, contents)
            content = unpack(inflated.content)
        except Exception:  # whatever malformed bytes make Flower raise, they are the sender's fault
            return Message(Error(UNUSABLE_REPLY, "message-schema"), reply_to=asked)
        # The header was checked against the authenticated node; the metadata inside the object was not.
        return Message(content=content, metadata=header.metadata)


class FleetServer:
    """The coordinator's end: listens from ``__enter__`` to ``__exit__``. One per process.

    Parameters
    ----------
    host, port
        Where to listen; port 0 takes a free one, see :attr:`port`.
    ca, certificate, private_key : Path
        PEM files; the key is EC P-384.
    passphrase : bytes or None
    sites : mapping
        The allow-list: public key by site name.
    max_message_bytes : int
        Largest reply that is accepted.

    Raises
    ------
    UserError
        ``certificate-expired`` and others of security/pki.py, those of security/keystore.py, ``port-in-use``,
        ``cannot-listen``, ``key-shared`` (two sites, one key).
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        ca: Path,
        certificate: Path,
        private_key: Path,
        passphrase: bytes | None,
        sites: Mapping[str, EllipticCurvePublicKey],
        max_message_bytes: int,
    ) -> None:
        logging.getLogger("flwr").setLevel(logging.CRITICAL)  # it logs per message, with ids
        check_certificate(certificate, ca)
        load_private_key(private_key, passphrase)
        context = server_context(ca, certificate, private_key, passphrase)
        links = _Links(_Store())
        traffic = {site: Traffic() for site in sites}
        self._links, self._run = links, _start_run(links)
        names = _register(links, sites)
        gate = Gate(
            _make_app(links, self._run.run_id, max_message_bytes),
            ["/health", *(FLEET + call for call in FLEET_CALLS)],
            {public_key_to_bytes(key): site for site, key in sites.items()},
            FLEET_HTTP_PUBLIC_KEY_HEADER,
            public_key_to_bytes,
            REQUEST_BYTES_MAX,
            traffic,
        )
        self._https = HttpsServer(gate, host, port, context)
        self.port = self._https.port
        self.grid = FleetGrid(links, self._run, names, traffic)
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._keep_task_alive, name="task-heartbeat", daemon=True)

    def __enter__(self) -> FleetServer:
        self._https.start()
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.grid.stop()
        self._ended.set()
        self._links.finish_task(
            self._run.primary_task_id, SubStatus.COMPLETED if kind is None else SubStatus.FAILED, ""
        )
        self._https.stop()

    def _keep_task_alive(self) -> None:
        """Flower fails a run whose task is silent for a minute."""
        while not self._ended.wait(10):
            self._links.acknowledge_task_heartbeat(self._run.primary_task_id)


def _start_run(links: _Links) -> Any:
    run_id = links.create_run(
        "momkd/momkd", "0", "0" * 64, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
    )
    run = links.get_run_info(run_ids=[run_id])[0]
    if not (links.claim_task(run.primary_task_id) and links.activate_task(run.primary_task_id)):
        raise RuntimeError("Flower did not start the run")
    identify(run.primary_task_id, run_id)
    return run


def _register(links: _Links, sites: Mapping[str, EllipticCurvePublicKey]) -> dict[int, str]:
    names: dict[int, str] = {}
    for site, key in sites.items():
        raw = public_key_to_bytes(key)
        other = links.get_node_id_by_public_key(raw)
        if other is not None:
            raise UserError(
                "key-shared", f"Sites {names[other]} and {site} have the same key. Give every site a key of its own."
            )
        names[links.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, raw, 0, name=site)] = site
    return names


def _make_app(links: _Links, run_id: int, message_bytes_max: int) -> FastAPI:
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
            Middleware(_Ownership, links=links, run_id=run_id, message_bytes_max=message_bytes_max),
        ],
    )
    app.state.linkstate_factory = SimpleNamespace(state=lambda: links)
    app.state.enable_supernode_auth = True  # without it, anybody may register a node
    app.include_router(health.router)
    app.include_router(fleet_router)
    return app


# ------------------------------------------------------------------------------------------------------------- site


class _Gone(Exception):
    """The server no longer wants what this was about."""


class _SignedAt:
    """Signs requests with the server's time: Flower refuses a clock more than five seconds ahead."""

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key = key
        self._encoded = b64encode(public_key_to_bytes(key.public_key())).decode()
        self.offset = timedelta()

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Add Flower's three headers."""
        stamp = (datetime.now(UTC) + self.offset).isoformat()
        context.request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = self._encoded
        context.request.headers[TIMESTAMP_HEADER] = stamp
        context.request.headers[FLEET_HTTP_SIGNATURE_HEADER] = b64encode(
            sign_message(self._key, stamp.encode("ascii"))
        ).decode()
        return call_next(context)


CLOCK_OFF_MAX_S = 3600.0
POLL_MIN_S = 0.05


class SiteSession:
    """A site's end: connects outward only, keeps one ClientApp warm, survives restarts of either side.

    Parameters
    ----------
    url : str
        ``https://host:port``.
    ca, certificate, private_key : Path
    passphrase : bytes or None
    poll_max_s : float
        Longest pause between two questions when idle.
    give_up_after_s : float
        How long a server may be silent.
    say : callable
        Told (event, fields): ``connecting`` (waited_s, reason), ``active``, ``clock`` (off_s), ``waiting``,
        ``received`` (kind, round), ``sent`` (kind, round, seconds), ``dropped`` (reason), ``finished``, ``stopped``.

    Raises
    ------
    UserError
        Of security/pki.py and security/keystore.py.
    """

    def __init__(
        self,
        url: str,
        *,
        ca: Path,
        certificate: Path,
        private_key: Path,
        passphrase: bytes | None,
        poll_max_s: float,
        give_up_after_s: float,
        say: Say,
    ) -> None:
        check_certificate(certificate, ca)
        key = load_private_key(private_key, passphrase)
        self._url, self._ca, self._certificate, self._say = url, ca, certificate, say
        self._poll_max_s, self._give_up_after_s = poll_max_s, give_up_after_s
        self._public_key = public_key_to_bytes(key.public_key())
        self._signed = _SignedAt(key)
        context = client_context(ca, certificate, private_key, passphrase)
        self._client = FleetHttpClient(url, verify=context, timeout=60.0, interceptors=[self._signed])
        self._node: Node | None = None
        self._reached = time.monotonic()
        self._refused = 0

    def run(self, app: ClientApp, context: Context, stop: threading.Event, is_last: Callable[[Message], bool]) -> str:
        """Take part until ``is_last`` says so of an answered message ('finished') or ``stop`` is set ('stopped').

        Raises
        ------
        UserError
            ``server-unreachable``, ``server-wrong-ca``, ``server-certificate-expired``, ``server-name-mismatch``,
            ``key-not-allowed``, ``clock-skew``, ``message-too-large``.
        """
        over = threading.Event()
        beat = threading.Thread(target=self._heartbeat, args=(over,), name="heartbeat", daemon=True)
        beat.start()
        self._reached = time.monotonic()
        try:
            ended = self._loop(app, context, stop, is_last)
        finally:
            over.set()
            beat.join(6)
            self._client.close()
        self._say(ended, {})
        return ended

    def _loop(self, app: ClientApp, context: Context, stop: threading.Event, is_last: Callable[[Message], bool]) -> str:
        pause_s = POLL_MIN_S
        while not stop.is_set():
            message = self._persist(stop, self._receive)
            if message is None:
                if stop.wait(pause_s * random.uniform(0.8, 1.2)):
                    break
                pause_s = min(pause_s * 1.3, self._poll_max_s)
                continue
            pause_s = POLL_MIN_S
            reply, seconds = self._answer(app, context, message)
            self._persist(stop, lambda: self._push(reply, seconds))  # noqa: B023
            if is_last(message):
                # No farewell to the server: a node that deactivates before its reply was collected loses it.
                return "finished"
        if self._node is not None:
            with contextlib.suppress(Exception):
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        return "stopped"

    def _answer(self, app: ClientApp, context: Context, message: Message) -> tuple[Message, float]:
        metadata = message.metadata
        told = {"kind": metadata.message_type, "round": metadata.group_id}
        self._say("received", told)
        context.run_id, context.node_id = metadata.run_id, metadata.dst_node_id
        started = time.monotonic()
        try:
            reply = app(message, context)
        except Exception as problem:  # the process stays; the coordinator learns the kind of error and no more
            reply = Message(Error(APP_ERROR, type(problem).__name__), reply_to=message)
        if reply.has_content():
            reply.content = pack(reply.content, salted=True)
        seconds = time.monotonic() - started
        self._told = {**told, "seconds": round(seconds, 3)}
        return reply, seconds

    def _persist(self, stop: threading.Event, step: Callable[[], Any]) -> Any:
        """``step`` until it succeeds, is pointless (None) or ``stop`` is set (None)."""
        back_off_s = 0.2
        while True:
            try:
                if self._node is None:
                    self._activate()
                result = step()
            except httpx.HTTPStatusError as problem:
                reason = self._refusal(problem.response)
                if reason is None:
                    return None
            except httpx.TransportError as problem:
                reason = self._trouble(problem)
            except _Gone as problem:
                self._say("dropped", {"reason": str(problem)})
                return None
            else:
                self._reached, self._refused = time.monotonic(), 0
                return result
            waited_s = time.monotonic() - self._reached
            if reason != "busy":
                self._say("connecting", {"url": self._url, "waited_s": round(waited_s, 1), "reason": reason})
            if waited_s > self._give_up_after_s:
                raise UserError(
                    "server-unreachable",
                    f"The server at {self._url} has not answered for {waited_s:.0f} s ({reason}). "
                    "Ask the coordinator whether it runs, and check the address and the firewall.",
                )
            if stop.wait(0.05 if reason == "busy" else back_off_s * random.uniform(0.7, 1.3)):
                return None
            back_off_s = min(back_off_s * 1.6, 2.0 if waited_s < 60 else 15.0)

    def _activate(self) -> None:
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_S)
        self._node = Node(node_id=self._client.ActivateNode(request).node_id)
        self._say("active", {})

    def _receive(self) -> Message | None:
        response = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if not response.messages_list:
            return None
        header = message_from_proto(response.messages_list[0])
        question, run_id = header.metadata.message_id, header.metadata.run_id
        contents: dict[str, bytes] = {}
        for each in iterate_object_tree(response.message_object_trees[0]):
            if each.object_id not in contents:
                request = PullObjectRequest(node=self._node, run_id=run_id, object_id=each.object_id)
                found = self._client.PullObject(request)
                if not found.object_available:
                    raise _Gone("message-gone")
                contents[each.object_id] = found.object_content
        message = inflate_object_from_contents(question, contents)
        message.metadata.__dict__["_message_id"] = question
        message.content = unpack(message.content)
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=question)
        )
        return message

    def _push(self, reply: Message, seconds: float) -> None:
        if self._node is None or reply.metadata.src_node_id != self._node.node_id:
            raise _Gone("server-restarted")
        run_id = reply.metadata.run_id
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[seconds],
                )
            )
            for each in response.objects_to_push:
                pushed = self._client.PushObject(
                    PushObjectRequest(
                        node=self._node,
                        run_id=run_id,
                        session_id=response.session_id,
                        object_id=each,
                        object_content=objects[each].deflate(),
                    )
                )
                if not pushed.stored:
                    raise _Gone("message-gone")
        self._say("sent", self._told)

    def _heartbeat(self, over: threading.Event) -> None:
        while not over.wait(HEARTBEAT_S * 0.3):
            node = self._node
            if node is not None:
                with contextlib.suppress(Exception):  # the main loop meets the same trouble and tells of it
                    self._client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_S))

    def _refusal(self, response: httpx.Response) -> str | None:
        """Why the server refused, to try again; None to give up this message; UserError to give up."""
        status = response.status_code
        detail = _detail(response)
        if status == 503:
            self._reached = time.monotonic()
            return "busy"
        if detail == "key-not-allowed":
            self._refused += 1
            if self._refused >= 3:
                raise UserError(
                    "key-not-allowed",
                    f"The coordinator at {self._url} does not know the key of {self._certificate}. Send it that "
                    "certificate, and ask to be put on the list of sites.",
                )
            return detail
        if status == 413:
            raise UserError(
                "message-too-large", "The coordinator refuses messages of this size (its max_message_mb)."
            )
        if status == 401:
            self._node = None
            self._correct_clock(response)
            return "session-ended"
        if status in (400, 404, 409):
            self._say("dropped", {"reason": detail})
            return None
        self._node = None
        return f"HTTP {status}"

    def _correct_clock(self, response: httpx.Response) -> None:
        try:
            server = parsedate_to_datetime(response.headers["date"])
        except (KeyError, ValueError):
            return
        offset = server - datetime.now(UTC)
        off_s = -offset.total_seconds()
        if abs(off_s) > CLOCK_OFF_MAX_S:
            raise UserError(
                "clock-skew",
                f"This machine's clock differs from the coordinator's by {off_s:+.0f} s. Set it (NTP), then start again.",
            )
        if abs(offset - self._signed.offset) > timedelta(seconds=2):
            self._signed.offset = offset
            self._say("clock", {"off_s": round(off_s)})

    def _trouble(self, problem: httpx.TransportError) -> str:
        """A reason to try again, or UserError for what trying again cannot mend."""
        cause: BaseException | None = problem
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise self._distrust(cause)
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {(cause.reason or 'connection closed').lower().replace('_', ' ')}"
        if isinstance(problem, httpx.ReadError | httpx.RemoteProtocolError):
            return "connection dropped"
        return type(problem).__name__

    def _distrust(self, problem: ssl.SSLCertVerificationError) -> UserError:
        if problem.verify_code == 10:
            return UserError(
                "server-certificate-expired",
                f"The certificate of the server at {self._url} has expired (or this machine's clock is wrong). "
                "Ask the coordinator for a new one.",
            )
        if problem.verify_code in (62, 64):
            return UserError(
                "server-name-mismatch",
                f"The server's certificate is not for the host in {self._url}. Use the name the coordinator gave.",
            )
        return UserError(
            "server-wrong-ca",
            f"The server at {self._url} does not have a certificate of {self._ca} ({problem.verify_message}). "
            "Check the address and tls.ca; a proxy may tunnel the connection, but not open it.",
        )


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


telemetry.FLWR_TELEMETRY_ENABLED = "0"  # for a process that imported Flower before this module
