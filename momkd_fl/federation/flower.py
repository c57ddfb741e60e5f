"""Flower, embedded: the only module that imports what is not ``flwr.app``, ``flwr.serverapp`` or ``flwr.clientapp``.

Server: Flower's in-memory link state and object store, its handlers of the fleet's calls and its authentication of
nodes, over mutual TLS. Site: Flower's fleet client. tests/federation/test_flower_symbols.py holds the contract.

Identical tensors in two replies
--------------------------------
Flower knows an object by the hash of its content, so identical tensors of two replies are one object, and its store
registers a reply's tree node by node, taking its lock anew for each. A reply that is consumed (deleted) while another
that shares objects with it is being registered takes away what the registration has already passed: it then fails
with KeyError, after the reply's header was stored, and whoever collects that reply meets NoObjectInStoreError
(tests/federation/test_flower_objects.py reproduces both). Three measures: a tree is registered under one lock
(:class:`_Store`); replies are packed with a random salt, so that honest sites never share objects; and a reply that
names an object known from elsewhere is refused, so that nobody can ask by its hash whether another site has sent
something, or pass off what another site sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from fastapi import HTTPException
from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, TIMESTAMP_HEADER, SubStatus
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore import telemetry
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    NOOP_FEDERATION_ID,
    TaskType,
)
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    UnexpectedObjectContentError,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.supernode.fleet_http_client import FleetHttpClient

from momkd_fl.errors import UserError
from momkd_fl.federation.grid import FleetGrid, Known
from momkd_fl.federation.messages import ARRAYS_BYTES_MAX
from momkd_fl.federation.packing import PART_BYTES, pack, unpack
from momkd_fl.federation.session import Gone, Say, Session, Unusable
from momkd_fl.federation.transport import (
    ALLOW_LIST,
    Gate,
    HttpsServer,
    Proxy,
    Receive,
    Scope,
    Send,
    Traffic,
    client_context,
    http_client,
    read_body,
    refuse,
    respond,
    server_context,
)
from momkd_fl.security.documents import DOCUMENT_BYTES_MAX
from momkd_fl.security.pki import check_certificate, private_key_of

Meet = Callable[[bytes | None, bytes | None], None]

__all__ = ["FleetGrid", "FleetServer", "SiteSession", "identify"]

telemetry.FLWR_TELEMETRY_ENABLED = "0"  # for a process that imported Flower before this module

FLEET, HEALTH = "/v1/fleet/", "/health"
REQUEST_BYTES_MAX = 2 * PART_BYTES
TIMEOUT_S = 60.0
OBJECTS_BESIDE_PARTS = 4
"""Message, its record dictionary, the head; the last part may be short."""
MESSAGE_BYTES_MAX = ARRAYS_BYTES_MAX + REQUEST_BYTES_MAX
MESSAGE_OBJECTS_MAX = ARRAYS_BYTES_MAX // PART_BYTES + OBJECTS_BESIDE_PARTS
"""Of one message to a site."""
HEARTBEAT_S = 10.0
"""The shortest that Flower allows; a silent session lapses after twice that."""
HOLD_S = 2.0
"""A question for messages is held so long before it is answered with none."""
REPLIES_AT_ONCE, REPLIES_MAX = 2, 16
"""Replies that come in, or wait to be taken, at a time: while the lines are quick, and at most."""
ROOM_S, QUICK_S, STALLED_S = 5.0, 5.0, 30.0
"""A site with a reply is kept waiting so long before it asks again; so long a line is taken for quick; without
progress so long, an upload no longer keeps others waiting."""
LENGTH_DELIMITED = 2
"""Protobuf's wire type of bytes."""
UNUSABLE_REPLY = 101
"""Flower error code of a reply that the server dropped; its reason is a stable code."""

Verdict = tuple[int, str] | None


def identify(task_id: int, run_id: int) -> None:
    """Flower builds messages only in a process that says which task it runs; there is one run per process."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, SUPERLINK_NODE_ID


class _Store(InMemoryObjectStore):
    """Registers a whole tree under one lock; nothing can be deleted in between."""

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        with self.lock_store:
            missing: list[str] = super().preregister(run_id, object_tree)
            return missing


@dataclass
class _Upload:
    """A reply on its way in: what is still missing of it, and its size so far."""

    header: Message
    session: str
    objects: tuple[str, ...]
    missing: set[str]
    bytes: int = 0

    @property
    def node(self) -> int:
        return int(self.header.metadata.src_node_id)

    @property
    def reply(self) -> str:
        return str(self.header.metadata.message_id)

    @property
    def question(self) -> str:
        return str(self.header.metadata.reply_to_message_id)


@dataclass
class _Admission:
    """Room for one reply: since when, and time of the last progress (monotonic, s)."""

    began: float
    moved: float


class _Links(InMemoryLinkState):
    """Flower's link state with what it lacks: take-over, a second delivery, ownership, news of what has arrived.

    Attributes
    ----------
    changed : Condition
        Notified when a reply is complete or a site has come back; its lock guards all that follows.
    ring : callable
        Tells the server's event loop that a message or room for a reply is there.
    readable : dict
        By node and question: ids of the objects of messages that the site has not confirmed yet.
    uploads, complete, admitted : dict
        Replies by question: on their way, all there, and the room that either takes.
    """

    def __init__(self, store: _Store) -> None:
        super().__init__(NoOpFederationManager(), store)
        self.changed = threading.Condition(self.lock)
        self.ring: Callable[[], None] = lambda: None
        self.closing = False
        self.run_id = 0
        self.readable: dict[int, dict[str, frozenset[str]]] = {}
        self.uploads: dict[str, _Upload] = {}
        self.complete: dict[str, _Upload] = {}
        self.admitted: dict[str, _Admission] = {}
        self._unusable: dict[str, str] = {}
        self._sessions: dict[int, int] = {}

    # What the grid asks

    def put(self, messages: Sequence[Message], known: Known) -> list[str]:
        """Store messages for their sites; returns their ids, the questions. What they share is hashed once."""
        with no_object_id_recompute():
            questions = [self._put(message, known) for message in messages]
        self.ring()
        return questions

    def _put(self, message: Message, known: Known) -> str:
        metadata = message.metadata
        packed = Message(
            pack(message.content, salted=False, known=known),
            metadata.dst_node_id,
            metadata.message_type,
            ttl=metadata.ttl,
            group_id=metadata.group_id,
        )
        question: str = packed.object_id
        packed.metadata.__dict__["_message_id"] = question
        tree, objects = get_object_tree(packed), get_all_nested_objects(packed)
        with self.lock:
            ok, missing = super().store_message_and_object_tree(remove_content_from_message(packed), tree, "")
            if not ok:
                raise RuntimeError(f"Flower refused a message to node {metadata.dst_node_id}")
            for each in missing:
                self.object_store.put(each, objects[each].deflate())
            self.readable.setdefault(metadata.dst_node_id, {})[question] = frozenset(objects)
        return question

    def take(self, question: str) -> Message | None:
        """The complete reply, removed from memory; None while there is none."""
        with self.lock:
            upload, code = self.complete.get(question), self._unusable.get(question)
            if upload is None and code is None:
                return None
            asked = self.message_ins_store[question]
            contents = {} if upload is None else {each: self.object_store.get(each) for each in upload.objects}
            self.withdraw(question)
        if upload is None:
            return Message(Error(UNUSABLE_REPLY, str(code)), reply_to=asked)
        header = upload.header
        if header.has_error():
            return header
        try:
            content = unpack(inflate_object_from_contents(upload.reply, contents).content)
        except Exception:  # whatever malformed bytes make Flower raise, they are the sender's fault
            return Message(Error(UNUSABLE_REPLY, "message-schema"), reply_to=asked)
        # The header was checked against the authenticated node; the metadata inside the object was not.
        return Message(content=content, metadata=header.metadata)

    def settled(self, question: str) -> bool:
        """Whether :meth:`take` would return something."""
        return question in self.complete or question in self._unusable

    def withdraw(self, question: str) -> None:
        """Forget a message and all that belongs to it, answered or not."""
        with self.lock:
            for upload in (self.uploads.get(question), self.complete.get(question)):
                if upload is not None:
                    self._forget(upload)
            self._unusable.pop(question, None)
            self.admitted.pop(question, None)
            asked = self.message_ins_store.get(question)
            if asked is not None:
                self.readable.get(asked.metadata.dst_node_id, {}).pop(question, None)
            self.delete_messages({question})
            self.object_store.delete(question)
        self.ring()

    def session_of(self, node: int) -> int:
        """How often a site's session has begun."""
        return self._sessions.get(node, 0)

    def confirmed(self, question: str) -> bool:
        """Whether the site has said that it holds the message."""
        with self.lock:
            asked = self.message_ins_store.get(question)
            return asked is not None and question not in self.readable.get(asked.metadata.dst_node_id, {})

    def nodes_online(self) -> set[int]:
        """Nodes with a live session."""
        online: set[int] = self.get_nodes(self.run_id)
        return online

    # What the sites' calls lead to

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """The newest signed activation counts: a crashed site comes back before its old session has lapsed."""
        with self.lock:
            self.deactivate_node(node_id)
            if not super().activate_node(node_id, heartbeat_interval):
                return False
            self._sessions[node_id] = self.session_of(node_id) + 1
            for upload in [upload for upload in self.uploads.values() if upload.node == node_id]:
                self._forget(upload)
            self.changed.notify_all()
            return True

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """Deliver; what was delivered but never confirmed was lost on the way and is delivered again."""
        with self.lock:
            for question in self.readable.get(node_id, {}):
                self.message_ins_store[question].metadata.delivered_at = ""
            messages: list[Message] = super().get_message_ins(node_id, limit, run_id=run_id)
            return messages

    def confirm(self, node: int, question: str) -> None:
        """The site holds the message: its objects are no longer needed."""
        with self.lock:
            self.readable.get(node, {}).pop(question, None)
            self.object_store.delete(question)

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        """A reply may name no object that is known from elsewhere; sent again, it goes on where it stopped."""
        question = message.metadata.reply_to_message_id
        objects = tuple(dict.fromkeys(node.object_id for node in iterate_object_tree(object_tree)))
        with self.lock:
            before = self.uploads.get(question) or self.complete.get(question)
            known = before.objects if before is not None and before.reply == message.metadata.message_id else ()
            if any(each in self.object_store and each not in known for each in objects):
                return False, []
            ok, missing = super().store_message_and_object_tree(message, object_tree, session_id)
            if ok and question not in self.complete:
                carried = before.bytes if before is not None else 0
                self.uploads[question] = _Upload(message, session_id, objects, set(missing), carried)
            return ok, missing

    def start_session(self, run_id: int) -> str:
        """Name an upload. (Flower's own upload sessions take two locks, in either order.)"""
        return secrets.token_hex(16)

    def preregister_object_tree(self, object_tree: ObjectTree, session_id: str) -> list[str]:
        """Objects that are still missing."""
        missing: list[str] = self.object_store.preregister(self.run_id, object_tree)
        return missing

    def store_part(self, upload: _Upload, object_id: str, content: bytes) -> bool:
        """One object of a reply, if it is what its id says."""
        try:
            self.object_store.put(object_id, content)
        except (NoObjectInStoreError, UnexpectedObjectContentError, ValueError):
            return False
        with self.lock:
            upload.missing.discard(object_id)
            upload.bytes += len(content)
            if room := self.admitted.get(upload.question):
                room.moved = time.monotonic()
            if not upload.missing and self.uploads.pop(upload.question, None) is not None:
                self.complete[upload.question] = upload
                self.changed.notify_all()
            return True

    def has_message_for(self, node: int) -> bool:
        """Whether a question for messages would be answered with one."""
        return bool(self.readable.get(node))

    def admit(self, question: str) -> bool:
        """Whether a reply may come in; takes the room for it."""
        now = time.monotonic()
        with self.lock:
            if question in self.admitted:
                return True
            under_way = [each for other, each in self.admitted.items() if other not in self.complete]
            moving = [each for each in under_way if now - each.moved < STALLED_S]
            quick = sum(now - each.began < QUICK_S for each in moving)
            held = len(self.complete)
            if held + quick >= REPLIES_AT_ONCE or held + len(moving) >= REPLIES_MAX:
                return False
            self.admitted[question] = _Admission(now, now)
            return True

    def upload_of(self, node: int, session_id: str) -> _Upload | None:
        """The upload that a site may add to under this session."""
        with self.lock:
            return next(
                (each for each in self.uploads.values() if each.session == session_id and each.node == node), None
            )

    def drop(self, upload: _Upload, code: str) -> None:
        """Refuse a reply for good."""
        with self.lock:
            self._forget(upload)
            self._unusable[upload.question] = code
            self.changed.notify_all()

    def _forget(self, upload: _Upload) -> None:
        self.uploads.pop(upload.question, None)
        self.complete.pop(upload.question, None)
        self.admitted.pop(upload.question, None)
        self.message_res_store.pop(upload.reply, None)
        self.message_ins_id_to_message_res_id.pop(upload.question, None)
        self.object_store.delete(upload.reply)
        self.ring()


class _Refused(Exception):  # noqa: N818 - an answer, not an error
    """A call that is answered with a status and a stable code."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class _Fleet:
    """Serves the fleet's calls with Flower's authentication and handlers, as a plain ASGI application.

    Flower's router and its stacked middlewares cost 4 ms of CPU a call, this 1; and registering nodes, asking for runs
    and fetching code are not among what it serves.

    A site reads and answers its own messages only. Flower checks who is asking, but neither whether an object
    belongs to a message for that node, nor whether a reply's sender is the node that pushes it, nor whether a message
    that is confirmed (deleted) was that node's.

    Questions for messages are held until there is one: a round starts at once, and idle sites cost next to nothing.
    Objects go out from the store itself and replies come in a few at a time, so that memory does not grow with the
    number of sites.
    """

    def __init__(self, links: _Links, message_bytes_max: int) -> None:
        self._links, self._message_bytes_max = links, message_bytes_max
        self._objects_max = message_bytes_max // PART_BYTES + OBJECTS_BESIDE_PARTS
        store = links.object_store
        self._calls: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "activate-node": (ActivateNodeRequest, lambda r: fleet_handlers.activate_node(r, links)),
            "deactivate-node": (DeactivateNodeRequest, lambda r: fleet_handlers.deactivate_node(r, links)),
            "send-node-heartbeat": (SendNodeHeartbeatRequest, lambda r: fleet_handlers.send_node_heartbeat(r, links)),
            "pull-messages": (PullMessagesRequest, lambda r: fleet_handlers.pull_messages(r, links, store)),
            "pull-object": (PullObjectRequest, self._object),
            "confirm-message-received": (ConfirmMessageReceivedRequest, self._confirm),
            "push-messages": (PushMessagesRequest, lambda r: fleet_handlers.push_messages(r, links)),
            "push-object": (PushObjectRequest, self._push_object),
        }
        self.paths = [HEALTH, *(FLEET + call for call in self._calls)]
        self._application = SimpleNamespace(
            state=SimpleNamespace(linkstate_factory=SimpleNamespace(state=lambda: links))
        )
        self._bell = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request that has passed the gate."""
        loop = asyncio.get_running_loop()
        self._links.ring = lambda: None if loop.is_closed() else _soon(loop, self._ring)
        if scope["path"] == HEALTH:
            await respond(send, 200, [b'{"status": "ok"}'])
        elif scope["method"] != "POST":
            await refuse(send, 405, "method-not-allowed")
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        # In the loop's own thread: the longest step hashes a part, and threads would cost more than they give.
        request, verdict = self._open(scope, await read_body(receive, scope))
        if verdict is None and isinstance(request, PullMessagesRequest):
            node = request.node.node_id
            await self._until(lambda: self._links.has_message_for(node), HOLD_S)
        if verdict is None and isinstance(request, PushMessagesRequest):
            question = request.messages_list[0].metadata.reply_to_message_id
            if not await self._until(lambda: self._links.admit(question), ROOM_S):
                verdict = 503, "busy"
        if verdict is not None:
            await refuse(send, *verdict)
            return
        status, *content = self._handle(scope["path"], request)
        if status == 200:
            await respond(send, 200, content, PROTOBUF_MEDIA_TYPE)
        else:
            await refuse(send, status, *content)

    async def _until(self, ready: Callable[[], bool], hold_s: float) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + hold_s
        while not ready():
            left_s = end - loop.time()
            if left_s <= 0 or self._links.closing:
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._bell.wait(), left_s)
        return True

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()

    def _open(self, scope: Scope, body: bytearray) -> tuple[Any, Verdict]:
        """The request, and why it is refused (None where it is not)."""
        request = self._calls[scope["path"].removeprefix(FLEET)][0]()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            request.ParseFromString(body)
            authenticate_node(
                SimpleNamespace(headers=headers, app=self._application, state=SimpleNamespace(protobuf_request=request))
            )
        except HTTPException as problem:
            return request, (problem.status_code, "not-authenticated")
        except Exception:  # protobuf's own errors have no typed module
            return request, (400, "not-protobuf")
        return request, self._verdict(request)

    def _handle(self, path: str, request: Any) -> tuple[Any, ...]:
        """Status and what follows: the pieces of a body, or a stable code."""
        if isinstance(request, PullObjectRequest):
            return 200, *self._object(request)
        try:
            return 200, self._calls[path.removeprefix(FLEET)][1](request).SerializeToString()
        except _Refused as refusal:
            return refusal.status, refusal.code
        except FlowerError as problem:
            return 409, f"flower-{int(problem.code)}"
        except Exception:  # Flower's handlers raise KeyError and others on what they do not expect
            return 500, "internal-error"

    def _object(self, request: PullObjectRequest) -> tuple[bytes, ...]:
        """A PullObjectResponse in two pieces, the second of them the stored bytes themselves, uncopied."""
        content = self._links.object_store.get(request.object_id)
        head = PullObjectResponse(object_found=content is not None, object_available=bool(content))
        if not content:
            return (head.SerializeToString(),)
        number = PullObjectResponse.DESCRIPTOR.fields_by_name["object_content"].number
        return head.SerializeToString() + bytes([number << 3 | LENGTH_DELIMITED]) + _varint(len(content)), content

    def _push_object(self, request: PushObjectRequest) -> PushObjectResponse:
        content = request.object_content  # every look at this field copies it
        upload = self._links.upload_of(request.node.node_id, request.session_id)
        if upload is None or request.object_id not in upload.missing:
            raise _Refused(409, "message-gone")
        if upload.bytes + len(content) > self._message_bytes_max:
            self._links.drop(upload, "message-too-large")
            raise _Refused(413, "message-too-large")
        return PushObjectResponse(stored=self._links.store_part(upload, request.object_id, content))

    def _confirm(self, request: ConfirmMessageReceivedRequest) -> ConfirmMessageReceivedResponse:
        self._links.confirm(request.node.node_id, request.message_object_id)
        return ConfirmMessageReceivedResponse()

    def _verdict(self, request: Any) -> Verdict:
        if isinstance(request, PushMessagesRequest):
            return self._push_message_verdict(request)
        if not isinstance(request, PushObjectRequest | PullObjectRequest | ConfirmMessageReceivedRequest):
            return None
        if request.run_id != self._links.run_id:
            return 409, "run-unknown"
        if isinstance(request, PushObjectRequest):
            return None  # looked at in _push_object
        with self._links.lock:
            readable = self._links.readable.get(request.node.node_id, {})
            if isinstance(request, PullObjectRequest):
                allowed = any(request.object_id in objects for objects in readable.values())
            else:
                allowed = request.message_object_id in readable
        return None if allowed else (409, "message-gone")

    def _push_message_verdict(self, request: PushMessagesRequest) -> Verdict:
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            return 400, "message-schema"
        metadata, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        if metadata.src_node_id != request.node.node_id:
            return 403, "sender-mismatch"
        if metadata.run_id != self._links.run_id:
            return 409, "run-unknown"
        asked = self._links.message_ins_store.get(metadata.reply_to_message_id)
        if asked is None or asked.metadata.dst_node_id != request.node.node_id:
            return 409, "message-gone"
        objects = sum(1 for _ in islice(iterate_object_tree(tree), self._objects_max + 1))
        if metadata.message_id != tree.object_id or objects > self._objects_max:
            return 400, "message-schema"
        return None


def _varint(value: int) -> bytes:
    """Protobuf's encoding of a length."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups[-1] |= 0x80
        groups.append(value & 0x7F)
    return bytes(groups)


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(call)


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
        Public key by site name.
    max_message_bytes : int
        Largest reply that is accepted.
    admits : callable
        Whether a site is let in now; asked with each request.
    allow_list : callable or None
        The consortium's list as it is handed out.

    Raises
    ------
    UserError
        Of security/pki.py and security/keystore.py; ``port-in-use``, ``cannot-listen``; ``key-shared`` (two sites,
        one key).
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
        admits: Callable[[str], bool] = lambda site: True,
        allow_list: Callable[[], bytes] | None = None,
    ) -> None:
        logging.getLogger("flwr").setLevel(logging.CRITICAL)  # it logs every message, with ids
        check_certificate(certificate, ca)
        private_key_of(certificate, private_key, passphrase)
        context = server_context(ca, certificate, private_key, passphrase)
        self._links = _Links(_Store())
        self._run = _start_run(self._links)
        names = _register(self._links, sites)
        traffic = {site: Traffic() for site in sites}
        fleet = _Fleet(self._links, max_message_bytes)
        gate = Gate(
            fleet,
            fleet.paths,
            {public_key_to_bytes(key): site for site, key in sites.items()},
            FLEET_HTTP_PUBLIC_KEY_HEADER,
            public_key_to_bytes,
            REQUEST_BYTES_MAX,
            traffic,
            admits,
            allow_list,
        )
        self._https = HttpsServer(gate, host, port, context)
        self.port = self._https.port
        self.grid = FleetGrid(self._links, self._run, names, traffic)
        self._ended = threading.Event()

    def __enter__(self) -> FleetServer:
        self._https.start()
        threading.Thread(target=self._keep_task_alive, name="task-heartbeat", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.grid.stop()
        self._ended.set()
        self._links.closing = True
        self._links.ring()
        status = SubStatus.COMPLETED if kind is None else SubStatus.FAILED
        self._links.finish_task(self._run.primary_task_id, status, "")
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
    links.run_id = run_id
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
        node = links.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, raw, 0, name=site)
        # Flower takes messages only for nodes that have been there: let it have been there.
        InMemoryLinkState.activate_node(links, node, HEARTBEAT_S)
        links.deactivate_node(node)
        names[node] = site
    return names


def _opened(message_id: str, contents: dict[str, bytes]) -> Message:
    """The message that was sent, from its objects (raises whatever malformed bytes make Flower raise)."""
    message = inflate_object_from_contents(message_id, contents)
    if not isinstance(message, Message):
        raise Unusable("message-schema")
    message.metadata.__dict__["_message_id"] = message_id
    message.content = unpack(message.content)
    return message


@contextlib.contextmanager
def _refusing_malformed() -> Iterator[None]:
    """Whatever malformed bytes make Flower raise is the server's fault, and does not end a site's process."""
    try:
        yield
    except (UserError, httpx.HTTPError, Gone, Unusable):
        raise
    except Exception:
        raise Unusable("message-schema") from None


class _FleetCalls:
    """Flower's fleet client, signing with the server's time."""

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext,
        key: EllipticCurvePrivateKey,
        proxy: Proxy | None = None,
        meet: Meet | None = None,
    ) -> None:
        self.clock_offset = timedelta()
        self._key = key
        self._public = public_key_to_bytes(key.public_key())
        # Flower's own interceptors sign with the local clock, and end the process when versions differ.
        self._client = FleetHttpClient(url, verify=tls, interceptors=[self])
        self._client.close()
        self._client._client = self._http = http_client(tls, TIMEOUT_S, proxy)
        self._url, self._meet = url.rstrip("/"), meet
        self._node = Node()

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Add the three headers that Flower authenticates a node by."""
        stamp = (datetime.now(UTC) + self.clock_offset).isoformat()
        headers = context.request.headers
        headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = b64encode(self._public).decode()
        headers[TIMESTAMP_HEADER] = stamp
        headers[FLEET_HTTP_SIGNATURE_HEADER] = b64encode(sign_message(self._key, stamp.encode("ascii"))).decode()
        return call_next(context)

    def activate(self) -> None:
        if self._meet is not None:
            self._meet(*self._introduction())
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_S)
        with _refusing_malformed():
            self._node = Node(node_id=self._client.ActivateNode(request).node_id)

    def _introduction(self) -> tuple[bytes | None, bytes | None]:
        """The server's certificate (DER), and the allow-list that it hands out, if it does."""
        with self._http.stream("GET", self._url + ALLOW_LIST, headers={"accept-encoding": "identity"}) as response:
            shown = response.extensions["network_stream"].get_extra_info("ssl_object").getpeercert(True)
            content = b""
            for part in response.iter_raw():
                content += part
                if len(content) > DOCUMENT_BYTES_MAX:
                    break
            if response.status_code == 404:
                return shown, None
            if response.status_code != 200:
                said = {name: response.headers[name] for name in ("date",) if name in response.headers}
                refused = httpx.Response(response.status_code, headers=said, content=content)
                raise httpx.HTTPStatusError("refused", request=response.request, response=refused)
        return shown, content

    def receive(self) -> Message | None:
        with _refusing_malformed():
            response = self._client.PullMessages(PullMessagesRequest(node=self._node))
            if not response.messages_list:
                return None
            head = response.messages_list[0].metadata
            tree = response.message_object_trees[0]
        try:
            contents = self._contents(head.run_id, tree)
            with _refusing_malformed():
                return _opened(head.message_id, contents)
        except Unusable:
            with contextlib.suppress(Exception):  # else it would be delivered again and again, before any other
                self._confirm(head.run_id, head.message_id)
            raise

    def _contents(self, run_id: int, tree: ObjectTree) -> dict[str, bytes]:
        """Every object of a message, by id, within the caps of a message."""
        with _refusing_malformed():
            names = list(islice(iterate_object_tree(tree), MESSAGE_OBJECTS_MAX + 1))
        if len(names) > MESSAGE_OBJECTS_MAX:
            raise Unusable("message-too-large")
        contents: dict[str, bytes] = {}
        taken = 0
        for each in dict.fromkeys(node.object_id for node in names):
            found = self._pulled(run_id, each)
            if not found.object_available:
                raise Gone("message-gone")
            contents[each] = found.object_content
            taken += len(contents[each])
            if taken > MESSAGE_BYTES_MAX:
                raise Unusable("message-too-large")
        return contents

    def _pulled(self, run_id: int, object_id: str) -> PullObjectResponse:
        try:
            request = PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
            found: PullObjectResponse = self._client.PullObject(request)
        except ValueError:  # an answer that is none says nothing of the message: it is asked for again
            raise httpx.RemoteProtocolError("what it sends is no answer") from None
        return found

    def confirm(self, message: Message) -> None:
        with _refusing_malformed():
            self._confirm(message.metadata.run_id, message.metadata.message_id)

    def _confirm(self, run_id: int, message_id: str) -> None:
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=message_id)
        )

    def push(self, reply: Message, seconds: float) -> None:
        if reply.metadata.src_node_id != self._node.node_id:
            raise Gone("server-restarted")
        with _refusing_malformed(), no_object_id_recompute():
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
                        run_id=reply.metadata.run_id,
                        session_id=response.session_id,
                        object_id=each,
                        object_content=objects[each].deflate(),
                    )
                )
                if not pushed.stored:
                    raise Gone("message-gone")

    def beat(self) -> None:
        self._client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S))

    def leave(self) -> None:
        self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))

    def close(self) -> None:
        self._client.close()


class SiteSession(Session):
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
    proxy : Proxy or None
    meet : callable or None
        Given the server's certificate (DER) and the allow-list that it hands out (or None) before each session; may
        raise UserError.
    say : callable
        Told (event, fields): ``connecting`` (url, waited_s, reason), ``active``, ``clock`` (off_s), ``received``
        (kind, round), ``sent`` (kind, round, seconds), ``dropped`` (reason), ``finished``, ``stopped``.
    coordinator_sha256 : str or None
        SHA-256 of the one server certificate that is talked to; None: any of the root.

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
        proxy: Proxy | None = None,
        meet: Meet | None = None,
        coordinator_sha256: str | None = None,
    ) -> None:
        check_certificate(certificate, ca)
        key = private_key_of(certificate, private_key, passphrase)
        tls = client_context(ca, certificate, private_key, passphrase, coordinator_sha256)
        calls = _FleetCalls(url, tls, key, proxy, meet)
        super().__init__(
            calls,
            url,
            ca=ca,
            certificate=certificate,
            poll_max_s=poll_max_s,
            give_up_after_s=give_up_after_s,
            say=say,
        )
