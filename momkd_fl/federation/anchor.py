"""What goes beside a message so that others can hold a site to its books: heads of its ledger and odometer, signed.

Heads are a number of lines and a digest, and tell nothing else. A site signs them together with the digest of the
message; the coordinator keeps the newest of each site, over runs that share its folder, and sends a site its own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from momkd_fl.errors import UserError
from momkd_fl.federation.messages import ANCHOR
from momkd_fl.privacy.odometer import Head
from momkd_fl.security.ledger import LedgerHead

_CONTEXT: Final = b"momkd-receipt-1\n"


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


def receipt(key: Ed25519PrivateKey, digest: str, anchor: Anchor) -> ConfigRecord:
    """The record that goes with a reply."""
    text = json.dumps(anchor.plain(), sort_keys=True)
    signature = key.sign(_CONTEXT + digest.encode() + text.encode())
    return ConfigRecord({"heads": text, "key": key.public_key().public_bytes_raw(), "signature": signature})


def read_receipt(content: RecordDict, site: str) -> tuple[Anchor, bytes] | None:
    """Heads and raw public key of a reply whose signature holds for exactly this content; None without a receipt.

    Raises
    ------
    UserError
        ``receipt-invalid``.
    """
    record = content.get(ANCHOR)
    if record is None:
        return None
    try:
        text, key, signature = record["heads"], record["key"], record["signature"]
        signed = _CONTEXT + payload_digest(content).encode() + text.encode()
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed)
        return Anchor.from_plain(json.loads(text)), key
    except (KeyError, ValueError, TypeError, AttributeError, InvalidSignature):
        raise UserError(
            "receipt-invalid", f"site {site}: the signature of its message does not hold; the message was dropped."
        ) from None


def with_heads(content: RecordDict, anchor: Anchor) -> RecordDict:
    """The same records, uncopied, and the site's own heads as the coordinator holds them."""
    heads = ConfigRecord({"heads": json.dumps(anchor.plain(), sort_keys=True)})
    return RecordDict({**dict(content.items()), ANCHOR: heads})


def read_heads(content: RecordDict) -> Anchor | None:
    """This site's heads as the coordinator holds them; None where it holds none.

    Raises
    ------
    UserError
        ``message-schema``.
    """
    record = content.get(ANCHOR)
    if record is None:
        return None
    try:
        return Anchor.from_plain(json.loads(record["heads"]))
    except (KeyError, ValueError, TypeError):
        raise UserError("message-schema", "the coordinator: heads of this site's books are not readable.") from None
