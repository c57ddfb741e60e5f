"""A site's connection: asks for work, does it, answers; tries again for as long as the policy says."""

from __future__ import annotations

import contextlib
import random
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from momkd_fl.errors import UserError
from momkd_fl.federation.packing import pack
from momkd_fl.federation.pinned import NOT_PINNED

Say = Callable[[str, dict[str, Any]], None]
Result = TypeVar("Result")

APP_ERROR = 2
"""Flower error code of a ClientApp that raised; the reason is the kind of exception and no more."""
CLOCK_OFF_MAX_S = 3600.0
PAUSE_FIRST_S, PAUSE_GROWTH = 0.05, 1.3
HEARTBEAT_EVERY_S = 3.0
BACK_OFF_FIRST_S, BACK_OFF_GROWTH, BACK_OFF_MAX_S, BACK_OFF_LONG_S = 0.2, 1.6, 2.0, 15.0
KEY_REFUSED_MAX = 3
CERTIFICATE_EXPIRED, NAME_MISMATCH, ADDRESS_MISMATCH = 10, 62, 64
"""OpenSSL's verification codes."""


class Gone(Exception):  # noqa: N818 - the run goes on
    """The server no longer wants what this was about."""


class Unusable(Exception):  # noqa: N818 - a refusal, with a stable code
    """What the server sent is no answer that a site takes; nothing of it was used."""


class Calls(Protocol):
    """The calls a site makes (flower.py); any may raise httpx.HTTPStatusError, httpx.TransportError, Gone, Unusable."""

    clock_offset: timedelta
    """Added to this machine's clock in signed requests."""

    def activate(self) -> None:
        """Begin a session; the newest one of a key is the one that counts."""
        ...

    def receive(self) -> Message | None:
        """A message, or None; the server may hold the question for a while."""
        ...

    def confirm(self, message: Message) -> None:
        """Say that the message has arrived whole."""
        ...

    def push(self, reply: Message, seconds: float) -> None:
        """Send a reply; goes on where an earlier try stopped."""
        ...

    def beat(self) -> None:
        """Keep the session alive."""
        ...

    def leave(self) -> None:
        """End the session."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class Session:
    """One site's session with one server (see :class:`~momkd_fl.federation.flower.SiteSession`)."""

    def __init__(
        self,
        calls: Calls,
        url: str,
        *,
        ca: Path,
        certificate: Path,
        poll_max_s: float,
        give_up_after_s: float,
        say: Say,
    ) -> None:
        self._calls, self._url, self._ca, self._certificate, self._say = calls, url, ca, certificate, say
        self._poll_max_s, self._give_up_after_s = poll_max_s, give_up_after_s
        self._active = False
        self._reached = time.monotonic()
        self._key_refused = 0

    def run(self, app: ClientApp, context: Context, stop: threading.Event, is_last: Callable[[Message], bool]) -> str:
        """Take part until ``is_last`` says so of an answered message ('finished') or ``stop`` is set ('stopped').

        Raises
        ------
        UserError
            ``server-unreachable`` (silent for ``give_up_after_s``), ``server-wrong-ca``,
            ``server-certificate-expired``, ``server-name-mismatch``, ``key-not-allowed``, ``clock-skew`` (more than
            an hour; less is corrected for), ``message-too-large``.
        """
        over = threading.Event()
        beat = threading.Thread(target=self._heartbeat, args=(over,), name="heartbeat", daemon=True)
        self._reached = time.monotonic()
        beat.start()
        try:
            ended = self._loop(app, context, stop, is_last)
        finally:
            over.set()
            self._calls.close()
        self._say(ended, {})
        return ended

    def _loop(self, app: ClientApp, context: Context, stop: threading.Event, is_last: Callable[[Message], bool]) -> str:
        pause_s = PAUSE_FIRST_S
        while not stop.is_set():
            asked = time.monotonic()
            message = self._persist(stop, self._calls.receive)
            if message is None:
                held_s = time.monotonic() - asked  # the server held the question: that was a pause, too
                stop.wait(max(0.0, pause_s * random.uniform(0.8, 1.2) - held_s))
                pause_s = min(pause_s * PAUSE_GROWTH, self._poll_max_s)
                continue
            pause_s = PAUSE_FIRST_S
            self._work(app, context, stop, message)
            if is_last(message):
                # No farewell to the server: a node that leaves before its reply was collected loses it.
                return "finished"
        if self._active:
            with contextlib.suppress(Exception):  # a courtesy; the session lapses by itself
                self._calls.leave()
        return "stopped"

    def _work(self, app: ClientApp, context: Context, stop: threading.Event, message: Message) -> None:
        metadata = message.metadata
        told = {"kind": metadata.message_type, "round": metadata.group_id}
        # A confirmation that got lost is refused when it is repeated; the work is wanted all the same.
        self._persist(stop, lambda: self._calls.confirm(message))
        self._say("received", told)
        context.run_id, context.node_id = metadata.run_id, metadata.dst_node_id
        started = time.monotonic()
        try:
            try:
                reply = app(message, context)
            except Exception as problem:  # an app of ours raises nothing: Flower, for a kind that nobody serves
                self._say("refused", {"code": "message-not-served"})
                reply = Message(Error(APP_ERROR, type(problem).__name__), reply_to=message)
        except Exception:  # there is not even an address to answer to
            self._say("refused", {"code": "message-schema"})
            return
        if reply.has_content():
            reply.content = pack(reply.content, salted=True)
        seconds = time.monotonic() - started

        def push() -> bool:
            self._calls.push(reply, seconds)
            return True

        if self._persist(stop, push):
            self._say("sent", {**told, "seconds": round(seconds, 3)})

    def _persist(self, stop: threading.Event, step: Callable[[], Result]) -> Result | None:
        """``step`` until it succeeds, is pointless (None) or ``stop`` is set (None)."""
        back_off_s = BACK_OFF_FIRST_S
        while True:
            try:
                if not self._active:
                    self._calls.activate()
                    self._active = True
                    self._say("active", {})
                result = step()
            except httpx.HTTPStatusError as problem:
                reason = self._refusal(problem.response)
                if reason is None:
                    return None
            except httpx.TransportError as problem:
                reason = trouble(problem, self._url, self._ca)
            except Gone as problem:
                self._say("dropped", {"reason": str(problem)})
                return None
            except Unusable as problem:
                reason = f"what it sends is no answer: {problem}"
                self._say("refused", {"code": str(problem)})
            else:
                self._reached, self._key_refused = time.monotonic(), 0
                return result
            if reason != "busy":
                self._complain(reason)
            if stop.wait(back_off_s * random.uniform(0.7, 1.3)):
                return None
            longest_s = BACK_OFF_MAX_S if time.monotonic() - self._reached < 60 else BACK_OFF_LONG_S
            back_off_s = min(back_off_s * BACK_OFF_GROWTH, longest_s)

    def _complain(self, reason: str) -> None:
        waited_s = time.monotonic() - self._reached
        if waited_s > self._give_up_after_s:
            raise UserError(
                "server-unreachable",
                f"The server at {self._url} has not answered for {waited_s:.0f} s ({reason}). "
                "Ask the coordinator whether it runs, and check the address and the firewall.",
            )
        self._say("connecting", {"url": self._url, "waited_s": round(waited_s, 1), "reason": reason})

    def _heartbeat(self, over: threading.Event) -> None:
        while not over.wait(HEARTBEAT_EVERY_S):
            if self._active:
                with contextlib.suppress(Exception):  # the main loop meets the same trouble and tells of it
                    self._calls.beat()

    def _refusal(self, response: httpx.Response) -> str | None:
        """Why the server refused, to try again; None to give up this message; UserError to give up altogether."""
        status, detail = response.status_code, refusal_detail(response)
        if status == 503:
            self._reached = time.monotonic()
            return "busy"
        if status == 401:
            self._active = False
            self._correct_clock(response)
            return "a new session is needed"
        if detail == "key-not-allowed":
            self._key_refused += 1
            if self._key_refused < KEY_REFUSED_MAX:
                return "the server does not know this site's key"
            raise UserError(
                "key-not-allowed",
                f"The coordinator at {self._url} does not know the key of {self._certificate}. Send it that "
                "certificate, and ask to be put on its list of sites.",
            )
        if status == 413:
            raise UserError(
                "message-too-large",
                f"The coordinator at {self._url} refuses answers of this size. Ask it to raise listen.max_message_mb.",
            )
        if status >= 500:
            self._active = False  # an unknown run is a KeyError inside Flower: the server is another one
        self._say("dropped", {"reason": detail})
        return None

    def _correct_clock(self, response: httpx.Response) -> None:
        """Flower refuses a clock 5 s ahead or 5 min behind with the 401 it has for everything."""
        off_s = clock_ahead_s(response)
        if off_s is None:
            return
        offset = timedelta(seconds=-off_s)
        if abs(off_s) > CLOCK_OFF_MAX_S:
            raise UserError(
                "clock-skew",
                f"This machine's clock and the coordinator's differ by {off_s:+.0f} s. Set it (NTP), then start again.",
            )
        if abs(offset - self._calls.clock_offset) > timedelta(seconds=2):
            self._calls.clock_offset = offset
            self._say("clock", {"off_s": round(off_s)})


def trouble(problem: httpx.TransportError, url: str, ca: Path) -> str:
    """Why a connection failed, where trying again may help.

    Raises
    ------
    UserError
        For what trying again cannot mend: ``server-certificate-expired``, ``server-name-mismatch``,
        ``server-wrong-ca``, ``contract-coordinator``.
    """
    cause: BaseException | None = problem
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise _distrust(cause, url, ca)
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {(cause.reason or 'connection closed').lower().replace('_', ' ')}"
    if isinstance(problem, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
        return "the connection was dropped; the server may not accept this site's certificate"
    if isinstance(problem, httpx.TimeoutException):
        return "no answer in time"
    return str(problem) or type(problem).__name__


def _distrust(problem: ssl.SSLCertVerificationError, url: str, ca: Path) -> UserError:
    if problem.verify_code == NOT_PINNED:
        return UserError(
            "contract-coordinator",
            f"The server at {url} is not the coordinator that the contract names (coordinator_sha256). Nothing was "
            "sent. If it has a new certificate, ask for its SHA-256 by telephone, and sign the contract anew.",
        )
    if problem.verify_code == CERTIFICATE_EXPIRED:
        return UserError(
            "server-certificate-expired",
            f"The certificate of the server at {url} has expired (or this machine's clock is wrong). "
            "Ask the coordinator to renew it.",
        )
    if problem.verify_code in (NAME_MISMATCH, ADDRESS_MISMATCH):
        return UserError(
            "server-name-mismatch",
            f"The server's certificate is not for the host in {url}. Use the name the coordinator gave.",
        )
    return UserError(
        "server-wrong-ca",
        f"The server at {url} does not have a certificate of {ca} ({problem.verify_message}). "
        "Check the address and tls.ca; a proxy may tunnel the connection, but not open it.",
    )


def clock_ahead_s(response: httpx.Response) -> float | None:
    """Seconds by which this machine's clock is ahead of the server's; None where the server does not say."""
    try:
        return (datetime.now(UTC) - parsedate_to_datetime(response.headers["date"])).total_seconds()
    except (KeyError, ValueError):
        return None


def refusal_detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
