"""The coordinator's part: collect each step's messages, close the step, and in the end take the masks off the sum.

    keys → shares → vectors → consents → unmasking → a Sum

:func:`receive` refuses a site's message or takes it in; :func:`close` ends a step when all have answered or the driver
waits no longer. Sites that are missing then have dropped out. Nothing here sees one site's vector without its masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from momkd_fl.secagg import masking, messages, wire
from momkd_fl.secagg.manifest import Manifest, read_manifest
from momkd_fl.secagg.messages import Announcement
from momkd_fl.secagg.pairing import neighbours
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.unmasking import Checked, Sum, Unmasked, check_openings, take_masks_off
from momkd_fl.secagg.wire import Envelope, Kind


class Step(Enum):
    """Whose messages are being collected."""

    KEYS = Kind.ANNOUNCEMENT
    SHARES = Kind.SHARES
    VECTORS = Kind.MASKED
    CONSENTS = Kind.CONSENT
    UNMASKING = Kind.UNMASKING


@dataclass(frozen=True)
class Collecting:
    """The state between two messages. ``total`` (L,) is added to in place: use only the newest state.

    Parameters
    ----------
    manifest, digest, identities, identity
        The round, its digest, the sites' Ed25519 public keys, and the coordinator's private one.
    step : Step
    received : mapping of str to bytes
        By site, the digest of its message of this step: a repetition is ignored, another one refused.
    announcements : mapping of str to bytes
        The messages with the sites' keys, in the order of names.
    roster : bytes
        Digest of the list of them, once it is closed; and so for the rest.
    neighbours, shares, total, dealers_digest, survivors, statement, consents, openings
    """

    manifest: Manifest
    digest: bytes
    identities: Mapping[str, bytes]
    identity: Ed25519PrivateKey = field(repr=False)
    step: Step = Step.KEYS
    received: Mapping[str, bytes] = field(default_factory=dict)
    announcements: Mapping[str, bytes] = field(default_factory=dict)
    keys: Mapping[str, Announcement] = field(default_factory=dict)
    roster: bytes = b""
    neighbours: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shares: Mapping[str, messages.Shares] = field(default_factory=dict)
    total: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)
    dealers_digest: bytes = b""
    survivors: tuple[str, ...] = ()
    statement: bytes = b""
    consents: Mapping[str, bytes] = field(default_factory=dict)
    openings: Mapping[str, Checked] = field(default_factory=dict)

    @property
    def dealers(self) -> tuple[str, ...]:
        return tuple(sorted(self.shares))

    @property
    def expected(self) -> tuple[str, ...]:
        """The sites that may answer in this step."""
        by_step = {Step.KEYS: self.manifest.participants, Step.SHARES: tuple(self.keys), Step.VECTORS: self.dealers}
        return by_step.get(self.step, self.survivors)

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of them that have not answered yet."""
        return tuple(site for site in self.expected if site not in self.received)


Outgoing = dict[str, bytes]
"""A message for each site, by name."""


def begin(
    manifest_message: bytes, identities: Mapping[str, bytes], identity: Ed25519PrivateKey
) -> tuple[Collecting, Outgoing]:
    """Open a round with a manifest (:meth:`Manifest.signed`) that this coordinator has signed.

    Raises
    ------
    SecAggError
        As :func:`~momkd_fl.secagg.manifest.read_manifest`; ``site-not-allowed`` for a participant without identity.
    """
    manifest, digest = read_manifest(manifest_message, identity.public_key().public_bytes_raw())
    for site in manifest.participants:
        if site not in identities:
            raise SecAggError("site-not-allowed", site)
    return Collecting(manifest, digest, identities, identity), dict.fromkeys(manifest.participants, manifest_message)


def receive(state: Collecting, message: bytes) -> Collecting:
    """Take a site's message in.

    Raises
    ------
    SecAggError
        The message is refused; the state is still good, and the site may be treated as dropped out.
    """
    envelope = messages.open_message(message, state.step.value, state.manifest, state.digest)
    site = envelope.sender
    if site not in state.expected:
        raise SecAggError("sender-unknown", site)
    envelope.verify(state.identities[site])
    before = state.received.get(site)
    if before == envelope.digest:
        return state
    if before is not None:
        raise SecAggError("sender-equivocates", site)
    taken = _TAKE[state.step](state, envelope, message)
    return replace(taken, received={**state.received, site: envelope.digest})


def close(state: Collecting) -> tuple[Collecting, Outgoing]:
    """End a step other than the last: its result goes to every site that is still in.

    Raises
    ------
    SecAggError
        ``sites-too-few``: the round cannot be completed; start another with a new number.
    """
    if len(state.received) < state.manifest.threshold:
        raise SecAggError("sites-too-few")
    if state.step == Step.KEYS:
        return _close_keys(state)
    if state.step == Step.SHARES:
        return _close_shares(state)
    if state.step == Step.VECTORS:
        return _close_vectors(state)
    if state.step == Step.CONSENTS:
        blobs = messages.Blobs(tuple(state.consents[site] for site in sorted(state.consents)))
        message = _write(state, Kind.CONSENTS, blobs.body())
        return replace(state, step=Step.UNMASKING, received={}), dict.fromkeys(state.survivors, message)
    raise SecAggError("message-unexpected")


def finish(state: Collecting) -> Sum:
    """Recover the secrets, hold each against its dealer's commitment, and take the masks off.

    Raises
    ------
    SecAggError
        ``message-unexpected`` before the last step, ``shares-too-few``, or ``secret-wrong`` naming the dealer.
    """
    if state.step != Step.UNMASKING:
        raise SecAggError("message-unexpected")
    unmasked = Unmasked(state.manifest, state.digest, state.keys, state.neighbours, state.dealers, state.survivors)
    return take_masks_off(unmasked, state.openings, state.total.copy())


def _take_keys(state: Collecting, envelope: Envelope, message: bytes) -> Collecting:
    keys = Announcement.read(envelope, state.manifest)
    used = {key for each in state.keys.values() for key in (each.mask_public, each.seal_public)}
    if keys.mask_public == keys.seal_public or used & {keys.mask_public, keys.seal_public}:
        raise SecAggError("key-repeated", envelope.sender)
    for key in (keys.mask_public, keys.seal_public):
        masking.check_public(key, envelope.sender)
    announcements = dict(sorted({**state.announcements, envelope.sender: message}.items()))
    return replace(state, announcements=announcements, keys=dict(sorted({**state.keys, envelope.sender: keys}.items())))


def _take_shares(state: Collecting, envelope: Envelope, message: bytes) -> Collecting:
    shares, site = messages.Shares.read(envelope, state.manifest), envelope.sender
    if shares.roster != state.roster or set(shares.dealings) != {site, *state.neighbours[site]}:
        raise SecAggError("roster-differs", site)
    return replace(state, shares={**state.shares, site: shares})


def _take_vector(state: Collecting, envelope: Envelope, message: bytes) -> Collecting:
    masked = messages.Masked.read(envelope, state.manifest)
    if masked.dealers != state.dealers_digest:
        raise SecAggError("roster-differs", envelope.sender)
    np.add(state.total, masked.vector, out=state.total)
    return state


def _take_consent(state: Collecting, envelope: Envelope, message: bytes) -> Collecting:
    if messages.Consent.read(envelope, state.manifest).statement != state.statement:
        raise SecAggError("survivors-differ", envelope.sender)
    return replace(state, consents={**state.consents, envelope.sender: message})


def _take_opening(state: Collecting, envelope: Envelope, message: bytes) -> Collecting:
    unmasking = messages.Unmasking.read(envelope, state.manifest)
    unmasked = Unmasked(state.manifest, state.digest, state.keys, state.neighbours, state.dealers, state.survivors)
    good = check_openings(unmasked, state.roster, state.shares, envelope.sender, unmasking)
    return replace(state, openings={**state.openings, envelope.sender: good})


_TAKE: dict[Step, Callable[[Collecting, Envelope, bytes], Collecting]] = {
    Step.KEYS: _take_keys,
    Step.SHARES: _take_shares,
    Step.VECTORS: _take_vector,
    Step.CONSENTS: _take_consent,
    Step.UNMASKING: _take_opening,
}


def _close_keys(state: Collecting) -> tuple[Collecting, Outgoing]:
    roster = messages.Blobs(tuple(state.announcements.values()))
    digest = roster.digest()
    message = _write(state, Kind.ROSTER, roster.body())
    pairs = neighbours(tuple(state.keys), state.manifest.degree, digest)
    after = replace(state, step=Step.SHARES, received={}, roster=digest, neighbours=pairs)
    return after, dict.fromkeys(state.keys, message)


def _close_shares(state: Collecting) -> tuple[Collecting, Outgoing]:
    out: Outgoing = {}
    for site in state.dealers:
        peers = [peer for peer in state.neighbours[site] if peer in state.shares]
        sealed = {peer: state.shares[peer].dealings[site].sealed for peer in peers}
        out[site] = _write(state, Kind.DELIVERY, messages.Delivery(state.dealers, sealed).body())
    digest = messages.dealers_digest(state.roster, state.dealers)
    total = np.zeros(state.manifest.length, np.uint64)
    return replace(state, step=Step.VECTORS, received={}, total=total, dealers_digest=digest), out


def _close_vectors(state: Collecting) -> tuple[Collecting, Outgoing]:
    survivors = tuple(sorted(state.received))
    dropped = tuple(site for site in state.dealers if site not in state.received)
    message = _write(state, Kind.SURVIVORS, messages.Survivors(survivors, dropped).body())
    statement = messages.survivors_statement(state.dealers_digest, survivors)
    after = replace(state, step=Step.CONSENTS, received={}, survivors=survivors, statement=statement)
    return after, dict.fromkeys(survivors, message)


def _write(state: Collecting, kind: Kind, body: list[wire.Buffer]) -> bytes:
    return wire.close_envelope(kind, state.digest, wire.COORDINATOR, body, state.identity)
