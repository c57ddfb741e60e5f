"""Whose word the consortium's allow-list is: one keyholder's, or that of any k of its members.

Every party holds the charter from the day it joined, and compares its digest by telephone. The coordinator is none of
the keyholders, so it can neither let a party in nor keep one that was revoked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field

from momkd_fl.errors import UserError
from momkd_fl.security.documents import Digest, Document, Ed25519Key, Name, read_document
from momkd_fl.security.pki import certificate_sha256

CHARTER_FILE: Final = "consortium.json"
_FORMAT: Final = "momkd-charter-1"


class Charter(Document):
    """The consortium's root and keyholders.

    Attributes
    ----------
    root_sha256 : of the root certificate, DER
    keyholders : raw Ed25519 public keys by name, hexadecimal
    threshold : how many of them must sign an allow-list
    """

    format: Literal["momkd-charter-1"] = _FORMAT
    consortium: str
    root_sha256: Digest
    keyholders: Annotated[dict[Name, Ed25519Key], Field(min_length=1, max_length=100)]
    threshold: Annotated[int, Field(ge=1)]

    def signed_by(self, body: bytes, signatures: Mapping[str, str]) -> frozenset[str]:
        """The keyholders whose signatures over ``body`` hold; others count for nothing."""
        return frozenset(name for name, signature in signatures.items() if self._holds(name, signature, body))

    def _holds(self, name: str, signature: str, body: bytes) -> bool:
        if name not in self.keyholders:
            return False
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.keyholders[name]))
            key.verify(bytes.fromhex(signature), body)
        except (InvalidSignature, ValueError):
            return False
        return True


def make_charter(consortium: str, root: Path, keyholders: Mapping[str, Ed25519PublicKey], threshold: int) -> Charter:
    """The charter of a root certificate (PEM) and its keyholders.

    Raises
    ------
    UserError
        ``charter-threshold``, or as :func:`~momkd_fl.security.pki.certificate_sha256`.
    """
    keys = {name: key.public_bytes_raw().hex() for name, key in keyholders.items()}
    check_threshold(threshold, keys, "The charter")
    return Charter(consortium=consortium, root_sha256=certificate_sha256(root), keyholders=keys, threshold=threshold)


def read_charter(path: Path, root: Path) -> Charter:
    """The charter in a file, for the root certificate that the party holds.

    Raises
    ------
    UserError
        ``charter-other-root``, ``charter-threshold``, or as :func:`~momkd_fl.security.documents.read_document`.
    """
    charter = read_document(path, Charter, "a consortium's charter")
    check_threshold(charter.threshold, charter.keyholders, str(path))
    if charter.root_sha256 != certificate_sha256(root):
        raise UserError(
            "charter-other-root",
            f"{path}: is of another consortium than the root certificate {root}. Use the two files that were handed "
            "out together.",
        )
    return charter


def check_threshold(threshold: int, keyholders: Mapping[str, str], where: str) -> None:
    """Raise UserError ``charter-threshold`` where so many different keys are not there, or none is asked for."""
    if not 1 <= threshold <= len(set(keyholders.values())):
        raise UserError(
            "charter-threshold",
            f"{where}: asks for {threshold} signatures and names {len(set(keyholders.values()))} different keys. Ask "
            "for at least 1 and at most as many as there are.",
        )
