"""The bodies of the messages after the manifest, and the largest size that each can have in a round.

Steps: announce keys (2) → roster (3); deal shares (4) → delivery (5); masked vector (6) → survivors (7); consent (8)
→ consents (9); unmask (10). Sites write the even ones, the coordinator the odd ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from momkd_fl.secagg import wire
from momkd_fl.secagg.manifest import MANIFEST_BYTES_MAX, Manifest
from momkd_fl.secagg.masking import DIGEST_BYTES, KEY_BYTES, NONCE_BYTES, TAG_BYTES
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.shamir import SHARE_BYTES
from momkd_fl.secagg.wire import Envelope, Kind, Reader

_NAME_BYTES = 65
_ENVELOPE_BYTES = 3 + 2 + 32 + _NAME_BYTES + wire.SIGNATURE_BYTES


class ShareKind(IntEnum):
    """Which of a peer's secrets a site helps to recover: never both."""

    SELF_SEEDS = 1
    MASK_KEY = 2


def secrets_of(manifest: Manifest) -> int:
    """Secrets that a site deals: its mask key, then the seed of its self mask for each segment."""
    return 1 + len(manifest.segments)


def bytes_max(kind: Kind, manifest: Manifest) -> int:
    """The largest message of a kind in this round."""
    n, secrets = len(manifest.participants), secrets_of(manifest)
    announcement = _ENVELOPE_BYTES + 2 * KEY_BYTES + DIGEST_BYTES * (secrets - 1)
    sealed = _NAME_BYTES + 4 + NONCE_BYTES + TAG_BYTES + SHARE_BYTES * secrets
    consent = _ENVELOPE_BYTES + DIGEST_BYTES
    bodies = {
        Kind.MANIFEST: MANIFEST_BYTES_MAX,
        Kind.ANNOUNCEMENT: announcement,
        Kind.ROSTER: 2 + n * (4 + announcement),
        Kind.SHARES: DIGEST_BYTES + 2 + n * (sealed + DIGEST_BYTES * secrets),
        Kind.DELIVERY: 4 + n * (_NAME_BYTES + sealed),
        Kind.MASKED: DIGEST_BYTES + 4 + 8 * manifest.length,
        Kind.SURVIVORS: 4 + n * _NAME_BYTES,
        Kind.CONSENT: DIGEST_BYTES,
        Kind.CONSENTS: 2 + n * (4 + consent),
        Kind.UNMASKING: 2 + n * (_NAME_BYTES + 3 + secrets * (2 + SHARE_BYTES)),
    }
    return _ENVELOPE_BYTES + bodies[kind]


def open_message(message: bytes, kind: Kind, manifest: Manifest, digest: bytes) -> Envelope:
    """A message of this round taken apart, not yet verified (adds ``manifest-differs`` to open_envelope's refusals)."""
    envelope = wire.open_envelope(message, kind, bytes_max(kind, manifest))
    if envelope.manifest != digest:
        raise SecAggError("manifest-differs", envelope.sender)
    return envelope


@dataclass(frozen=True)
class Announcement:
    """A site's fresh public keys, and the commitments to its self masks' seeds (one a segment)."""

    mask_public: bytes
    seal_public: bytes
    commitments: tuple[bytes, ...]

    def body(self) -> list[wire.Buffer]:
        return [self.mask_public, self.seal_public, *self.commitments]

    @staticmethod
    def read(envelope: Envelope, manifest: Manifest) -> Announcement:
        reader = Reader(envelope.body)
        mask_public, seal_public = bytes(reader.take(KEY_BYTES)), bytes(reader.take(KEY_BYTES))
        commitments = tuple(bytes(reader.take(DIGEST_BYTES)) for _ in manifest.segments)
        reader.end()
        return Announcement(mask_public, seal_public, commitments)


@dataclass(frozen=True)
class Blobs:
    """Signed messages of sites, passed on as they are: the roster of announcements, and the consents."""

    messages: tuple[bytes, ...]

    def body(self) -> list[wire.Buffer]:
        return [wire.number(len(self.messages), 2), *(wire.blob(message) for message in self.messages)]

    def digest(self) -> bytes:
        """Names this list in later messages."""
        return hashlib.sha256(b"".join(self.body())).digest()

    @staticmethod
    def read(envelope: Envelope, manifest: Manifest) -> Blobs:
        reader = Reader(envelope.body)
        messages = tuple(reader.blob() for _ in range(reader.count(len(manifest.participants))))
        reader.end()
        return Blobs(messages)


@dataclass(frozen=True)
class Dealing:
    """What a dealer sends for one receiver: sealed shares (empty for itself) and its commitments to each of them."""

    sealed: bytes
    commitments: tuple[bytes, ...]


@dataclass(frozen=True)
class Shares:
    """A dealer's shares for its neighbours and itself, bound to the roster."""

    roster: bytes
    dealings: Mapping[str, Dealing]

    def body(self) -> list[wire.Buffer]:
        pieces: list[wire.Buffer] = [self.roster, wire.names(self.dealings)]
        for _, dealing in sorted(self.dealings.items()):
            pieces += [wire.blob(dealing.sealed), *dealing.commitments]
        return pieces

    @staticmethod
    def read(envelope: Envelope, manifest: Manifest) -> Shares:
        reader = Reader(envelope.body)
        roster, receivers = bytes(reader.take(DIGEST_BYTES)), reader.names(len(manifest.participants))
        secrets = range(secrets_of(manifest))
        dealings = {
            receiver: Dealing(reader.blob(), tuple(bytes(reader.take(DIGEST_BYTES)) for _ in secrets))
            for receiver in receivers
        }
        reader.end()
        return Shares(roster, dealings)


@dataclass(frozen=True)
class Delivery:
    """All sites that dealt shares, and the sealed shares of those among them that are the receiver's neighbours."""

    dealers: tuple[str, ...]
    sealed: Mapping[str, bytes]

    def body(self) -> list[wire.Buffer]:
        ordered = [wire.blob(sealed) for _, sealed in sorted(self.sealed.items())]
        return [wire.names(self.dealers), wire.names(self.sealed), *ordered]

    @staticmethod
    def read(envelope: Envelope, manifest: Manifest) -> Delivery:
        reader = Reader(envelope.body)
        dealers = reader.names(len(manifest.participants))
        sealed = {name: reader.blob() for name in reader.names(len(manifest.participants))}
        reader.end()
        return Delivery(dealers, sealed)


@dataclass(frozen=True)
class Masked:
    """A site's masked vector (L,), bound to the sites that it shares masks with."""

    dealers: bytes
    vector: NDArray[np.uint64]

    def body(self) -> list[wire.Buffer]:
        vector = np.ascontiguousarray(self.vector, "<u8")
        return [self.dealers, wire.number(len(vector), 4), vector.data.cast("B")]

    @staticmethod
    def read(envelope: Envelope, manifest: Manifest) -> Masked:
        reader = Reader(envelope.body)
        dealers, length = bytes(reader.take(DIGEST_BYTES)), reader.number(4)
        if length != manifest.length:
            raise SecAggError("message-malformed", envelope.sender)
        vector: NDArray[np.uint64] = np.frombuffer(reader.take(8 * length), "<u8")
        reader.end()
        return Masked(dealers, vector)


@dataclass(frozen=True)
class Survivors:
    """The sites whose masked vectors have arrived, and the other dealers."""

    survivors: tuple[str, ...]
    dropped: tuple[str, ...]

    def body(self) -> list[wire.Buffer]:
        return [wire.names(self.survivors), wire.names(self.dropped)]

    @staticmethod
    def read(envelope: Envelope, manifest: Manifest) -> Survivors:
        reader, most = Reader(envelope.body), len(manifest.participants)
        found = Survivors(reader.names(most), reader.names(most))
        reader.end()
        return found


@dataclass(frozen=True)
class Consent:
    """A site's signature over one set of survivors; it gives no other in the round."""

    statement: bytes

    def body(self) -> list[wire.Buffer]:
        return [self.statement]

    @staticmethod
    def read(envelope: Envelope, manifest: Manifest) -> Consent:
        reader = Reader(envelope.body)
        statement = bytes(reader.take(DIGEST_BYTES))
        reader.end()
        return Consent(statement)


@dataclass(frozen=True)
class Opening:
    """One kind of a peer's shares: its mask key's (number 0), or those of its seeds by segment (1 and on)."""

    kind: ShareKind
    shares: Mapping[int, bytes]


@dataclass(frozen=True)
class Unmasking:
    """The shares that a site releases, one kind for each peer and itself."""

    openings: Mapping[str, Opening]

    def body(self) -> list[wire.Buffer]:
        pieces: list[wire.Buffer] = [wire.names(self.openings)]
        for _, opening in sorted(self.openings.items()):
            pieces += [wire.number(opening.kind, 1), wire.number(len(opening.shares), 2)]
            pieces += [wire.number(number, 2) + share for number, share in sorted(opening.shares.items())]
        return pieces

    @staticmethod
    def read(envelope: Envelope, manifest: Manifest) -> Unmasking:
        reader = Reader(envelope.body)
        names = reader.names(len(manifest.participants))
        openings = {name: _read_opening(reader, secrets_of(manifest)) for name in names}
        reader.end()
        return Unmasking(openings)


def _read_opening(reader: Reader, secrets: int) -> Opening:
    kind, count = reader.number(1), reader.count(secrets)
    if kind not in tuple(ShareKind):
        raise SecAggError("message-malformed")
    shares: dict[int, bytes] = {}
    for _ in range(count):
        number = reader.number(2)
        if number >= secrets or number <= max(shares, default=-1):
            raise SecAggError("message-malformed")
        shares[number] = bytes(reader.take(SHARE_BYTES))
    return Opening(ShareKind(kind), shares)


def dealers_digest(roster: bytes, dealers: tuple[str, ...]) -> bytes:
    """Names the set of sites that dealt shares in later messages."""
    return hashlib.sha256(b"dealers" + roster + wire.names(dealers)).digest()


def survivors_statement(dealers: bytes, survivors: tuple[str, ...]) -> bytes:
    """What a consent signs: these survivors, of these dealers, and thereby of this roster."""
    return hashlib.sha256(b"survivors" + dealers + wire.names(survivors)).digest()
