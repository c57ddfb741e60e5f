"""Ed25519 keys for what a party signs: its ledger and its policy. Apart from TLS keys, so that losing one is not
losing the other."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from momkd_fl.errors import UserError
from momkd_fl.security.keystore import open_private_key, write_new, write_private_key

PUBLIC_MODE = 0o644


def create_signing_key(folder: Path, name: str, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Make ``<name>.sign.key`` (mode 0600, encrypted where there is a passphrase) and ``<name>.sign.pub``.

    Raises
    ------
    UserError
        ``key-exists`` or ``key-not-written``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    write_private_key(folder / f"{name}.sign.key", key, passphrase)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_new(folder / f"{name}.sign.pub", public, PUBLIC_MODE)
    return key


def load_signing_key(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """The Ed25519 private key in a PEM file that its owner alone may read.

    Raises
    ------
    UserError
        ``signing-key-invalid``, or as :func:`~momkd_fl.security.keystore.open_private_key`.
    """
    key = open_private_key(path, passphrase, "the signing key")
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(
            "signing-key-invalid",
            f"{path}: is not an Ed25519 private key in PEM form. Name the party's .sign.key file.",
        )
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """The Ed25519 public key in a PEM file.

    Raises
    ------
    UserError
        ``signing-key-invalid``.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, OSError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(
            "signing-key-invalid",
            f"{path}: is not an Ed25519 public key in PEM form. Name the party's .sign.pub file.",
        )
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the raw public key, 64 hexadecimal digits: what two people compare by telephone."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()
