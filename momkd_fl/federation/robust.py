"""A middle of several sites' weight differences that a minority cannot carry away.

Geometric median: the point z with the least sum of w_i |x_i - z|, by Weiszfeld's iteration with smoothed distances
(Pillutla, Kakade, Harchaoui 2022, "Robust Aggregation for Federated Learning", algorithm 2). Every iterate is a convex
combination of the points, so that the iteration runs on the n x n squared distances alone: |x_i - z|^2 =
(D a)_i - a^T D a / 2 for z = sum a_j x_j with sum a_j = 1. It reads the vectors twice, whatever the number of steps.

With weights of attackers under half of the whole, it stays within 2 (1 - f) / (1 - 2 f) times the largest distance
between an honest point and any centre from that centre, f being the attackers' share (Minsker 2015, lemma 2.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Vectors = Sequence[NDArray[np.float32]]

SMOOTHING = 1e-6
"""Least distance that counts, as a share of the root mean square distance between points. Squared distances are told
apart to about this share of the largest, so that points are to be clipped first: one that is a million times farther
out than the others lie apart would blur them."""
TOLERANCE = 1e-8
"""The iteration ends where no coefficient changes by more."""
ITERATIONS_MAX = 2000
TRIMMED_SHARE = 0.2
"""Share of the sites cut off at either end of a trimmed mean, rounded down, but one at least."""
BLOCK = 1 << 16
"""Numbers of each vector worked on at once: they stay in the cache, and nothing of a vector's length is copied."""


@dataclass(frozen=True)
class Middle:
    """A middle (P,) of n vectors.

    Attributes
    ----------
    value : (P,), float64
    parts : (n,) norm of what each vector is of ``value``: its coefficient times its norm, and for a trimmed mean the
        norm of its numbers that were kept, over their number
    iterations : of Weiszfeld; 0 where there are none
    converged : whether they ended by ``TOLERANCE`` and not by ``ITERATIONS_MAX``
    """

    value: Floats
    parts: Floats
    iterations: int = 0
    converged: bool = True


def norm(vectors: Vectors) -> float:
    """L2 norm of several float32 vectors together, in double precision: no finite vector's norm overflows."""
    return float(np.sqrt(sum(float(np.vdot(part, part)) for vector in vectors for (part,) in _blocks([vector]))))


def geometric_median(vectors: Vectors, weights: Floats) -> Middle:
    """Weighted geometric median of ``vectors`` (n of them, (P,) each); ``weights`` (n,) positive."""
    squared = squared_distances(vectors)
    coefficients, iterations, converged = weiszfeld(squared, weights)
    norms = np.array([norm([vector]) for vector in vectors])
    return Middle(_blockwise(vectors, lambda block: coefficients @ block), coefficients * norms, iterations, converged)


def squared_distances(vectors: Vectors) -> Floats:
    """Squared distances (n, n), summed in double precision from differences, so that a common shift costs nothing."""
    found = np.zeros((len(vectors), len(vectors)))
    for block in _blocks(vectors):
        for one, two in itertools.combinations(range(len(vectors)), 2):
            difference = block[one] - block[two]
            found[one, two] += difference @ difference
    return found + found.T


def weiszfeld(squared: Floats, weights: Floats) -> tuple[Floats, int, bool]:
    """Coefficients (n,), summing to 1, of the geometric median; iterations; whether they converged.

    Distances are smoothed relative to their own size, so that scaling all points changes no coefficient.
    """
    coefficients = weights / weights.sum()
    spread = float(np.sqrt(squared.mean()))
    if spread == 0.0:
        return coefficients, 0, True
    scaled = squared / spread**2
    for iteration in range(1, ITERATIONS_MAX + 1):
        to_points = scaled @ coefficients
        distances = np.sqrt(np.maximum(to_points - coefficients @ to_points / 2, SMOOTHING**2))
        pulled = weights / distances
        new = pulled / pulled.sum()
        change = float(np.abs(new - coefficients).max())
        coefficients = new
        if change <= TOLERANCE:
            return coefficients, iteration, True
    return coefficients, ITERATIONS_MAX, False


def trimmed_mean(vectors: Vectors) -> Middle:
    """Mean, number by number, of what is left without the highest and the lowest ``TRIMMED_SHARE`` of the sites.

    Raises
    ------
    ValueError
        For fewer vectors than three, of which nothing would be left.
    """
    count = len(vectors)
    cut = max(1, int(TRIMMED_SHARE * count))
    kept = count - 2 * cut
    if kept < 1:
        raise ValueError(f"a trimmed mean of {count} vectors has nothing left")
    squares = np.zeros(count)

    def middle(block: Floats) -> Floats:
        order = np.argsort(block, axis=0, kind="stable")[cut : count - cut]
        values = np.take_along_axis(block, order, axis=0)
        np.add.at(squares, order.ravel(), np.square(values).ravel())
        return np.asarray(values.mean(axis=0))

    value = _blockwise(vectors, middle)
    return Middle(value, np.sqrt(squares) / kept)


def _blockwise(vectors: Vectors, work: Callable[[Floats], Floats]) -> Floats:
    return np.concatenate([work(block) for block in _blocks(vectors)] or [np.zeros(0)])


def _blocks(vectors: Vectors) -> Iterator[Floats]:
    """The vectors side by side, (n, up to BLOCK), in double precision."""
    size = len(vectors[0])
    for start in range(0, size, BLOCK):
        yield np.stack([vector[start : start + BLOCK] for vector in vectors]).astype(np.float64)
