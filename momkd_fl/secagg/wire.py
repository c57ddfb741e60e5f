"""Bytes of messages: one envelope for all, big-endian numbers, every length bounded before anything is made of it.

envelope = "MSA" ‖ version ‖ kind ‖ manifest digest (32) ‖ sender ‖ body ‖ Ed25519 signature (64)

The signature is over a domain-separated SHA-256 of all that precedes it. There is one way to write a message: names
in lists rise strictly, and nothing may follow the end.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from momkd_fl.secagg.refusal import SecAggError

MAGIC = b"MSA"
VERSION = 1
SIGNATURE_BYTES = 64
NO_MANIFEST = bytes(32)
COORDINATOR = ""
"""The sender of the coordinator's messages; no site has an empty name."""

Buffer = bytes | bytearray | memoryview

_DOMAIN = b"momkd-fl secure aggregation 1\0"
_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Kind(IntEnum):
    """What a message is, in the order of the protocol: the coordinator writes the odd ones, a site the even ones."""

    MANIFEST = 1
    ANNOUNCEMENT = 2
    ROSTER = 3
    SHARES = 4
    DELIVERY = 5
    MASKED = 6
    SURVIVORS = 7
    CONSENT = 8
    CONSENTS = 9
    UNMASKING = 10


@dataclass(frozen=True)
class Envelope:
    """A message taken apart, its signature not yet checked."""

    kind: Kind
    manifest: bytes
    sender: str
    body: memoryview
    digest: bytes
    signature: bytes

    def verify(self, public: bytes) -> None:
        """Raise ``signature-wrong`` unless the holder of this Ed25519 key signed exactly these bytes."""
        if not signed_by(public, self.signature, self.digest):
            raise SecAggError("signature-wrong", self.sender)


def close_envelope(kind: Kind, manifest: bytes, sender: str, body: Sequence[Buffer], key: Ed25519PrivateKey) -> bytes:
    """The bytes of a signed message; the pieces of the body are copied once."""
    pieces = [MAGIC, bytes([VERSION, kind]), manifest, _sender(sender), *body]
    return b"".join([*pieces, key.sign(_digest(pieces))])


def open_envelope(message: bytes, kind: Kind | None, bytes_max: int) -> Envelope:
    """Take a message of one kind apart (None: of any).

    Raises
    ------
    SecAggError
        ``message-too-large``, ``message-malformed``, ``message-version`` or ``message-unexpected``.
    """
    if len(message) > bytes_max:
        raise SecAggError("message-too-large")
    reader = Reader(memoryview(message))
    if reader.take(len(MAGIC)) != MAGIC:
        raise SecAggError("message-malformed")
    if reader.number(1) != VERSION:
        raise SecAggError("message-version")
    try:
        found = Kind(reader.number(1))
    except ValueError:
        raise SecAggError("message-malformed") from None
    if kind is not None and found != kind:
        raise SecAggError("message-unexpected")
    manifest = bytes(reader.take(32))
    sender = COORDINATOR if reader.peek() == 0 and reader.number(1) == 0 else reader.name()
    body = reader.rest(but=SIGNATURE_BYTES)
    signed = memoryview(message)[: len(message) - SIGNATURE_BYTES]
    return Envelope(found, manifest, sender, body, _digest([signed]), bytes(reader.take(SIGNATURE_BYTES)))


def signed_by(public: bytes, signature: bytes, digest: bytes) -> bool:
    """Whether an Ed25519 signature (RFC 8032) over ``digest`` is this key's; False too for a malformed key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, digest)
    except (InvalidSignature, ValueError):
        return False
    return True


class Reader:
    """Takes a body apart from front to back; ``message-malformed`` as soon as anything is amiss."""

    def __init__(self, content: memoryview) -> None:
        self._left = content

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes, not copied."""
        if not 0 <= size <= len(self._left):
            raise SecAggError("message-malformed")
        taken, self._left = self._left[:size], self._left[size:]
        return taken

    def rest(self, but: int = 0) -> memoryview:
        """All that is left, except so many bytes at the end."""
        return self.take(len(self._left) - but)

    def peek(self) -> int | None:
        """The next byte, which stays; None at the end."""
        return self._left[0] if self._left else None

    def number(self, size: int) -> int:
        """An unsigned integer of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def real(self) -> float:
        """A float64; whoever reads it checks that it is finite."""
        value: float = struct.unpack(">d", self.take(8))[0]
        return value

    def blob(self) -> bytes:
        """Bytes after their length."""
        return bytes(self.take(self.number(4)))

    def name(self) -> str:
        """A name of a site, run or segment: 1 to 64 of A-Z a-z 0-9 _ . -"""
        name = bytes(self.take(self.number(1)))
        if not _NAME.fullmatch(name):
            raise SecAggError("message-malformed")
        return name.decode("ascii")

    def names(self, most: int) -> tuple[str, ...]:
        """Names in strictly rising order."""
        found = tuple(self.name() for _ in range(self.count(most)))
        if any(a >= b for a, b in pairwise(found)):
            raise SecAggError("message-malformed")
        return found

    def count(self, most: int) -> int:
        """How many of something follow."""
        count = self.number(2)
        if count > most:
            raise SecAggError("message-malformed")
        return count

    def end(self) -> None:
        """Nothing may be left."""
        if self._left:
            raise SecAggError("message-malformed")


def number(value: int, size: int) -> bytes:
    """An unsigned integer in ``size`` bytes."""
    return value.to_bytes(size, "big")


def real(value: float) -> bytes:
    """A float64."""
    return struct.pack(">d", value)


def blob(content: bytes) -> bytes:
    """Bytes after their length."""
    return number(len(content), 4) + content


def name(text: str) -> bytes:
    """A name after its length; ``manifest-invalid`` where it is none."""
    content = text.encode("ascii", "replace")
    if not _NAME.fullmatch(content):
        raise SecAggError("manifest-invalid")
    return bytes([len(content)]) + content


def names(texts: Iterable[str]) -> bytes:
    """Names in rising order after their number."""
    ordered = sorted(texts)
    return number(len(ordered), 2) + b"".join(name(text) for text in ordered)


def _sender(sender: str) -> bytes:
    return b"\0" if sender == COORDINATOR else name(sender)


def _digest(pieces: Sequence[Buffer]) -> bytes:
    digest = hashlib.sha256(_DOMAIN)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
