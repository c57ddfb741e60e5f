"""A coordinator and some sites that work together against the honest ones, and all that they can work out.

They hold the coordinator's key and their own; everything else they have from the honest sites' replies. Honest sites
are the real state machines. What the adversary knows is computed, not argued: shares it has seen are put together,
masks it can make are taken off.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from benchmarks.secagg_round import MODEL, Consortium
from momkd_fl.secagg import masking, messages, shamir, wire
from momkd_fl.secagg.encoding import encode
from momkd_fl.secagg.manifest import Manifest
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.site import Values, deal, join, receive
from momkd_fl.secagg.states import Dealt, Joined, State
from momkd_fl.secagg.wire import Kind


@dataclass
class Adversary:
    """The round as the adversary drives it; ``values`` are the honest sites' secrets, for comparison only."""

    consortium: Consortium
    manifest: Manifest
    corrupt: frozenset[str]
    values: Mapping[str, Values]
    digest: bytes = b""
    states: dict[str, State] = field(default_factory=dict)
    joined: dict[str, Joined] = field(default_factory=dict)
    announcements: dict[str, bytes] = field(default_factory=dict)
    dealt: dict[str, messages.Shares] = field(default_factory=dict)
    masked: dict[str, messages.Masked] = field(default_factory=dict)
    dealers_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    consents: dict[str, bytes] = field(default_factory=dict)
    openings: dict[str, messages.Unmasking] = field(default_factory=dict)
    corrupt_dealt: dict[tuple[str, bytes], tuple[Dealt, messages.Shares]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        message = self.manifest.signed(self.consortium.coordinator)
        for site in self.manifest.participants:
            holds = frozenset(one.name for one in self.manifest.segments if one.holders and site in one.holders)
            policy = self.consortium.policy(site, holds=holds)
            state, reply = join(policy, self.consortium.sites[site], message, MODEL)
            self.digest = state.round.digest
            self.announcements[site] = reply
            if site in self.corrupt:
                self.joined[site] = state
            else:
                self.states[site] = state

    @property
    def honest(self) -> tuple[str, ...]:
        return tuple(site for site in self.manifest.participants if site not in self.corrupt)

    def sign(self, kind: Kind, body: list[wire.Buffer], site: str = wire.COORDINATOR) -> bytes:
        """A message with a good signature of the coordinator or a corrupt site."""
        key = self.consortium.coordinator if site == wire.COORDINATOR else self.consortium.sites[site]
        return wire.close_envelope(kind, self.digest, site, body, key)

    def send(self, site: str, message: bytes) -> bytes:
        """Give an honest site a message, and note what it answers (raises what the site raises)."""
        self.states[site], reply = receive(self.states[site], message, self.values[site])
        envelope = messages.open_message(
            reply, wire.open_envelope(reply, None, 1 << 30).kind, self.manifest, self.digest
        )
        if envelope.kind == Kind.SHARES:
            self.dealt[site] = messages.Shares.read(envelope, self.manifest)
        if envelope.kind == Kind.MASKED:
            self.masked[site] = messages.Masked.read(envelope, self.manifest)
            delivery = wire.open_envelope(message, Kind.DELIVERY, 1 << 30)
            self.dealers_of[site] = messages.Delivery.read(delivery, self.manifest).dealers
        if envelope.kind == Kind.CONSENT:
            self.consents[site] = reply
        if envelope.kind == Kind.UNMASKING:
            self.openings[site] = messages.Unmasking.read(envelope, self.manifest)
        return reply

    def roster(self, sites: Iterable[str], instead: Mapping[str, bytes] | None = None) -> bytes:
        chosen = {**self.announcements, **(instead or {})}
        blobs = messages.Blobs(tuple(chosen[site] for site in sorted(sites)))
        return self.sign(Kind.ROSTER, blobs.body())

    def delivery(self, receiver: str, dealers: Iterable[str]) -> bytes:
        """The dealers' shares for a receiver; corrupt ones deal under whatever roster the receiver has."""
        state = self.states[receiver]
        assert isinstance(state, Dealt)
        sealed = {}
        for dealer in sorted(set(dealers) - {receiver}):
            if dealer in self.corrupt and dealer in state.keys:
                sealed[dealer] = self._corrupt(dealer, state)[1].dealings[receiver].sealed
            elif dealer in self.dealt:
                dealing = self.dealt[dealer].dealings.get(receiver)
                sealed[dealer] = b"" if dealing is None else dealing.sealed
        return self.sign(Kind.DELIVERY, messages.Delivery(tuple(sorted(dealers)), sealed).body())

    def survivors(self, survivors: Iterable[str], dropped: Iterable[str]) -> bytes:
        body = messages.Survivors(tuple(sorted(survivors)), tuple(sorted(dropped))).body()
        return self.sign(Kind.SURVIVORS, body)

    def consents_for(self, receiver: str, honest: Iterable[str]) -> bytes:
        """Honest sites' consents as they are, and the corrupt ones' to whatever the receiver has signed."""
        state = self.states[receiver]
        statement = getattr(state, "statement", bytes(32))
        corrupt = {site: self.sign(Kind.CONSENT, messages.Consent(statement).body(), site) for site in self.corrupt}
        chosen = {**{site: self.consents[site] for site in honest if site in self.consents}, **corrupt}
        return self.sign(Kind.CONSENTS, messages.Blobs(tuple(chosen[site] for site in sorted(chosen))).body())

    def secret(self, dealer: str, number: int) -> bytes | None:
        """An honest dealer's secret (0: mask key, 1 and on: a segment's seed), if enough of its shares were seen."""
        if dealer not in self.dealt:
            return None
        shares = self._corrupt_shares(dealer, number)
        for holder, unmasking in self.openings.items():
            opening = unmasking.openings.get(dealer)
            if opening is not None and number in opening.shares:
                shares[self.manifest.point(holder)] = opening.shares[number]
        try:
            found = shamir.recover(shares, self.manifest.share_threshold)
        except SecAggError:
            return None
        announced = messages.Announcement.read(
            messages.open_message(self.announcements[dealer], Kind.ANNOUNCEMENT, self.manifest, self.digest),
            self.manifest,
        )
        if number == 0:
            return found if masking.public_of(found) == announced.mask_public else None
        name = self.manifest.segments[number - 1].name
        right = masking.seed_commitment(self.digest, dealer, name, found) == announced.commitments[number - 1]
        return found if right else None

    def revealed(self, most: int, number: int = 1) -> list[tuple[str, ...]]:
        """All sets of up to ``most`` honest sites whose sum over a segment the adversary can compute."""
        seeds = {site for site in self.masked if self.secret(site, number) is not None}
        known = {site for site in self.masked | self.dealt if self.secret(site, 0) is not None} | self.corrupt
        found = []
        for size in range(1, most + 1):
            for group in combinations(sorted(seeds), size):
                cancels = all(
                    {site, peer} & known or (peer in group and site in self.dealers_of[peer])
                    for site in group
                    for peer in self.dealers_of[site]
                    if peer != site
                )
                if cancels:
                    found.append(group)
        return found

    def sum_of(self, group: tuple[str, ...], number: int = 1) -> np.ndarray:
        """The sum of their vectors over a segment, by taking off every mask that :meth:`revealed` counts on."""
        total = np.sum([self.masked[site].vector for site in group], axis=0, dtype=np.uint64)
        for site in group:
            segment, part = list(self.manifest.parts(total))[number - 1]
            seed = self.secret(site, number)
            assert seed is not None
            masking.add_mask(part, masking.self_key(seed, self.digest, site, segment.name), -1)
            for peer in self.dealers_of[site]:
                if peer != site and not (peer in group and site in self.dealers_of[peer]):
                    masking.add_mask(total, self._pair_key(site, peer), -1 if site < peer else 1)
        return list(self.manifest.parts(total))[number - 1][1]

    def truth(self, group: tuple[str, ...], number: int = 1) -> np.ndarray:
        """The same from the secrets."""
        segment = self.manifest.segments[number - 1]
        total = np.zeros(segment.length, np.uint64)
        for site in group:
            out = np.zeros(segment.length, np.uint64)
            if segment.name in self.values[site]:
                encode(self.values[site][segment.name], segment.encoding, out)
            total += out
        return total

    def _pair_key(self, site: str, peer: str) -> bytes:
        mine = self.joined[peer].mask_private if peer in self.corrupt else self.secret(peer, 0)
        owner, other = (peer, site) if mine is not None else (site, peer)
        private = mine if mine is not None else self.secret(site, 0)
        assert private is not None
        envelope = messages.open_message(self.announcements[other], Kind.ANNOUNCEMENT, self.manifest, self.digest)
        public = messages.Announcement.read(envelope, self.manifest).mask_public
        return masking.pair_key(private, public, self.digest, owner, other)

    def _corrupt(self, site: str, like: Dealt) -> tuple[Dealt, messages.Shares]:
        """A corrupt site's state and shares under the roster of an honest one; it deals as often as it likes."""
        known = self.corrupt_dealt.get((site, like.roster))
        if known is None:
            roster = self.roster(like.keys)
            try:
                state, reply = deal(self.joined[site], roster, os.urandom)
            except SecAggError:
                return self.corrupt_dealt.setdefault((site, like.roster), (like, messages.Shares(b"", {})))
            envelope = messages.open_message(reply, Kind.SHARES, self.manifest, self.digest)
            known = self.corrupt_dealt[site, like.roster] = state, messages.Shares.read(envelope, self.manifest)
        return known

    def _corrupt_shares(self, dealer: str, number: int) -> dict[int, bytes]:
        """What corrupt sites were dealt, opened with their own keys."""
        shares, dealing = {}, self.dealt[dealer]
        public = messages.Announcement.read(
            messages.open_message(self.announcements[dealer], Kind.ANNOUNCEMENT, self.manifest, self.digest),
            self.manifest,
        ).seal_public
        for site in self.corrupt & dealing.dealings.keys():
            sealed, context = dealing.dealings[site].sealed, self.digest + dealing.roster
            plain = masking.unseal(sealed, self.joined[site].seal_private, public, context, dealer, site)
            at = number * shamir.SHARE_BYTES
            shares[self.manifest.point(site)] = plain[at : at + shamir.SHARE_BYTES]
        return shares
