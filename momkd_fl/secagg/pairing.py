"""Which sites share a mask: every two, or above 50 sites each with a few neighbours.

The graph is Harary's on a random ring (Bell and others, "Secure single-server aggregation with (poly)logarithmic
overhead", 2020). Its seed is the digest of all announced keys, which no party alone decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, prod


def neighbours(sites: Sequence[str], degree: int, seed: bytes) -> dict[str, tuple[str, ...]]:
    """Each site's neighbours, in rising order; the relation is mutual.

    Parameters
    ----------
    sites : sequence of str
    degree : int
        Neighbours wanted; 0, or as many as there are other sites: all of them. For an odd degree and an odd number
        of sites there is no such graph, and each site gets one neighbour more.
    seed : bytes
        Orders the ring.
    """
    n = len(sites)
    if degree == 0 or degree >= n - 1:
        return {site: tuple(sorted(peer for peer in sites if peer != site)) for site in sites}
    ring = sorted(sites, key=lambda site: hashlib.sha256(seed + site.encode("ascii")).digest())
    steps = [step for near in range(1, degree // 2 + 1) for step in (near, -near)]
    if degree % 2:
        steps += [n // 2] if n % 2 == 0 else [degree // 2 + 1, -(degree // 2 + 1)]
    return {
        site: tuple(sorted({ring[(place + step) % n] for step in steps} - {site})) for place, site in enumerate(ring)
    }


@dataclass(frozen=True)
class Risks:
    """Upper bounds on what a random graph with few neighbours adds in one round; 1 or above says nothing.

    Parameters
    ----------
    unsafe : float
        A site has so many corrupt neighbours that they hold enough shares of its secrets, or the graph of the honest
        survivors may fall apart, so that sums over parts of them show.
    lost : float
        A site's secret cannot be recovered, and the round yields nothing.
    """

    unsafe: float
    lost: float


def risks(sites: int, degree: int, share_threshold: int, corrupt: int, dropped: int) -> Risks:
    """Union bounds over all sites, for a graph that does not depend on who is corrupt or drops out.

    A site's neighbours are drawn without replacement (hypergeometric). Harary's graph falls apart only where at least
    degree // 2 sites that follow each other on the ring are gone.
    """
    run = degree // 2
    gone = corrupt + dropped
    apart = sites * prod(max(gone - place, 0) / (sites - place) for place in range(run))
    unsafe = sites * _at_least(share_threshold, sites - 1, corrupt, degree) + apart
    return Risks(unsafe, sites * _at_least(degree - share_threshold + 1, sites - 1, dropped, degree))


def _at_least(least: int, population: int, marked: int, drawn: int) -> float:
    """P(at least so many marked ones among those drawn)."""
    ways = sum(
        comb(marked, found) * comb(population - marked, drawn - found)
        for found in range(max(least, 0), min(marked, drawn) + 1)
    )
    return ways / comb(population, drawn)
