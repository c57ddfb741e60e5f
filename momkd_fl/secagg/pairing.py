"""Which sites share a mask: every two, or above 50 sites each with a few neighbours.

The graph is Harary's on a random ring (Bell and others, "Secure single-server aggregation with (poly)logarithmic
overhead", 2020). Its seed is the digest of all announced keys, which no party alone decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


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
