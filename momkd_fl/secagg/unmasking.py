"""Recovering the secrets behind a closed set of survivors, and the sum of their vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from momkd_fl.secagg import masking, messages, shamir
from momkd_fl.secagg.encoding import decode
from momkd_fl.secagg.manifest import Manifest, Segment
from momkd_fl.secagg.messages import Announcement, Opening, ShareKind
from momkd_fl.secagg.refusal import SecAggError


@dataclass(frozen=True)
class Sum:
    """What a round yields.

    Parameters
    ----------
    survivors : tuple of str
        The sites in the sum.
    values : mapping of str to (L,) float64
        By segment; within ``Encoding.error_max`` of the sum of real numbers.
    integers : mapping of str to (L,) uint64
        The same before decoding, exact modulo 2^64.
    withheld : tuple of str
        Segments with fewer than three surviving holders: their masks stay on.
    doubtful : tuple of (holder, dealer)
        Shares that differed from the dealer's commitment and were left out: one of the two is at fault.
    """

    survivors: tuple[str, ...]
    values: Mapping[str, NDArray[np.float64]] = field(repr=False)
    integers: Mapping[str, NDArray[np.uint64]] = field(repr=False)
    withheld: tuple[str, ...] = ()
    doubtful: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Unmasked:
    """The closed round: who announced which keys, who dealt shares, and who survived."""

    manifest: Manifest
    digest: bytes
    keys: Mapping[str, Announcement]
    neighbours: Mapping[str, tuple[str, ...]]
    dealers: tuple[str, ...]
    survivors: tuple[str, ...]

    def kind(self, dealer: str) -> ShareKind:
        """Which of a dealer's secrets is to be recovered."""
        return ShareKind.SELF_SEEDS if dealer in self.survivors else ShareKind.MASK_KEY

    def released(self, segment: Segment) -> bool:
        """Whether the manifest alone lets the segment be released; each site may be stricter."""
        survivors = frozenset(self.survivors)
        return segment.released(survivors, survivors)


@dataclass(frozen=True)
class Checked:
    """A site's openings, only shares that are what their dealers committed to; and the dealers of the others."""

    openings: Mapping[str, Opening]
    doubtful: tuple[str, ...]


def check_openings(
    closed: Unmasked, roster: bytes, dealt: Mapping[str, messages.Shares], holder: str, given: messages.Unmasking
) -> Checked:
    """Hold a site's shares against the dealers' commitments.

    Raises
    ------
    SecAggError
        ``share-kind`` for peers that it holds no shares of, or shares of the wrong kind.
    """
    peers = {peer for peer in (holder, *closed.neighbours[holder]) if peer in closed.dealers}
    if set(given.openings) != peers:
        raise SecAggError("share-kind", holder)
    good: dict[str, Opening] = {}
    doubtful = []
    for dealer, opening in given.openings.items():
        numbers_allowed = (
            opening.shares.keys() == {0} if closed.kind(dealer) == ShareKind.MASK_KEY else (0 not in opening.shares)
        )
        if opening.kind != closed.kind(dealer) or not numbers_allowed:
            raise SecAggError("share-kind", holder)
        commitments = dealt[dealer].dealings[holder].commitments
        right = {
            number: share
            for number, share in opening.shares.items()
            if masking.share_commitment(roster, dealer, holder, number, share) == commitments[number]
        }
        if len(right) < len(opening.shares):
            doubtful.append(dealer)
        good[dealer] = Opening(opening.kind, right)
    return Checked(good, tuple(doubtful))


def take_masks_off(closed: Unmasked, openings: Mapping[str, Checked], total: NDArray[np.uint64]) -> Sum:
    """The sum of the survivors' vectors; ``total`` (L,) is the sum of the masked ones and is overwritten.

    Raises
    ------
    SecAggError
        ``shares-too-few``, or ``secret-wrong`` naming the dealer whose shares do not belong together.
    """
    manifest = closed.manifest
    for site in closed.dealers:
        if site not in closed.survivors:
            _take_pair_masks_off(closed, openings, site, total)
    values, integers, withheld = {}, {}, []
    for number, (segment, part) in enumerate(manifest.parts(total), start=1):
        seeds = _seeds(closed, openings, number, segment)
        if seeds is None:
            withheld.append(segment.name)
            continue
        for site, seed in seeds.items():
            masking.add_mask(part, masking.self_key(seed, closed.digest, site, segment.name), -1)
        values[segment.name], integers[segment.name] = decode(part, segment.encoding), part
    doubtful = tuple((holder, dealer) for holder, checked in openings.items() for dealer in checked.doubtful)
    return Sum(closed.survivors, values, integers, tuple(withheld), doubtful)


def _take_pair_masks_off(
    closed: Unmasked, openings: Mapping[str, Checked], dropped: str, total: NDArray[np.uint64]
) -> None:
    """The survivors' masks with a site whose own vector never arrived."""
    private = _recover(closed, openings, dropped, 0)
    if masking.public_of(private) != closed.keys[dropped].mask_public:
        raise SecAggError("secret-wrong", dropped)
    for peer in closed.neighbours[dropped]:
        if peer in closed.survivors:
            key = masking.pair_key(private, closed.keys[peer].mask_public, closed.digest, dropped, peer)
            masking.add_mask(total, key, -1 if peer < dropped else 1)


def _seeds(closed: Unmasked, openings: Mapping[str, Checked], number: int, segment: Segment) -> dict[str, bytes] | None:
    """The survivors' seeds for a segment; None where it may not or, for its holders' sake, cannot be released."""
    if not closed.released(segment):
        return None
    seeds = {}
    for site in closed.survivors:
        try:
            seeds[site] = _recover(closed, openings, site, number)
        except SecAggError as problem:
            if problem.code == "shares-too-few" and segment.holders is not None:
                return None
            raise
        expected = closed.keys[site].commitments[number - 1]
        if masking.seed_commitment(closed.digest, site, segment.name, seeds[site]) != expected:
            raise SecAggError("secret-wrong", site)
    return seeds


def _recover(closed: Unmasked, openings: Mapping[str, Checked], dealer: str, number: int) -> bytes:
    shares = {
        closed.manifest.point(holder): checked.openings[dealer].shares[number]
        for holder, checked in openings.items()
        if dealer in checked.openings and number in checked.openings[dealer].shares
    }
    try:
        return shamir.recover(shares, closed.manifest.share_threshold)
    except SecAggError as problem:
        raise SecAggError(problem.code, dealer) from None
