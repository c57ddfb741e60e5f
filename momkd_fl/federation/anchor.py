"""What goes beside a message so that others can hold a site to its books: heads of its ledger and odometer, signed.

Heads are a number of lines and a digest, and tell nothing else. A site signs them together with the digest of the
message; the coordinator keeps the newest of each site, over runs that share its folder, and sends a site its own. It
also passes on what each site signed, by key: the others keep it (witnesses.py) and give it back with every reply.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from momkd_fl.errors import UserError
from momkd_fl.federation.messages import ANCHOR
from momkd_fl.privacy.odometer import Head
from momkd_fl.security.ledger import LedgerHead

_CONTEXT: Final = b"momkd-receipt-1\n"
PEERS_MAX: Final = 200
"""Keys of which a site keeps heads."""
KEPT: Final = 3
"""Heads kept of each key: an older one is what contradicts, where its site has gone on from an old copy."""
_ENTRY_CHARACTERS: Final = 1000


@dataclass(frozen=True)
class Anchor:
    """Heads of one site's books."""

    ledger: LedgerHead
    odometer: Head

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, raw: Any) -> Anchor:
        """The inverse of :meth:`plain` (raises ValueError, KeyError or TypeError for anything else)."""
        heads = [(raw[book]["lines"], raw[book]["digest"]) for book in ("ledger", "odometer")]
        if not all(type(lines) is int and lines >= 1 and isinstance(digest, str) for lines, digest in heads):
            raise ValueError("not the heads of books")
        return cls(LedgerHead(*heads[0]), Head(*heads[1]))


def payload_digest(content: RecordDict) -> str:
    """SHA-256, hexadecimal, of all records but the anchor: names, types, shapes and every byte, in their order."""
    digest = hashlib.sha256()
    for name, record in content.items():
        if name == ANCHOR:
            continue
        if isinstance(record, ArrayRecord):
            for key, array in record.items():
                digest.update(json.dumps([name, key, array.dtype, list(array.shape), len(array.data)]).encode())
                digest.update(array.data)
        else:
            digest.update(json.dumps([name, dict(record)], sort_keys=True).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Signed:
    """Heads as their site signed them beside a message: whoever holds this can prove them to anybody.

    Attributes
    ----------
    key : raw Ed25519 public key of the site, which is all that others learn of whose books these are
    digest : of the message that the signature holds for too, hexadecimal
    """

    anchor: Anchor
    key: bytes
    digest: str
    signature: bytes

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "heads": self.anchor.plain(),
            "key": self.key.hex(),
            "digest": self.digest,
            "signature": self.signature.hex(),
        }

    @classmethod
    def from_plain(cls, raw: Any) -> Signed:
        """The inverse of :meth:`plain`; raises ValueError, KeyError or TypeError, also where the signature is bad."""
        found = cls(
            Anchor.from_plain(raw["heads"]), bytes.fromhex(raw["key"]), raw["digest"], bytes.fromhex(raw["signature"])
        )
        try:
            Ed25519PublicKey.from_public_bytes(found.key).verify(found.signature, _signed(found.digest, found.anchor))
        except (InvalidSignature, AttributeError):
            raise ValueError("the signature does not hold") from None
        return found

    def contradicts(self, other: Signed) -> bool:
        """Whether no honest site signs both: a line that differs, or one book longer and the other shorter."""
        ours, theirs = self.anchor, other.anchor
        same = ours.ledger.lines == theirs.ledger.lines and ours.ledger != theirs.ledger
        same |= ours.odometer.lines == theirs.odometer.lines and ours.odometer != theirs.odometer
        crossed = (ours.ledger.lines - theirs.ledger.lines) * (ours.odometer.lines - theirs.odometer.lines) < 0
        return same or crossed


def receipt(key: Ed25519PrivateKey, digest: str, anchor: Anchor, peers: Iterable[Signed] = ()) -> ConfigRecord:
    """The record that goes with a reply; ``peers`` is what the site holds of others."""
    signed = Signed(anchor, key.public_key().public_bytes_raw(), digest, key.sign(_signed(digest, anchor)))
    return ConfigRecord({"receipt": json.dumps(signed.plain()), "peers": _text(peers)})


def read_receipt(content: RecordDict, site: str) -> tuple[Signed, tuple[Signed, ...]] | None:
    """What a reply's site signed for exactly this content, and what it holds of others; None without a receipt.

    Raises
    ------
    UserError
        ``receipt-invalid``.
    """
    record = content.get(ANCHOR)
    if record is None:
        return None
    try:
        signed = Signed.from_plain(json.loads(record["receipt"]))
        if signed.digest != payload_digest(content):
            raise ValueError
        return signed, _peers(record["peers"])
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(
            "receipt-invalid", f"site {site}: the signature of its message does not hold; the message was dropped."
        ) from None


def with_heads(
    content: RecordDict,
    anchor: Anchor | None,
    peers: Iterable[Signed] = (),
    asked: Mapping[str, str] = MappingProxyType({}),
) -> RecordDict:
    """The same records, uncopied, with the site's own heads as the coordinator holds them, and what sites signed.

    ``asked``: what sites ask each other (challenges.py).
    """
    own = {} if anchor is None else {"heads": json.dumps(anchor.plain(), sort_keys=True)}
    return RecordDict({**dict(content.items()), ANCHOR: ConfigRecord({**own, "peers": _text(peers), **asked})})


def read_heads(content: RecordDict) -> tuple[Anchor | None, tuple[Signed, ...]]:
    """This site's heads as the coordinator holds them, if it does, and what sites signed.

    Raises
    ------
    UserError
        ``message-schema``.
    """
    record = content.get(ANCHOR)
    if record is None:
        return None, ()
    try:
        own = Anchor.from_plain(json.loads(record["heads"])) if "heads" in record else None
        return own, _peers(record["peers"])
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError("message-schema", "the coordinator: heads of the sites' books are not readable.") from None


def _signed(digest: str, anchor: Anchor) -> bytes:
    return _CONTEXT + digest.encode() + json.dumps(anchor.plain(), sort_keys=True).encode()


def _text(peers: Iterable[Signed]) -> str:
    return json.dumps([each.plain() for each in peers])


def _peers(text: str) -> tuple[Signed, ...]:
    if len(text) > PEERS_MAX * KEPT * _ENTRY_CHARACTERS:
        raise ValueError("too long")
    return tuple(Signed.from_plain(each) for each in json.loads(text))
