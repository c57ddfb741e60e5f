"""What an authenticated site may ask the fleet routes for (the innermost ASGI layer)."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response

from momkd_fl.federation.packing import PART_BYTES
from momkd_fl.federation.transport import App, Receive, Scope, Send

FLEET = "/v1/fleet/"
ACTIVATE, HEARTBEAT = FLEET + "activate-node", FLEET + "send-node-heartbeat"
PULL_MESSAGES, PUSH_MESSAGES = FLEET + "pull-messages", FLEET + "push-messages"
PULL_OBJECT, PUSH_OBJECT = FLEET + "pull-object", FLEET + "push-object"
CONFIRM = FLEET + "confirm-message-received"
SERVED = (ACTIVATE, HEARTBEAT, PULL_MESSAGES, PULL_OBJECT, CONFIRM, PUSH_MESSAGES, PUSH_OBJECT)

# A question for messages is held this long before it is answered with none.
HOLD_S = 2.0
# Replies kept at once: so many while the sites are quick, at most so many ever.
REPLIES_HELD, REPLIES_HELD_MAX = 3, 8
ADMIT_PATIENCE_S, ADMIT_PATIENCE_MAX_S = 1.0, 5.0
UPLOAD_STALLED_S = 30.0
# Message, its record dictionary, the head.
OBJECTS_BESIDE_PARTS = 4

Refusal = tuple[int, str]


@dataclass
class Upload:
    """A site's reply on its way into the store: its id, its push session, bytes so far, time of the last ones."""

    reply: str
    session: str = ""
    size: int = 0
    moved: float = field(default_factory=time.monotonic)


class Link(Protocol):
    """What the guard needs of the link state."""

    granted: dict[int, dict[str, frozenset[str]]]
    uploads: dict[int, Upload]
    tell_sites: Callable[[], None]

    def has_message_for(self, node: int) -> bool:
        """Whether a message waits that was not delivered."""
        ...

    def awaits_reply(self, message_id: str, node: int) -> bool:
        """Whether this node was sent this message and its reply is still wanted."""
        ...


class Guard:
    """Serves the calls a site needs, for what is the site's own.

    A site gets the objects of messages delivered to it and not yet confirmed, and nothing else; whether anything else
    exists, it is not told. It sends replies to messages it was sent, as itself, no larger than agreed.

    Questions for messages are held until there is one: a round then starts at once, and idle sites cost next to
    nothing. Only a site's newest question counts, since an older one may belong to a connection that is gone.

    Parameters
    ----------
    app : ASGI application
        Flower's routes.
    link : Link
    run_id : int
    max_message_bytes : int
        Largest reply.
    stopped : threading.Event
        Once set, nothing is held any more.
    nothing : callable
        Makes the answer to a question when there is no message.
    """

    def __init__(
        self,
        app: App,
        link: Link,
        run_id: int,
        max_message_bytes: int,
        stopped: threading.Event,
        nothing: Callable[[], Any],
    ) -> None:
        self._app, self._link, self._run_id, self._max_message_bytes = app, link, run_id, max_message_bytes
        self._stopped, self._nothing = stopped, nothing
        self._questions: dict[int, int] = {}
        self._numbers = itertools.count()
        self._bell = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        shared, path = scope.get("state", {}), scope.get("path", "")
        request = shared.get("protobuf_request")
        if request is None:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(path, request)
        if refusal is None and path == PUSH_MESSAGES:
            refusal = await self._admit(request)
        if refusal is not None:
            await JSONResponse({"detail": refusal[1]}, refusal[0])(scope, receive, send)
            return
        if path == PULL_MESSAGES and not await self._message_for(request.node.node_id):
            shared["protobuf_response"] = self._nothing()
            await Response()(scope, receive, send)
            return
        await self._app(scope, receive, send)
        response = shared.get("protobuf_response")
        if response is not None:
            self._note(path, request, response)

    def _refusal(self, path: str, request: Any) -> Refusal | None:
        if path not in SERVED:
            return 404, "not-served"
        if path in (ACTIVATE, HEARTBEAT, PULL_MESSAGES):
            return None
        if path == PUSH_MESSAGES:
            return self._reply_refusal(request)
        if request.run_id != self._run_id:
            return 409, "unknown-run"
        node = request.node.node_id
        if path == PUSH_OBJECT:
            upload = self._link.uploads.get(node)
            if upload is None or not upload.session or upload.session != request.session_id:
                return 403, "not-yours"
            too_large = upload.size + len(request.object_content) > self._max_message_bytes
            return (413, "message-too-large") if too_large else None
        granted = self._link.granted.get(node, {})
        if path == CONFIRM:
            return None if request.message_object_id in granted else (403, "not-yours")
        return None if any(request.object_id in ids for ids in granted.values()) else (403, "not-yours")

    def _reply_refusal(self, request: Any) -> Refusal | None:
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            return 400, "one-reply-at-a-time"
        metadata, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        if metadata.src_node_id != request.node.node_id:
            return 403, "not-yours"
        if metadata.run_id != self._run_id:
            return 409, "unknown-run"
        if not self._link.awaits_reply(metadata.reply_to_message_id, request.node.node_id):
            return 409, "not-awaited"
        objects_max = self._max_message_bytes // PART_BYTES + OBJECTS_BESIDE_PARTS
        objects = sum(1 for _ in itertools.islice(object_ids(tree), objects_max + 1))
        if tree.object_id != metadata.message_id or objects > objects_max:
            return 400, "malformed-reply"
        return None

    async def _admit(self, request: Any) -> Refusal | None:
        """Let a reply in when there is room for it."""
        node, started = request.node.node_id, time.monotonic()
        while True:
            waited, held = time.monotonic() - started, self._held_beside(node)
            if held < REPLIES_HELD or (waited >= ADMIT_PATIENCE_S and held < REPLIES_HELD_MAX):
                self._link.uploads[node] = Upload(request.messages_list[0].metadata.message_id)
                return None
            if waited >= ADMIT_PATIENCE_MAX_S or self._stopped.is_set():
                return 503, "busy"
            await self._news(ADMIT_PATIENCE_S)

    def _held_beside(self, node: int) -> int:
        """Replies in the store or on their way, without this site's and without those that have come to a halt."""
        now = time.monotonic()
        others = [upload for other, upload in list(self._link.uploads.items()) if other != node]
        return sum(now - upload.moved < UPLOAD_STALLED_S for upload in others)

    async def _message_for(self, node: int) -> bool:
        number = self._questions[node] = next(self._numbers)
        end = time.monotonic() + HOLD_S
        while self._questions[node] == number:
            if self._link.has_message_for(node):
                return True
            left = end - time.monotonic()
            if left <= 0 or self._stopped.is_set():
                return False
            await self._news(left)
        return False

    async def _news(self, timeout_s: float) -> None:
        """Wait until the link has something to tell the sites (its threads ring the bell of this loop)."""
        loop = asyncio.get_running_loop()
        self._link.tell_sites = lambda: _call_soon(loop, self._ring)
        try:
            await asyncio.wait_for(self._bell.wait(), timeout_s)
        except TimeoutError:
            return

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()

    def _note(self, path: str, request: Any, response: Any) -> None:
        """Remember what a served request entitles the site to."""
        link = self._link
        if path == ACTIVATE:
            self._questions[response.node_id] = next(self._numbers)
            return
        node = request.node.node_id
        upload = link.uploads.get(node)
        if path == PULL_MESSAGES:
            for tree in response.message_object_trees:
                link.granted.setdefault(node, {})[tree.object_id] = frozenset(object_ids(tree))
        elif path == CONFIRM:
            link.granted.get(node, {}).pop(request.message_object_id, None)
        elif path == PUSH_MESSAGES and upload is not None:
            upload.session = response.session_id
        elif path == PUSH_OBJECT and upload is not None and response.stored:
            upload.size += len(request.object_content)
            upload.moved = time.monotonic()


def object_ids(tree: Any) -> Iterator[str]:
    """Ids of a tree of objects, children first (Flower's ObjectTree)."""
    for child in tree.children:
        yield from object_ids(child)
    yield tree.object_id


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
