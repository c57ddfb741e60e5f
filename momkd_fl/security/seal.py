"""Files at rest: AES-256-GCM under the site's key, bound to what they are.

The associated data say kind, run, round and version, so that a file sealed as one thing cannot be put in the place of
another, or of an older one. Nonces are 96 random bits: change the key before 2^32 files.
"""

from __future__ import annotations

import binascii
import json
import os
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

    def associated_data(self) -> bytes:
        """Canonical JSON after the magic bytes: one reading for each value."""
        return MAGIC + json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()


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


def seal(key: bytes, content: bytes, sealed: Sealed) -> bytes:
    """Magic bytes, nonce, ciphertext and tag."""
    nonce = os.urandom(NONCE_BYTES)
    return MAGIC + nonce + AESGCM(key).encrypt(nonce, content, sealed.associated_data())


def unseal(key: bytes, blob: bytes, sealed: Sealed) -> bytes:
    """The content, if it was sealed with ``key`` as exactly ``sealed``.

    Raises
    ------
    UserError
        ``seal-unknown`` for other files; ``seal-broken``, which does not say what is wrong: that would help a forger.
    """
    if not blob.startswith(MAGIC) or len(blob) < len(MAGIC) + NONCE_BYTES + TAG_BYTES:
        raise UserError(
            "seal-unknown",
            f"This {sealed.kind} is not a whole sealed file of momkd-fl. Restore a backup, or start anew.",
        )
    nonce, ciphertext = blob[len(MAGIC) : len(MAGIC) + NONCE_BYTES], blob[len(MAGIC) + NONCE_BYTES :]
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, sealed.associated_data())
    except InvalidTag:
        raise UserError(
            "seal-broken",
            f"This is not the {sealed.kind} of run '{sealed.run}', round {sealed.round}, sealed with the site's key: "
            "the key is another, the file is of another run or round, or it was changed. Check the key, or restore "
            "a backup.",
        ) from None


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
