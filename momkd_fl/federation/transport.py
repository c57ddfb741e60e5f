"""HTTPS on one port: mutual TLS, the socket, uvicorn in a thread, and the gate every request passes first."""

from __future__ import annotations

import errno
import json
import socket
import ssl
import threading
import time
from asyncio import sslproto
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from momkd_fl.errors import UserError
from momkd_fl.federation.pinned import pin

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BUFFER_BYTES = SLICE_BYTES = 32 * 1024
"""What a connection holds at a time, read or written; asyncio would keep several times 256 KiB for each, for good."""
ANSWER_BYTES_MAX = 1 << 24
"""Of one answer of the server: a part of a message (packing.py) with room to spare."""
ALLOW_LIST = "/v1/momkd/allow-list"
PEER = "momkd.peer_certificate"
SITE = "momkd.site"


@dataclass(frozen=True)
class Proxy:
    """A proxy that tunnels; ``auth`` is (user, password)."""

    url: str
    auth: tuple[str, str] | None = None


def server_context(ca: Path, certificate: Path, private_key: Path, passphrase: bytes | None) -> ssl.SSLContext:
    """TLS 1.3 only; whoever connects must show a certificate of the consortium."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _furnish(context, ca, certificate, private_key, passphrase)


def client_context(
    ca: Path, certificate: Path, private_key: Path, passphrase: bytes | None, server_sha256: str | None = None
) -> ssl.SSLContext:
    """TLS 1.3 only; no root but the consortium's is trusted, the server's name is checked, its certificate if given."""
    context = _furnish(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ca, certificate, private_key, passphrase)
    if server_sha256 is not None:
        pin(context, server_sha256)
    return context


def _furnish(
    context: ssl.SSLContext, ca: Path, certificate: Path, private_key: Path, passphrase: bytes | None
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The callable keeps OpenSSL from asking on the terminal where an encrypted key has no passphrase.
    context.load_cert_chain(certificate, private_key, password=lambda: passphrase or b"")
    context.load_verify_locations(ca)
    return context


def http_client(context: ssl.SSLContext, timeout_s: float, proxy: Proxy | None = None) -> httpx.Client:
    """An HTTP client that goes where it is told and nowhere else.

    It follows no redirection: a server could have a site post its answer to a machine inside the hospital. Nor does it
    take a proxy from the environment, unpack what is compressed (a few bytes could become many), or read an answer
    beyond ``ANSWER_BYTES_MAX``: then it raises httpx.RemoteProtocolError.
    """
    through = None if proxy is None else httpx.Proxy(proxy.url, auth=proxy.auth)
    return httpx.Client(
        verify=context,
        timeout=timeout_s,
        follow_redirects=False,
        trust_env=False,
        proxy=through,
        headers={"accept-encoding": "identity"},
        event_hooks={"response": [_bound]},
    )


def _bound(response: httpx.Response) -> None:
    """Called with the head of an answer, before its body is read."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx.RemoteProtocolError("the answer is compressed, which was not asked for", request=response.request)
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.stream = _Bounded(response.stream, response.request)


class _Bounded(httpx.SyncByteStream):
    """An answer's body up to ``ANSWER_BYTES_MAX``."""

    def __init__(self, stream: httpx.SyncByteStream, request: httpx.Request) -> None:
        self._stream, self._request = stream, request

    def __iter__(self) -> Iterator[bytes]:
        taken = 0
        for part in self._stream:
            taken += len(part)
            if taken > ANSWER_BYTES_MAX:
                raise httpx.RemoteProtocolError("the answer is too large", request=self._request)
            yield part

    def close(self) -> None:
        self._stream.close()


class PeerCertificateProtocol(HttpToolsProtocol):
    """uvicorn keeps the peer's certificate to itself: put it in the ASGI scope."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_read_buffer_limits(high=BUFFER_BYTES)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        tls = self.transport.get_extra_info("ssl_object")
        scope: Any = self.scope  # uvicorn's own type is closed to what servers add
        scope[PEER] = tls.getpeercert(binary_form=True) if tls else None


@dataclass
class Traffic:
    """Bytes of request and response bodies of one site, as the server saw them."""

    received: int = 0
    sent: int = 0


class Gate:
    """The first thing a request meets, before anything is buffered.

    Answers 404 to a path that is not listed, 403 to a certificate over a key that is not listed (``key-not-allowed``)
    or that differs from the key named in the header (``key-mismatch``), 411 without a length, 413 above the cap.

    Parameters
    ----------
    app : ASGI application
    paths : collection of str
    sites : mapping
        Site name by public key.
    key_header : str
        Header that carries the key the request is signed with (base64).
    key_bytes : callable
        Encodes a public key as that header does.
    body_bytes_max : int
    traffic : mapping
        Counted into, by site name.
    admits : callable
        Whether a listed site is let in now.
    allow_list : callable or None
        The consortium's list, for whoever is let in.
    """

    def __init__(
        self,
        app: App,
        paths: Collection[str],
        sites: Mapping[bytes, str],
        key_header: str,
        key_bytes: Callable[[EllipticCurvePublicKey], bytes],
        body_bytes_max: int,
        traffic: Mapping[str, Traffic],
        admits: Callable[[str], bool],
        allow_list: Callable[[], bytes] | None,
    ) -> None:
        self._app, self._paths, self._sites, self._traffic = app, frozenset(paths), sites, traffic
        self._admits, self._allow_list = admits, allow_list
        self._key_header, self._key_bytes, self._body_bytes_max = key_header.lower().encode(), key_bytes, body_bytes_max
        self._key_of: dict[bytes, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (or the application's start and end)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        status, detail = self._verdict(scope, headers)
        if status:
            await refuse(send, status, detail)
            return
        if scope["path"] == ALLOW_LIST and self._allow_list is not None:
            await respond(send, 200, [self._allow_list()])
            return
        traffic = self._traffic[scope[SITE]]
        traffic.received += int(headers.get(b"content-length", b"0"))

        async def counted(event: MutableMapping[str, Any]) -> None:
            traffic.sent += len(event.get("body", b""))
            await send(event)

        await self._app(scope, receive, counted)

    def _verdict(self, scope: Scope, headers: Mapping[bytes, bytes]) -> tuple[int, str]:
        key = self._peer_key(scope.get(PEER))
        site = self._sites.get(key)
        if site is None or not self._admits(
            site
        ):  # before the path, so that a site's preflight can ask whether its key is known
            return 403, "key-not-allowed"
        handed_out = self._allow_list is not None and (scope["method"], scope["path"]) == ("GET", ALLOW_LIST)
        if scope["path"] not in self._paths and not handed_out:
            return 404, "not-found"
        scope[SITE] = site
        if scope["method"] != "POST":
            return 0, ""
        try:
            claimed = b64decode(headers.get(self._key_header, b""), validate=True)
        except NotBase64:
            claimed = b""
        if claimed != key:
            return 403, "key-mismatch"
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            return 411, "length-required"
        return (413, "message-too-large") if int(length) > self._body_bytes_max else (0, "")

    def _peer_key(self, certificate: bytes | None) -> bytes:
        if certificate is None:
            return b""
        if certificate not in self._key_of:
            if len(self._key_of) > 1000:
                self._key_of.clear()
            key = x509.load_der_x509_certificate(certificate).public_key()
            self._key_of[certificate] = self._key_bytes(key) if isinstance(key, EllipticCurvePublicKey) else b""
        return self._key_of[certificate]


async def read_body(receive: Receive, scope: Scope) -> bytearray:
    """The whole body; its length was checked by the gate and is enforced by the HTTP parser."""
    body = bytearray(int(dict(scope["headers"])[b"content-length"]))
    filled = 0
    while True:
        event = await receive()
        if event["type"] != "http.request":
            raise ConnectionAbortedError
        part = event.get("body", b"")
        body[filled : filled + len(part)] = part
        filled += len(part)
        if not event.get("more_body", False):
            return body


async def respond(send: Send, status: int, pieces: Sequence[bytes], media_type: str = "application/json") -> None:
    """One answer, in slices: each waits until the connection has taken the ones before it."""
    length = sum(len(piece) for piece in pieces)
    headers = [(b"content-type", media_type.encode()), (b"content-length", str(length).encode())]
    if status in (411, 413):
        headers.append((b"connection", b"close"))  # the body that was announced is never read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for piece in pieces:
        for start in range(0, len(piece), SLICE_BYTES):
            await send({"type": "http.response.body", "body": piece[start : start + SLICE_BYTES], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def refuse(send: Send, status: int, detail: str) -> None:
    """Answer with a stable code and nothing else."""
    await respond(send, status, [json.dumps({"detail": detail}).encode()])


class HttpsServer:
    """An ASGI application served from a thread.

    The socket is bound here and now: a bind error inside uvicorn's thread would be silent.

    Raises
    ------
    UserError
        ``port-in-use`` or ``cannot-listen``.
    """

    def __init__(self, app: App, host: str, port: int, context: ssl.SSLContext) -> None:
        sslproto.SSLProtocol.max_size = BUFFER_BYTES
        self._socket = _bind(host, port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            ssl_context_factory=lambda *_: context,
            loop="asyncio",  # uvloop keeps half a MB for each connection
            http=PeerCertificateProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="critical",
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=3,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="https", daemon=True
        )

    def start(self) -> None:
        """Return once connections are accepted (raises RuntimeError where uvicorn ended at once)."""
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the HTTPS server did not start")
            time.sleep(0.005)

    def stop(self) -> None:
        """Finish what is under way, close the connections."""
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)  # a second server on this port fails now, not when it starts to accept
    except OSError as problem:
        if problem.errno == errno.EADDRINUSE:
            raise UserError(
                "port-in-use",
                f"Port {port} of {host} is in use. Stop the other program, or set another port in listen.",
            ) from None
        raise UserError("cannot-listen", f"Cannot listen on {host}:{port}: {problem.strerror or problem}.") from None
    return bound
