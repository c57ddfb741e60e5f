"""What a round is: the coordinator's signed manifest, and the site's policy that it is held against.

The manifest's digest is in every later message of every site, so that sites which were told different things (other
models, sets of sites, or segments) notice before one of them masks anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from momkd_fl.secagg import wire
from momkd_fl.secagg.encoding import Encoding
from momkd_fl.secagg.masking import DIGEST_BYTES
from momkd_fl.secagg.refusal import SecAggError

SITES_MIN = 3
SITES_COMPLETE_MAX = 50
"""Up to here every two sites share a mask; above, a site shares masks with ``degree`` neighbours."""

SITES_MAX = 1000
SEGMENTS_MAX = 256
LENGTH_MAX = 1 << 28
HOLDERS_MIN = 3
"""A sum is released over at least so many sites that the contract pins; a segment's over so many of its holders."""

MANIFEST_BYTES_MAX = 1 << 22


def least_threshold(sites: int) -> int:
    """⌊2n/3⌋ + 1: two sets of so many signers share more than a third of all sites."""
    return 2 * sites // 3 + 1


@dataclass(frozen=True)
class Segment:
    """A stretch of the one vector: weights, sums or counts of a class or of genomics, metrics.

    Parameters
    ----------
    name : str
        The key of the site's values.
    length : int
        Numbers in it.
    encoding : Encoding
    holders : tuple of str, optional
        The sites that contribute to it, in rising order; all others mask zeros. It has self masks of its own, which
        are not taken off unless three holders survive. None: all participants contribute.
    """

    name: str
    length: int
    encoding: Encoding
    holders: tuple[str, ...] | None = None

    def released(self, survivors: frozenset[str], counted: frozenset[str], sites_min: int = 0) -> bool:
        """Whether enough of those ``counted`` (by the contract, or all) are among the surviving contributors."""
        contributors = survivors if self.holders is None else survivors & frozenset(self.holders)
        return len(contributors & counted) >= max(HOLDERS_MIN, sites_min)


@dataclass(frozen=True)
class Manifest:
    """One round, as all its parties must know it.

    Parameters
    ----------
    run : str
    round_number : int
    model : bytes
        SHA-256 over the global model and memory of the round, H(θ_t, M_t) (32 bytes).
    participants : tuple of str
        Names in rising order.
    threshold : int
        Sites that must sign the survivors, and shares that recover a secret.
    segments : tuple of Segment
        The vector's, one after the other.
    degree : int
        Neighbours of a site; 0: every two sites share a mask (needed up to 50 sites).
    """

    run: str
    round_number: int
    model: bytes
    participants: tuple[str, ...]
    threshold: int
    segments: tuple[Segment, ...]
    degree: int = 0

    @property
    def length(self) -> int:
        """Numbers in the vector."""
        return sum(segment.length for segment in self.segments)

    @property
    def share_threshold(self) -> int:
        """Shares that recover a secret; with neighbours only, the same part of a neighbourhood with its centre."""
        return least_threshold(self.degree + 1) if self.degree else self.threshold

    def parts(self, vector: NDArray[np.uint64]) -> Iterator[tuple[Segment, NDArray[np.uint64]]]:
        """Each segment with its view of the vector (L,)."""
        at = 0
        for segment in self.segments:
            yield segment, vector[at : at + segment.length]
            at += segment.length

    def point(self, site: str) -> int:
        """The site's place among Shamir's points."""
        return self.participants.index(site) + 1

    def check(self) -> None:
        """Raise ``manifest-invalid`` where a rule that holds for every consortium is broken."""
        n = len(self.participants)
        sound = (
            SITES_MIN <= n <= SITES_MAX
            and 0 <= self.round_number < 1 << 32
            and len(self.model) == DIGEST_BYTES
            and self.participants == tuple(sorted(set(self.participants)))
            and least_threshold(n) <= self.threshold <= n
            and (n <= SITES_COMPLETE_MAX if self.degree == 0 else HOLDERS_MIN <= self.degree < n)
            and not (n <= SITES_COMPLETE_MAX and self.degree)
            and n * self.degree % 2 == 0
            and 1 <= len(self.segments) <= SEGMENTS_MAX
            and len({segment.name for segment in self.segments}) == len(self.segments)
            and self.length <= LENGTH_MAX
            and all(self._sound(segment) for segment in self.segments)
        )
        if not sound:
            raise SecAggError("manifest-invalid")

    def _sound(self, segment: Segment) -> bool:
        holders = segment.holders
        return (
            segment.length >= 1
            and segment.encoding.fits(len(self.participants))
            and (holders is None or holders == tuple(sorted(set(holders) & set(self.participants))))
        )

    def signed(self, key: Ed25519PrivateKey) -> bytes:
        """The coordinator's message (raises ``manifest-invalid``)."""
        self.check()
        body = [
            wire.name(self.run),
            wire.number(self.round_number, 4),
            self.model,
            wire.names(self.participants),
            wire.number(self.threshold, 2),
            wire.number(self.degree, 2),
            wire.number(len(self.segments), 2),
            *(_write_segment(segment) for segment in self.segments),
        ]
        return wire.close_envelope(wire.Kind.MANIFEST, wire.NO_MANIFEST, wire.COORDINATOR, body, key)


def read_manifest(message: bytes, coordinator: bytes) -> tuple[Manifest, bytes]:
    """The manifest of a message, and its digest.

    Raises
    ------
    SecAggError
        As :func:`~momkd_fl.secagg.wire.open_envelope`; ``signature-wrong``, ``manifest-invalid``.
    """
    envelope = wire.open_envelope(message, wire.Kind.MANIFEST, MANIFEST_BYTES_MAX)
    if envelope.sender != wire.COORDINATOR or envelope.manifest != wire.NO_MANIFEST:
        raise SecAggError("message-malformed")
    envelope.verify(coordinator)
    reader = wire.Reader(envelope.body)
    run, round_number, model = reader.name(), reader.number(4), bytes(reader.take(DIGEST_BYTES))
    participants = reader.names(SITES_MAX)
    threshold, degree = reader.number(2), reader.number(2)
    segments = tuple(_read_segment(reader) for _ in range(reader.count(SEGMENTS_MAX)))
    reader.end()
    manifest = Manifest(run, round_number, model, participants, threshold, segments, degree)
    manifest.check()
    return manifest, envelope.digest


@dataclass(frozen=True)
class Policy:
    """What a site agreed to, from its own contract and never from the coordinator.

    Parameters
    ----------
    site : str
        The site's own name.
    coordinator : bytes
        The coordinator's Ed25519 public key.
    identities : mapping of str to bytes
        Ed25519 public keys of the sites on the consortium's allow-list, this one's too.
    pinned : frozenset of str
        Those whose keys the contract names; only they, and the site itself, count towards the least number of
        sites in a sum.
    runs : frozenset of str
        The runs the site takes part in.
    last_round : int
        The last round of the run in which the site announced keys (kept on disk *before* it announces); -1: none.
    holds : frozenset of str
        Segments with holders that the site contributes to.
    gated : frozenset of str
        Segments that must have holders.
    sites_min : int
        Fewest counted sites in a sum, and holders in a segment's, where the site wants more than HOLDERS_MIN: each
        adds only a share of the noise.
    neighbours_only : bool
        Allow more than 50 sites, and masks with neighbours only.
    """

    site: str
    coordinator: bytes
    identities: Mapping[str, bytes]
    pinned: frozenset[str]
    runs: frozenset[str]
    last_round: int = -1
    holds: frozenset[str] = field(default_factory=frozenset)
    gated: frozenset[str] = field(default_factory=frozenset)
    sites_min: int = 0
    neighbours_only: bool = False

    @property
    def counted(self) -> frozenset[str]:
        """The sites that this one knows to exist."""
        return self.pinned | {self.site}

    def check(self, manifest: Manifest, model: bytes) -> None:
        """Refuse a manifest that is sound, but not what the site agreed to or received (``model``: its digest)."""
        participants = frozenset(manifest.participants)
        if manifest.run not in self.runs:
            raise SecAggError("run-not-allowed")
        if manifest.round_number <= self.last_round:
            raise SecAggError("round-not-rising")
        if manifest.model != model:
            raise SecAggError("model-differs")
        if self.site not in participants:
            raise SecAggError("site-not-listed", self.site)
        for site in manifest.participants:
            if site not in self.identities:
                raise SecAggError("site-not-allowed", site)
        if len(participants & self.counted) < max(manifest.threshold, self.sites_min):
            raise SecAggError("pinned-too-few")
        if manifest.degree and not self.neighbours_only:
            raise SecAggError("pairing-not-allowed")
        for segment in manifest.segments:
            if segment.holders is None and segment.name in self.gated:
                raise SecAggError("segment-ungated")
            if segment.holders is not None and self.site in segment.holders and segment.name not in self.holds:
                raise SecAggError("holder-false", self.site)


def _write_segment(segment: Segment) -> bytes:
    encoding = segment.encoding
    holders = b"\0" if segment.holders is None else b"\1" + wire.names(segment.holders)
    return b"".join(
        [
            wire.name(segment.name),
            wire.number(segment.length, 4),
            wire.number(encoding.fraction_bits, 1),
            wire.real(encoding.limit),
            wire.real(encoding.weight_max),
            holders,
        ]
    )


def _read_segment(reader: wire.Reader) -> Segment:
    name, length, bits = reader.name(), reader.number(4), reader.number(1)
    encoding = Encoding(bits, reader.real(), reader.real())
    flag = reader.number(1)
    if flag > 1:
        raise SecAggError("message-malformed")
    return Segment(name, length, encoding, reader.names(SITES_MAX) if flag else None)
