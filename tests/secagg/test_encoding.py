"""Real numbers as integers modulo 2^64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.secagg.encoding import Encoding, decode, encode
from momkd_fl.secagg.refusal import SecAggError


def encoded(values: list[float], encoding: Encoding, weight: float = 1.0) -> np.ndarray:
    out = np.empty(len(values), np.uint64)
    encode(np.array(values, dtype=np.float64), encoding, out, weight)
    return out


@given(
    st.integers(1, 50).flatmap(
        lambda n: st.lists(st.lists(st.floats(-8, 8), min_size=3, max_size=3), min_size=n, max_size=n)
    ),
    st.integers(0, 40),
    st.floats(0.01, 2.0),
)
def test_a_decoded_sum_is_within_the_stated_error(sites: list[list[float]], bits: int, weight: float):
    encoding = Encoding(bits, 8.0, 2.0)
    assert encoding.fits(len(sites))
    with np.errstate(over="ignore"):
        total = np.sum([encoded(values, encoding, weight) for values in sites], axis=0, dtype=np.uint64)
    true = weight * np.array(sites).sum(axis=0)
    assert np.abs(decode(total, encoding) - true).max() <= encoding.error_max(len(sites)) + 1e-13


def test_the_stated_error_is_nearly_reached():
    """Else the bound would say nothing: half a step, and each site rounds the same way."""
    encoding = Encoding(4, 8.0)
    total = np.sum([encoded([0.49 / 16], encoding) for _ in range(10)], axis=0, dtype=np.uint64)
    error = abs(decode(total, encoding)[0] - 4.9 / 16)
    assert 0.97 * encoding.error_max(10) < error <= encoding.error_max(10)


def test_integers_up_to_the_bound_are_exact():
    most = 2.0**52
    encoding = Encoding(0, most)
    total = encoded([most, -most, 1.0, 0.0], encoding) + encoded([1.0, 1.0, -1.0, -3.0], encoding)
    assert total.view(np.int64).tolist() == [2**52 + 1, -(2**52) + 1, 0, -3]


@pytest.mark.parametrize("bad", [64.001, -64.001, np.inf, -np.inf, np.nan, 1e300])
def test_a_value_out_of_range_is_refused_not_clipped(bad: float):
    with pytest.raises(SecAggError) as problem:
        encoded([0.0] * 70_000 + [bad], Encoding(24, 64.0))
    assert problem.value.code == "values-saturate"
    encoded([64.0, -64.0], Encoding(24, 64.0))


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.01, np.nan, np.inf])
def test_a_weight_that_was_not_agreed_is_refused(weight: float):
    with pytest.raises(SecAggError) as problem:
        encoded([1.0], Encoding(24, 64.0), weight)
    assert problem.value.code == "weight-wrong"


@pytest.mark.parametrize(
    ("encoding", "sites", "fits"),
    [
        (Encoding(40, 2.0**19), 15, True),
        (Encoding(40, 2.0**19), 16, False),  # 16 · 2^19 · 2^40 = 2^63 would be the first negative number
        (Encoding(53, 1.0), 3, False),
        (Encoding(-1, 1.0), 3, False),
        (Encoding(0, 0.0), 3, False),
        (Encoding(0, float("nan")), 3, False),
        (Encoding(0, float("inf")), 3, False),
        (Encoding(0, 1.0, -1.0), 3, False),
        (Encoding(0, 1e308, 1e308), 3, False),
        (Encoding(52, 1e308), 3, False),
        (Encoding(0, 5e-324, 5e-324), 3, True),
    ],
)
def test_no_sum_can_wrap(encoding: Encoding, sites: int, fits: bool):
    assert encoding.fits(sites) is fits


def test_a_sum_beyond_the_bound_does_wrap():
    """What the bound is for."""
    encoding = Encoding(40, 2.0**19)
    total = np.sum([encoded([2.0**19], encoding) for _ in range(16)], axis=0, dtype=np.uint64)
    assert decode(total, encoding)[0] < 0
