"""Files at rest: AES-256-GCM under one party's key, bound to what they are.

Layout: magic bytes, the label's length (uint32, big-endian), the label as canonical JSON (kind, run, round, version),
then one or more segments of nonce, ciphertext and tag. All before the segments, and each segment's number and the
number of segments, are associated data: a file sealed as one thing cannot pass for another, and no segment can be left
out or moved. Nonces are 96 random bits: change the key before 2^32 files.
"""

from __future__ import annotations

import binascii
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from momkd_fl.errors import UserError
from momkd_fl.security.keystore import PRIVATE_MODE, read_private, write_new

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
MAGIC: Final = b"MOMKD-SEAL-1\n"
LABEL_BYTES_MAX: Final = 1024
SEGMENT_BYTES: Final = 1 << 28
"""Of content; the cipher's library takes less than 2 GB at a time."""


@dataclass(frozen=True)
class Sealed:
    """What a sealed file is; nothing of it is secret, all of it is authenticated.

    Attributes
    ----------
    kind : such as ``checkpoint`` or ``memory-bank``
    run : identifier of the run
    round : round number
    version : of the content's format
    """

    kind: str
    run: str
    round: int
    version: int = 1

    def head(self) -> bytes:
        """Magic bytes, length, canonical JSON: one reading for each value."""
        label = json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()
        return MAGIC + struct.pack(">I", len(label)) + label

    def spoken(self) -> str:
        """For people: ``the checkpoint of run 'her2-2026', round 7``."""
        return f"the {self.kind} of run '{self.run}', round {self.round}"


def seal_key_name(party: str) -> str:
    """The name of the file with a party's sealing key, beside its other keys."""
    return f"{party}.seal.key"


def create_seal_key(path: Path) -> bytes:
    """Write 32 random bytes as hexadecimal digits, mode 0600.

    Raises
    ------
    UserError
        ``key-exists`` or ``key-not-written``.
    """
    key = os.urandom(KEY_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_new(path, key.hex().encode() + b"\n", PRIVATE_MODE)
    return key


def seal_key_from_file(path: Path) -> bytes:
    """The key in a file that its owner alone may read.

    Raises
    ------
    UserError
        ``seal-key-invalid``, or as :func:`~momkd_fl.security.keystore.read_private`.
    """
    return _parsed(read_private(path, "the sealing key"), str(path))


def seal_key_from_environment(variable: str) -> bytes:
    """The key in an environment variable.

    Raises
    ------
    UserError
        ``seal-key-missing`` or ``seal-key-invalid``.
    """
    text = os.environ.get(variable)
    if text is None:
        raise UserError(
            "seal-key-missing",
            f"The environment variable {variable} is not set. Put the site's sealing key there, or name a key file.",
        )
    return _parsed(text.encode(), f"Environment variable {variable}")


def seal(key: bytes, content: bytes, sealed: Sealed, segment_bytes: int = SEGMENT_BYTES) -> bytes:
    """The sealed file's bytes."""
    head, cipher = sealed.head(), AESGCM(key)
    count = max(1, -(-len(content) // segment_bytes))
    pieces, view = [head], memoryview(content)
    for number in range(count):
        nonce, start = os.urandom(NONCE_BYTES), number * segment_bytes
        data = head + struct.pack(">II", number, count)
        pieces += [nonce, cipher.encrypt(nonce, view[start : start + segment_bytes], data)]
    return b"".join(pieces)


def unseal(key: bytes, blob: bytes, where: str, segment_bytes: int = SEGMENT_BYTES) -> tuple[Sealed, bytes]:
    """What a file was sealed as, and its content.

    Raises
    ------
    UserError
        ``seal-unknown`` for what is no sealed file; ``seal-broken`` for another key or any change.
    """
    sealed, head = _label(blob, where)
    cipher, pieces = AESGCM(key), []
    segments = list(_segments(memoryview(blob)[len(head) :], segment_bytes))
    try:
        for number, segment in enumerate(segments):
            data = head + struct.pack(">II", number, len(segments))
            pieces.append(cipher.decrypt(bytes(segment[:NONCE_BYTES]), segment[NONCE_BYTES:], data))
    except InvalidTag:
        raise UserError(
            "seal-broken",
            f"{where}: says that it is {sealed.spoken()}, but it does not open: it was sealed with another key, or it "
            "was cut or changed. Nothing was written over it. Check the key, or put a backup back.",
        ) from None
    return sealed, b"".join(pieces)


def is_sealed(blob: bytes) -> bool:
    """Whether bytes begin as a sealed file does."""
    return blob.startswith(MAGIC)


def _label(blob: bytes, where: str) -> tuple[Sealed, bytes]:
    """The label and all bytes before the segments, not yet authenticated."""
    start = len(MAGIC) + 4
    try:
        if not is_sealed(blob):
            raise ValueError
        size = struct.unpack(">I", blob[len(MAGIC) : start])[0]
        if size > LABEL_BYTES_MAX or len(blob) < start + size + NONCE_BYTES + TAG_BYTES:
            raise ValueError
        sealed = Sealed(**json.loads(blob[start : start + size]))
        head = blob[: start + size]
        if not (isinstance(sealed.round, int) and sealed.head() == head):
            raise ValueError
    except (ValueError, TypeError, struct.error, RecursionError):
        raise UserError(
            "seal-unknown",
            f"{where}: is not a whole sealed file of momkd-fl. Nothing was written over it. Put a backup back, or "
            "start anew.",
        ) from None
    return sealed, head


def _segments(body: memoryview, segment_bytes: int) -> Iterator[memoryview]:
    whole = NONCE_BYTES + segment_bytes + TAG_BYTES
    for start in range(0, len(body), whole):
        yield body[start : start + whole]


def _parsed(text: bytes, where: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip().decode())
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise UserError(
            "seal-key-invalid",
            f"{where}: is not a sealing key, which is {2 * KEY_BYTES} hexadecimal digits. Make one with "
            "'openssl rand -hex 32'.",
        )
    return key
