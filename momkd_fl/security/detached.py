"""Detached signatures: ``<file>.sig`` beside a file that people read, in hexadecimal digits."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from momkd_fl.errors import UserError

_CONTEXT: Final = b"momkd-policy-1\n"
"""Goes before what is signed: the key signs ledgers and receipts too, and none may be taken for another."""
FILE_BYTES_MAX: Final = 1 << 20


def signature_path(path: Path) -> Path:
    """Where the signature of ``path`` is kept."""
    return path.with_name(path.name + ".sig")


def sign_file(path: Path, key: Ed25519PrivateKey) -> Path:
    """Sign the file as it is now, in place of an earlier signature.

    Raises
    ------
    UserError
        ``policy-missing`` or ``policy-not-written``.
    """
    target = signature_path(path)
    text = key.sign(_CONTEXT + read_file(path)).hex() + "\n"
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    try:
        with draft.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except OSError as problem:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise UserError(
            "policy-not-written", f"{target}: could not be written ({problem.strerror}). Choose a folder of yours."
        ) from None
    return target


def signed_content(path: Path, key: Ed25519PublicKey) -> bytes:
    """The bytes of a file that ``key`` has signed: exactly those that were checked, read once.

    Raises
    ------
    UserError
        ``policy-missing``, ``policy-unsigned`` or ``policy-signature``.
    """
    content = read_file(path)
    try:
        signature = bytes.fromhex(signature_path(path).read_text("ascii").strip())
    except (OSError, ValueError):
        raise UserError(
            "policy-unsigned",
            f"{path}: there is no signature beside it ({signature_path(path).name}), so nothing leaves. Read it with "
            "'momkd policy explain', then sign it with 'momkd policy sign'.",
        ) from None
    try:
        key.verify(signature, _CONTEXT + content)
    except InvalidSignature:
        raise UserError(
            "policy-signature",
            f"{path}: was changed after it was signed, or signed with another key, so nothing leaves. Read it with "
            "'momkd policy explain'; if it is what you want, sign it anew with 'momkd policy sign'.",
        ) from None
    return content


def read_file(path: Path) -> bytes:
    """The bytes of a contract (raises UserError ``policy-missing``)."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX)
    except OSError as problem:
        raise UserError(
            "policy-missing",
            f"{path}: the contract cannot be read ({problem.strerror}), so nothing leaves. Write one with "
            "'momkd policy write'.",
        ) from None
