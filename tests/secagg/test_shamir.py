"""Any t shares recover a secret; t - 1 do not."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.shamir import PRIME, SHARE_BYTES, deal, recover


@pytest.mark.parametrize("n", range(3, 11))
def test_any_threshold_of_shares_recovers_and_one_fewer_does_not(n: int):
    secret, threshold = os.urandom(32), 2 * n // 3 + 1
    shares = deal(secret, range(1, n + 1), threshold, os.urandom)
    for chosen in combinations(shares, threshold):
        assert recover({point: shares[point] for point in chosen}, threshold) == secret
    few = dict(list(shares.items())[: threshold - 1])
    with pytest.raises(SecAggError) as problem:
        recover(few, threshold)
    assert problem.value.code == "shares-too-few"
    with suppress(SecAggError):  # a lower degree is guessed: what comes out is another secret, or none
        assert recover(few, threshold - 1) != secret


@given(st.binary(min_size=32, max_size=32), st.integers(2, 6), st.integers(0, 4), st.integers(0, 2**32))
def test_every_secret_survives(secret: bytes, threshold: int, more: int, seed: int):
    shares = deal(secret, range(1, threshold + more + 1), threshold, random.Random(seed).randbytes)
    kept = dict(list(shares.items())[more:])
    assert recover(kept, threshold) == secret
    assert all(len(share) == SHARE_BYTES for share in shares.values())


def test_fewer_shares_fit_every_secret():
    """Perfect secrecy, by example: t - 1 shares and any other secret lie on some polynomial of the same degree."""
    shares = deal(bytes(32), (1, 2, 3), 3, os.urandom)
    values = [int.from_bytes(shares[point], "big") for point in (1, 2)]
    for other in (1, 2**256 - 1):
        # the parabola through (0, other), (1, v1), (2, v2), at 3
        third = (other - 3 * values[0] + 3 * values[1]) % PRIME
        found = recover({1: shares[1], 2: shares[2], 3: third.to_bytes(SHARE_BYTES, "big")}, 3)
        assert int.from_bytes(found, "big") == other


def test_a_changed_share_changes_the_secret():
    secret = os.urandom(32)
    shares = deal(secret, (1, 2, 3), 3, os.urandom)
    changed = bytearray(shares[2])
    changed[20] ^= 1
    with pytest.raises((SecAggError, AssertionError)):
        assert recover({**shares, 2: bytes(changed)}, 3) == secret


def test_the_modulus_is_a_prime_above_every_secret():
    assert PRIME > 2**256
    odd, power = PRIME - 1, 0
    while odd % 2 == 0:
        odd, power = odd // 2, power + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53):  # Miller and Rabin's test
        chain = [pow(base, odd << step, PRIME) for step in range(power)]
        assert chain[0] == 1 or PRIME - 1 in chain


@pytest.mark.parametrize(
    ("secret", "points", "threshold"),
    [(bytes(31), (1, 2, 3), 3), (bytes(32), (0, 1, 2), 3), (bytes(32), (1, 1, 2), 3), (bytes(32), (1, 2), 3)],
)
def test_a_wrong_call_is_refused(secret: bytes, points: tuple[int, ...], threshold: int):
    with pytest.raises(ValueError, match=r"points|32 bytes"):
        deal(secret, points, threshold, os.urandom)
