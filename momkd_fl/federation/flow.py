"""How many objects move at once, and how much of a reply waits in memory for a slow reader (an ASGI layer)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, MutableMapping
from typing import Any

import anyio.to_thread

from momkd_fl.federation.transport import App, Receive, Scope, Send

# Objects on their way at the same time. More would be no faster, and each costs a few copies of a part in memory.
TURNS = 3
# A slow line is not waited for longer than this before the next transfer starts beside it.
PATIENCE_S = 1.0
SLICE_BYTES = 256 * 1024
# Threads in which Flower's handlers run; none of them waits for anything but a lock.
HANDLER_THREADS = 4


class Flow:
    """Lets transfers of objects go in turn, and hands out replies in slices.

    Parameters
    ----------
    app : ASGI application
    transfers : collection of str
        Paths whose requests or replies carry objects.
    """

    def __init__(self, app: App, transfers: Collection[str]) -> None:
        self._app, self._transfers = app, frozenset(transfers)
        self._turns = asyncio.Semaphore(TURNS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope.get("path") not in self._transfers:
            await self._app(scope, receive, send)
            return
        anyio.to_thread.current_default_thread_limiter().total_tokens = HANDLER_THREADS
        try:
            await asyncio.wait_for(self._turns.acquire(), PATIENCE_S)
        except TimeoutError:
            await self._app(scope, receive, _in_slices(send))
            return
        try:
            await self._app(scope, receive, _in_slices(send))
        finally:
            self._turns.release()


def _in_slices(send: Send) -> Send:
    """Each slice waits until the connection has taken the ones before it."""

    async def sliced(event: MutableMapping[str, Any]) -> None:
        body = memoryview(event.get("body", b""))
        for start in range(0, len(body) - SLICE_BYTES, SLICE_BYTES):
            await send({**event, "body": bytes(body[start : start + SLICE_BYTES]), "more_body": True})
        if len(body) > SLICE_BYTES:
            event = {**event, "body": bytes(body[(len(body) - 1) // SLICE_BYTES * SLICE_BYTES :])}
        await send(event)

    return sliced
