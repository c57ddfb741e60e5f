"""Private keys on disk: readable by their owner alone, written whole or not at all, never over another key."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from momkd_fl.errors import UserError

PRIVATE_MODE = 0o600
KEY_BYTES_MAX = 1 << 16
PASSPHRASE_BYTES_MIN = 12
_WHERE = "tls.passphrase_env or tls.passphrase_file ('momkd provision': --passphrase-env or --passphrase-file)"


def load_private_key(path: Path, passphrase: bytes | None) -> EllipticCurvePrivateKey:
    """The EC P-384 private key in a PEM file that its owner alone may read.

    Parameters
    ----------
    path : Path
        PEM file; a regular file of mode 0600 or narrower.
    passphrase : bytes or None
        None for a key that is not encrypted.

    Raises
    ------
    UserError
        ``key-missing``, ``key-symlink``, ``key-unreadable``, ``key-mode``, ``key-not-pem``, ``key-passphrase`` or
        ``key-wrong-curve``; no sentence holds any part of the key or the passphrase.
    """
    key = open_private_key(path, passphrase)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise UserError(
            "key-wrong-curve",
            f"{path}: the private key is not an elliptic-curve key on P-384. Have a new key and certificate issued.",
        )
    return key


def open_private_key(path: Path, passphrase: bytes | None, setting: str = "tls.private_key") -> object:
    """A private key of any kind in a PEM file; parameters and errors as :func:`load_private_key`, less the curve."""
    pem = read_private(path, setting)
    encrypted = b"ENCRYPTED" in pem
    if encrypted and not passphrase:
        raise UserError(
            "key-passphrase",
            f"{path}: the private key is encrypted and no passphrase was given. Name where it is as {_WHERE}.",
        )
    if passphrase and not encrypted and b"PRIVATE KEY" in pem:
        raise UserError(
            "key-passphrase",
            f"{path}: a passphrase was given, but the private key is not encrypted. Take {_WHERE} out, or encrypt the "
            "key.",
        )
    try:
        return load_pem_private_key(pem, passphrase or None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if encrypted:
            raise UserError(
                "key-passphrase",
                f"{path}: the passphrase does not open the private key, or the file is damaged. Check {_WHERE}.",
            ) from None
        raise UserError(
            "key-not-pem",
            f"{path}: is not a private key in PEM form. It must begin with '-----BEGIN PRIVATE KEY-----'; restore it "
            "from your copy, or have a new key and certificate issued.",
        ) from None


def write_private_key(
    path: Path, key: EllipticCurvePrivateKey | Ed25519PrivateKey, passphrase: bytes | None = None
) -> None:
    """Write ``key`` as PKCS 8 PEM, mode 0600, encrypted where there is a passphrase (raises as :func:`write_new`)."""
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    write_new(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), PRIVATE_MODE)


def read_passphrase(path: Path) -> bytes:
    """The first line of a file that its owner alone may read.

    Raises
    ------
    UserError
        As :func:`check_passphrase` and :func:`read_private`.
    """
    lines = read_private(path, "the passphrase file").splitlines()
    return check_passphrase(lines[0] if lines else b"", str(path))


def check_passphrase(passphrase: bytes, where: str) -> bytes:
    """``passphrase`` itself, unless it is short: PKCS 8 slows down guessing only a little.

    Raises
    ------
    UserError
        ``passphrase-short``.
    """
    if len(passphrase) < PASSPHRASE_BYTES_MIN:
        raise UserError(
            "passphrase-short",
            f"{where}: a passphrase has at least {PASSPHRASE_BYTES_MIN} characters. Make one with "
            "'openssl rand -hex 16'.",
        )
    return passphrase


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that does not exist yet: all of it, synced to disk and with its mode, or none of it.

    Raises
    ------
    UserError
        ``key-exists`` where anything, a dangling link included, has that name; ``key-not-written`` where the disk
        does not take it.
    """
    refuse_existing(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # unlike a rename, a link never replaces what another process has just written
        finally:
            os.unlink(draft)
        _sync_folder(path.parent)
    except FileExistsError:
        raise _existing(path) from None
    except OSError as problem:
        raise UserError(
            "key-not-written",
            f"{path}: could not be written ({problem.strerror}). Choose a folder on a local disk that is yours.",
        ) from None


def refuse_existing(path: Path) -> None:
    """Raise UserError ``key-exists`` if anything, a dangling link included, has that name."""
    if os.path.lexists(path):
        raise _existing(path)


def _existing(path: Path) -> UserError:
    return UserError(
        "key-exists",
        f"{path}: exists already and is not overwritten, since a lost key cannot be made again. Choose another folder, "
        "or move the file away yourself.",
    )


def read_private(path: Path, setting: str = "tls.private_key") -> bytes:
    """The bytes of a regular file that its owner alone may read; ``setting`` is what a person set to ``path``.

    Raises
    ------
    UserError
        ``key-missing``, ``key-symlink``, ``key-unreadable`` or ``key-mode``.
    """
    try:
        # O_NONBLOCK: opening a pipe must not hang; the checks below look at what was opened, not at the name
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UserError(
            "key-missing", f"{path}: there is no such file. Set {setting} to this party's private key."
        ) from None
    except OSError as problem:
        if path.is_symlink():
            raise UserError(
                "key-symlink",
                f"{path}: is a symbolic link, and whoever owns a link can point it elsewhere. Set {setting} to "
                "the key file itself.",
            ) from None
        raise UserError(
            "key-unreadable",
            f"{path}: cannot be read ({problem.strerror}). Run as the user who owns the key.",
        ) from None
    try:
        _refuse_exposed(path, os.fstat(descriptor).st_mode, setting)
        return os.read(descriptor, KEY_BYTES_MAX)
    finally:
        os.close(descriptor)


def _refuse_exposed(path: Path, state: int, setting: str) -> None:
    if not stat.S_ISREG(state):
        raise UserError("key-unreadable", f"{path}: is not a regular file. Set {setting} to the key file.")
    mode = stat.S_IMODE(state)
    if mode & ~PRIVATE_MODE:
        raise UserError(
            "key-mode",
            f"{path}: has mode {mode:04o}, so that others than its owner may reach the private key. "
            f"Run: chmod 600 {path}",
        )


def _sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
