"""Gaussian noise on whole numbers, from the operating system's generator.

Floating-point noise betrays what it hides: which doubles can occur depends on the value underneath (Mironov 2012).
Here every value is a whole number of grid steps before noise is added, and the noise is a whole number too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
RandomBytes = Callable[[int], bytes]
"""As ``os.urandom``; anything else is for tests."""

_BLOCK_BYTES = 8192
_UNIFORM_BITS = 53
_PARTS = 4
"""Gaussians added for one: with a single one, its doubles could be inverted to the bits that made it."""


class UniformIntegers:
    """Exactly uniform integers from random bytes, by rejection."""

    def __init__(self, random_bytes: RandomBytes = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._block, self._at = b"", 0

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound)."""
        bits = (bound - 1).bit_length()
        size = (bits + 7) // 8
        while True:
            value = int.from_bytes(self._take(size), "little") & ((1 << bits) - 1)
            if value < bound:
                return value

    def _take(self, size: int) -> bytes:
        if self._at + size > len(self._block):
            self._block, self._at = self._random_bytes(max(_BLOCK_BYTES, size)), 0
        self._at += size
        return self._block[self._at - size : self._at]


def discrete_gaussian(size: int, variance: int, random_bytes: RandomBytes = os.urandom) -> Integers:
    """Exact draws of the discrete Gaussian, P(x) proportional to exp(-x^2 / (2 variance)) on the whole numbers.

    Integer arithmetic throughout: no rounding error, hence nothing to leak (Canonne, Kamath and Steinke 2020,
    algorithms 1 to 3). About 15 microseconds a number.

    Parameters
    ----------
    size : int
        How many.
    variance : int
        In squared grid steps; at most 2^100, so that draws fit int64.
    """
    if not 1 <= variance <= 1 << 100:
        raise ValueError(f"variance {variance} is not between 1 and 2^100")
    uniform = UniformIntegers(random_bytes)
    return np.array([_one_gaussian(variance, uniform) for _ in range(size)], np.int64)


def log10_sum_excess(variance: int, draws: int) -> float:
    """Logarithm of tau, by which the sum of ``draws`` discrete Gaussians differs from one of the summed variance.

    Both ways the max divergence of the two is at most tau = 10 sum_(k=1)^(draws-1) exp(-2 pi^2 variance k / (k + 1))
    (Kairouz, Liu and Steinke 2021, "The distributed discrete Gaussian mechanism for federated learning with secure
    aggregation", on sums of discrete Gaussians), for variance >= 1/2. A release of d numbers costs at most 2 d tau
    more. -inf for one draw, which differs by nothing.
    """
    if draws < 2:
        return -math.inf
    # k / (k + 1) rises with k, so each term is at most the first
    return 1 + math.log10(draws - 1) - math.pi**2 * variance / math.log(10)


def rounded_gaussian(size: int, deviation: float, random_bytes: RandomBytes = os.urandom) -> Integers:
    """Gaussian draws rounded to whole numbers, fast enough for millions of weights.

    With v a whole number, round(N) + v = round(N + v): the release is post-processing of the Gaussian mechanism, so
    its epsilon is the Gaussian's. What is approximate is N itself, in double precision: ``_PARTS`` Box-Muller draws
    from 53-bit uniforms, added (Holohan and Braghin 2021). With a deviation of 2^10 steps or more each whole number
    near the centre is hit by very many doubles. Beyond 17 deviations nothing is drawn.

    Parameters
    ----------
    deviation : float
        In grid steps; 2^10 to 2^56.
    """
    if not 2.0**10 <= deviation <= 2.0**56:
        raise ValueError(f"deviation {deviation} is not between 2^10 and 2^56 grid steps")
    pairs = (size + 1) // 2
    total = np.zeros(2 * pairs)
    for _ in range(_PARTS):
        words = np.frombuffer(random_bytes(16 * pairs), "<u8").reshape(2, pairs) >> np.uint64(64 - _UNIFORM_BITS)
        first, second = (words.astype(np.float64) + 0.5) * 2.0**-_UNIFORM_BITS
        radius = np.sqrt(-2.0 * np.log(first))
        total += np.concatenate([radius * np.cos(2 * np.pi * second), radius * np.sin(2 * np.pi * second)])
    return np.rint(total[:size] * (deviation / math.sqrt(_PARTS))).astype(np.int64)


def _one_gaussian(variance: int, uniform: UniformIntegers) -> int:
    scale = math.isqrt(variance) + 1
    denominator = 2 * variance * scale * scale
    while True:
        candidate = _one_laplace(scale, uniform)
        if _happens_exp(abs(abs(candidate) * scale - variance) ** 2, denominator, uniform):
            return candidate


def _one_laplace(scale: int, uniform: UniformIntegers) -> int:
    """P(x) proportional to exp(-|x| / scale)."""
    while True:
        remainder = uniform.below(scale)
        if not _happens_exp(remainder, scale, uniform):
            continue
        whole = 0
        while _happens_exp(1, 1, uniform):
            whole += 1
        size = remainder + scale * whole
        negative = uniform.below(2)
        if not (negative and size == 0):
            return -size if negative else size


def _happens_exp(numerator: int, denominator: int, uniform: UniformIntegers) -> bool:
    """True with probability exp(-numerator / denominator), exactly."""
    whole, numerator = divmod(numerator, denominator)
    for _ in range(whole):
        if not _happens_exp_below_one(1, 1, uniform):
            return False
    return _happens_exp_below_one(numerator, denominator, uniform)


def _happens_exp_below_one(numerator: int, denominator: int, uniform: UniformIntegers) -> bool:
    """True with probability exp(-x), x = numerator / denominator in [0, 1]: von Neumann's alternating series."""
    turn = 1
    while uniform.below(denominator * turn) < numerator:
        turn += 1
    return turn % 2 == 1
