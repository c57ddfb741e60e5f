"""A site's part: five steps, each from one immutable state and one message to the next state and one reply.

    joined → dealt → masked → consented → finished

A state refuses every message but the next. The driver keeps only the newest state, and the last reply for sending it
again; before it sends the first it must have stored the round's number, so that no restart takes part twice. Secrets
leave the state as soon as no later step needs them. (Bonawitz and others, "Practical secure aggregation for
privacy-preserving machine learning", 2017, against an active server; with a set of segments masked separately.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from momkd_fl.secagg import masking, messages, shamir
from momkd_fl.secagg.encoding import encode
from momkd_fl.secagg.manifest import HOLDERS_MIN, Policy, read_manifest
from momkd_fl.secagg.messages import Announcement, Opening, ShareKind
from momkd_fl.secagg.pairing import neighbours
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.shamir import Random
from momkd_fl.secagg.states import Consented, Dealt, Finished, Joined, Masked, Round, State
from momkd_fl.secagg.wire import Kind

Values = Mapping[str, NDArray[np.floating]]


def join(
    policy: Policy, identity: Ed25519PrivateKey, manifest_message: bytes, model: bytes, random: Random = os.urandom
) -> tuple[Joined, bytes]:
    """Check the manifest, make fresh keys, announce them.

    Parameters
    ----------
    policy : Policy
    identity : Ed25519PrivateKey
        The site's own.
    manifest_message : bytes
    model : bytes
        SHA-256 over the model and memory that the site received for this round.
    random : callable
        Gives bytes from a cryptographic generator.

    Raises
    ------
    SecAggError
        Whatever makes the site stay out of the round.
    """
    manifest, digest = read_manifest(manifest_message, policy.coordinator)
    policy.check(manifest, model)
    here = Round(manifest, digest, policy, identity)
    mask_private, seal_private = random(masking.KEY_BYTES), random(masking.KEY_BYTES)
    seeds = tuple(random(masking.KEY_BYTES) for _ in manifest.segments)
    commitments = tuple(
        masking.seed_commitment(digest, policy.site, segment.name, seed)
        for segment, seed in zip(manifest.segments, seeds, strict=True)
    )
    keys = Announcement(masking.public_of(mask_private), masking.public_of(seal_private), commitments)
    reply = here.write(Kind.ANNOUNCEMENT, keys.body())
    return Joined(here, mask_private, seal_private, seeds, reply), reply


def receive(
    state: State,
    message: bytes,
    values: Values | None = None,
    weights: Mapping[str, float] | None = None,
    random: Random = os.urandom,
) -> tuple[State, bytes]:
    """The next state and the reply to the coordinator's next message.

    Parameters
    ----------
    state : State
        Not to be used again after this returns.
    message : bytes
    values : mapping of str to (L,) arrays, optional
        By segment, clipped already; for the delivery of shares, which is answered with the masked vector. A segment
        that this site is no holder of may be left out.
    weights : mapping of str to float, optional
        The site's agreed weight by segment, where it is not 1.
    random : callable
        Gives bytes from a cryptographic generator.

    Raises
    ------
    SecAggError
        The message is refused and the state is still good for the right one.
    """
    if isinstance(state, Joined):
        return deal(state, message, random)
    if isinstance(state, Dealt):
        return mask(state, message, values or {}, weights or {})
    if isinstance(state, Masked):
        return consent(state, message)
    if isinstance(state, Consented):
        return unmask(state, message)
    raise SecAggError("message-unexpected")


def deal(state: Joined, message: bytes, random: Random) -> tuple[Dealt, bytes]:
    """Check every site's keys, and deal shares of the own secrets to the neighbours."""
    here, manifest = state.round, state.round.manifest
    roster = messages.Blobs.read(here.read(message, Kind.ROSTER), manifest)
    keys = _read_roster(state, roster)
    digest = roster.digest()
    peers = neighbours(tuple(keys), manifest.degree, digest)[here.site]
    receivers = tuple(sorted((*peers, here.site)))
    points = {site: manifest.point(site) for site in receivers}
    if len(receivers) < manifest.share_threshold:
        raise SecAggError("sites-too-few")
    dealt = [
        shamir.deal(secret, tuple(points.values()), manifest.share_threshold, random)
        for secret in (state.mask_private, *state.seeds)
    ]
    dealings, own = {}, b""
    for receiver, point in points.items():
        shares = [secret[point] for secret in dealt]
        commitments = tuple(
            masking.share_commitment(digest, here.site, receiver, number, share) for number, share in enumerate(shares)
        )
        if receiver == here.site:
            own, sealed = b"".join(shares), b""
        else:
            nonce = random(masking.NONCE_BYTES)
            public = keys[receiver].seal_public
            context = here.digest + digest
            sealed = masking.seal(b"".join(shares), state.seal_private, public, context, here.site, receiver, nonce)
        dealings[receiver] = messages.Dealing(sealed, commitments)
    reply = here.write(Kind.SHARES, messages.Shares(digest, dealings).body())
    return Dealt(here, state.mask_private, state.seal_private, state.seeds, digest, keys, peers, own), reply


def mask(state: Dealt, message: bytes, values: Values, weights: Mapping[str, float]) -> tuple[Masked, bytes]:
    """Open the shares of the neighbours, encode the values, and mask them."""
    here, manifest = state.round, state.round.manifest
    delivery = messages.Delivery.read(here.read(message, Kind.DELIVERY), manifest)
    dealers = frozenset(delivery.dealers)
    if not dealers <= frozenset(state.keys) or here.site not in dealers:
        raise SecAggError("roster-differs")
    peers = tuple(peer for peer in state.neighbours if peer in dealers)
    if len(dealers) < manifest.threshold or len(peers) + 1 < manifest.share_threshold:
        raise SecAggError("sites-too-few")
    if tuple(delivery.sealed) != peers:
        raise SecAggError("roster-differs")
    shares = {here.site: state.shares}
    for peer, sealed in delivery.sealed.items():
        context, public = here.digest + state.roster, state.keys[peer].seal_public
        shares[peer] = masking.unseal(sealed, state.seal_private, public, context, peer, here.site)
        if len(shares[peer]) != len(state.shares):
            raise SecAggError("share-not-opened", peer)
    vector = _encoded(here, values, weights)
    for (segment, part), seed in zip(manifest.parts(vector), state.seeds, strict=True):
        key = masking.self_key(seed, here.digest, here.site, segment.name)
        masking.add_mask(part, key, 1)
    for peer in peers:
        key = masking.pair_key(state.mask_private, state.keys[peer].mask_public, here.digest, here.site, peer)
        masking.add_mask(vector, key, 1 if here.site < peer else -1)
    digest = messages.dealers_digest(state.roster, delivery.dealers)
    reply = here.write(Kind.MASKED, messages.Masked(digest, vector).body())
    return Masked(here, delivery.dealers, shares, digest), reply


def consent(state: Masked, message: bytes) -> tuple[Consented, bytes]:
    """Sign one set of survivors."""
    here, manifest = state.round, state.round.manifest
    found = messages.Survivors.read(here.read(message, Kind.SURVIVORS), manifest)
    survivors = frozenset(found.survivors)
    if survivors & frozenset(found.dropped) or survivors | frozenset(found.dropped) != frozenset(state.dealers):
        raise SecAggError("survivors-overlap")
    if here.site not in survivors:
        raise SecAggError("survivors-without-self", here.site)
    if len(survivors) < manifest.threshold:
        raise SecAggError("sites-too-few")
    if len(survivors & here.policy.counted) < max(HOLDERS_MIN, here.policy.sites_min):
        raise SecAggError("pinned-too-few")
    statement = messages.survivors_statement(state.dealers_digest, found.survivors)
    reply = here.write(Kind.CONSENT, messages.Consent(statement).body())
    return Consented(here, state.dealers, state.shares, found.survivors, statement), reply


def unmask(state: Consented, message: bytes) -> tuple[Finished, bytes]:
    """Once enough sites have signed the same survivors, release one kind of share for each peer."""
    here, manifest = state.round, state.round.manifest
    consents = messages.Blobs.read(here.read(message, Kind.CONSENTS), manifest)
    signers = set()
    for one in consents.messages:
        envelope = here.read_peer(one, Kind.CONSENT)
        if messages.Consent.read(envelope, manifest).statement != state.statement:
            raise SecAggError("survivors-differ", envelope.sender)
        if envelope.sender not in state.survivors or envelope.sender in signers:
            raise SecAggError("sender-unknown", envelope.sender)
        signers.add(envelope.sender)
    if len(signers) < manifest.threshold:
        raise SecAggError("consents-too-few")
    openings = {peer: _opening(here, shares, peer, state.survivors) for peer, shares in state.shares.items()}
    return Finished(here), here.write(Kind.UNMASKING, messages.Unmasking(openings).body())


def _read_roster(state: Joined, roster: messages.Blobs) -> dict[str, Announcement]:
    here, manifest = state.round, state.round.manifest
    keys: dict[str, Announcement] = {}
    for one in roster.messages:
        envelope = here.read_peer(one, Kind.ANNOUNCEMENT)
        if envelope.sender <= max(keys, default=""):
            raise SecAggError("message-malformed")
        keys[envelope.sender] = Announcement.read(envelope, manifest)
        if envelope.sender == here.site and one != state.announcement:
            raise SecAggError("roster-own-changed", here.site)
    if here.site not in keys:
        raise SecAggError("roster-own-changed", here.site)
    if len(keys) < manifest.threshold:
        raise SecAggError("sites-too-few")
    if len({key for each in keys.values() for key in (each.mask_public, each.seal_public)}) < 2 * len(keys):
        raise SecAggError("key-repeated")
    return keys


def _encoded(here: Round, values: Values, weights: Mapping[str, float]) -> NDArray[np.uint64]:
    """The values one after the other (L,); zeros where this site is no holder."""
    vector = np.zeros(here.manifest.length, np.uint64)
    if not values.keys() <= {segment.name for segment in here.manifest.segments}:
        raise SecAggError("values-wrong", here.site)
    for segment, part in here.manifest.parts(vector):
        given = values.get(segment.name)
        if segment.holders is not None and here.site not in segment.holders:
            if given is not None and np.any(given):
                raise SecAggError("values-not-held", here.site)
            continue
        if given is None or given.shape != (segment.length,):
            raise SecAggError("values-wrong", here.site)
        encode(given, segment.encoding, part, weights.get(segment.name, 1.0), here.site)
    return vector


def _opening(here: Round, shares: bytes, peer: str, survivors: tuple[str, ...]) -> Opening:
    """The one kind of ``peer``'s shares that may be released: seeds of released segments, or the mask key."""
    pieces = [shares[at : at + shamir.SHARE_BYTES] for at in range(0, len(shares), shamir.SHARE_BYTES)]
    if peer not in survivors:
        return Opening(ShareKind.MASK_KEY, {0: pieces[0]})
    released = {
        number: pieces[number]
        for number, segment in enumerate(here.manifest.segments, start=1)
        if segment.released(frozenset(survivors), here.policy.counted, here.policy.sites_min)
    }
    return Opening(ShareKind.SELF_SEEDS, released)
