"""Shamir's sharing of 32-byte secrets over the integers modulo the prime 2^256 + 297.

Any ``threshold`` shares recover a secret; fewer say nothing about it. (A. Shamir, "How to share a secret", 1979.)
Python's integers are not constant in time; every secret here lives for one round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from momkd_fl.secagg.refusal import SecAggError

Random = Callable[[int], bytes]
"""Gives so many bytes from a cryptographic generator, such as ``os.urandom``."""

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def deal(secret: bytes, points: Sequence[int], threshold: int, random: Random) -> dict[int, bytes]:
    """A share (33 bytes, big-endian) for each point (1 and above).

    Raises ValueError for a secret of another size, or points that are not distinct, positive and enough: the caller
    has checked the round that they come from.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(points):
        raise ValueError("a secret has 32 bytes, and there are as many points as the threshold or more")
    if len(set(points)) != len(points) or min(points) < 1:
        raise ValueError("points are distinct and 1 or above; the secret lies at 0")
    # 48 random bytes modulo a number of 257 bits: the distance from uniform is below 2^-126
    polynomial = [int.from_bytes(random(48), "big") % PRIME for _ in range(threshold - 1)]
    polynomial.append(int.from_bytes(secret, "big"))
    return {point: _at(polynomial, point).to_bytes(SHARE_BYTES, "big") for point in points}


def recover(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret behind the first ``threshold`` of the shares by point.

    Whether the shares belonged together shows only against a commitment: compare what comes out.

    Raises
    ------
    SecAggError
        ``shares-too-few``, or ``secret-wrong`` where no secret of 32 bytes can be behind them.
    """
    if len(shares) < threshold:
        raise SecAggError("shares-too-few")
    points = tuple(sorted(shares)[:threshold])
    values = [int.from_bytes(shares[point], "big") for point in points]
    secret = sum(weight * value for weight, value in zip(_weights(points), values, strict=True)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise SecAggError("secret-wrong")
    return secret.to_bytes(SECRET_BYTES, "big")


def _at(polynomial: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in polynomial:
        value = (value * point + coefficient) % PRIME
    return value


@lru_cache(maxsize=64)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights of the points for the value at 0."""
    weights = []
    for point in points:
        above = below = 1
        for other in points:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
