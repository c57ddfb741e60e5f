"""Noise on whole numbers: the distribution that the accountant assumes, from the operating system's generator."""

from __future__ import annotations

import os
import random
import time
from math import erf, exp, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.privacy import noise
from momkd_fl.privacy.noise import UniformIntegers, discrete_gaussian, rounded_gaussian


def repeatable(seed: int) -> noise.RandomBytes:
    return random.Random(seed).randbytes


@pytest.mark.parametrize("variance", [1, 3, 10, 400])
def test_frequencies_are_those_of_the_discrete_gaussian(variance: int) -> None:
    drawn = discrete_gaussian(20_000, variance, repeatable(variance))
    reach = int(6 * sqrt(variance)) + 6
    mass = {x: exp(-x * x / (2 * variance)) for x in range(-reach, reach + 1)}
    total = sum(mass.values())
    chi2 = bins = 0.0
    for x, weight in mass.items():
        expected = 20_000 * weight / total
        if expected >= 8:
            chi2 += (np.sum(drawn == x) - expected) ** 2 / expected
            bins += 1
    assert chi2 < bins + 5 * sqrt(2 * bins)
    assert abs(drawn.mean()) < 5 * sqrt(variance / 20_000)


def test_on_a_fine_grid_it_is_the_gaussian() -> None:
    variance = (3 << 20) ** 2
    drawn = np.sort(discrete_gaussian(6000, variance, repeatable(5))) / sqrt(variance)
    below = np.array([(1 + erf(x / sqrt(2))) / 2 for x in drawn])
    assert np.abs(below - (np.arange(6000) + 0.5) / 6000).max() < 1.63 / sqrt(6000)  # Kolmogorov-Smirnov, 1%


def test_a_thousand_numbers_take_well_under_a_second() -> None:
    start = time.process_time()
    assert len(set(discrete_gaussian(1000, (3 << 20) ** 2).tolist())) > 990
    assert time.process_time() - start < 0.5


def test_the_release_s_noise_comes_from_the_operating_system() -> None:
    assert discrete_gaussian.__defaults__ == (os.urandom,)
    assert rounded_gaussian.__defaults__ == (os.urandom,)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 1 << 90), st.integers(0, 1000))
def test_uniform_integers_stay_below_their_bound(bound: int, seed: int) -> None:
    uniform = UniformIntegers(repeatable(seed))
    assert all(0 <= uniform.below(bound) < bound for _ in range(20))


def test_uniform_integers_are_uniform() -> None:
    uniform = UniformIntegers(repeatable(1))
    counts = np.bincount([uniform.below(3) for _ in range(9000)], minlength=3)
    assert np.abs(counts - 3000).max() < 5 * sqrt(2000)


def test_the_rounded_gaussian_has_its_deviation_and_shape() -> None:
    drawn = rounded_gaussian(200_001, 5000.0, repeatable(2)) / 5000.0
    assert len(drawn) == 200_001
    assert drawn.std() == pytest.approx(1, abs=0.01)
    assert np.mean(drawn**4) == pytest.approx(3, abs=0.08)
    assert np.corrcoef(drawn[:100_000], drawn[100_001:])[0, 1] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("bad", [0.0, 100.0, 2.0**60])
def test_a_grid_too_coarse_or_too_fine_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="grid steps"):
        rounded_gaussian(2, bad)
    with pytest.raises(ValueError, match="variance"):
        discrete_gaussian(1, 0 if bad < 1000 else 1 << 101)
