"""The private release: a patient's bound in whole numbers, noise everywhere, and the figures of the plan."""

from __future__ import annotations

import itertools
import math
import os
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.privacy.accountant import gaussian_delta, sigma_for
from momkd_fl.privacy.mechanism import (
    GRID_BITS,
    Release,
    contribution,
    expected_cosine,
    noisy_sum,
    publication_threshold,
    published,
    worth,
)
from momkd_fl.privacy.statistics import Assignment, MemoryStatistics, assign, summed

PARTS = {"genomics": (2, 2, 5), "histology": (2, 3, 4)}
STEP = 2.0**-GRID_BITS


def any_slide(rng: np.random.Generator, scale: float) -> MemoryStatistics:
    """A slide that keeps to no bound at all."""
    sums = {part: scale * rng.standard_normal(shape) for part, shape in PARTS.items()}
    counts = {part: scale * rng.standard_normal(shape[:2]) for part, shape in PARTS.items()}
    return MemoryStatistics(sums, counts)


def norm_squared(vector: np.ndarray) -> int:
    return sum(int(x) ** 2 for x in vector)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([1e-9, 0.1, 1.0, 1e3, 1e200, math.inf, math.nan]))
def test_no_patient_is_over_the_bound_whatever_its_slides_hold(seed: int, slides: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    release = Release(PARTS, 1.0, clip=0.7)
    with np.errstate(invalid="ignore"):
        vector = contribution([any_slide(rng, scale) for _ in range(slides)], release)
    assert norm_squared(vector) <= release.sensitivity_squared_steps
    assert release.sensitivity_squared_steps == 2 * Fraction(0.7) ** 2 * Fraction(5, 4) * 2 ** (2 * GRID_BITS)


def test_the_bound_is_checked_and_not_only_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    slide = any_slide(np.random.default_rng(0), 5.0)
    monkeypatch.setattr("momkd_fl.privacy.mechanism._clipped", lambda values, norm_max: values.ravel())
    with pytest.raises(AssertionError, match="over the bound"):
        contribution([slide], Release(PARTS, 1.0))


def test_three_slides_weigh_what_one_does() -> None:
    slide, release = any_slide(np.random.default_rng(1), 3.0), Release(PARTS, 1.0)
    one, three = contribution([slide], release), contribution([slide] * 3, release)
    assert np.abs(one - three).max() <= 1


def test_an_honest_patient_is_moved_by_less_than_a_millionth() -> None:
    slide = MemoryStatistics({"genomics": np.zeros((2, 2, 5))}, {"genomics": np.zeros((2, 2))})
    slide.sums["genomics"][1, 0] = np.array([0.6, 0, -0.8, 0, 0])
    slide.counts["genomics"][1, 0] = 1
    release = Release({"genomics": PARTS["genomics"]}, 1e-7)
    exact = contribution([slide], release) * STEP
    np.testing.assert_allclose(exact[10:15], [0.6, 0, -0.8, 0, 0], atol=1e-6)
    noisy = noisy_sum([contribution([slide], release)], release)
    np.testing.assert_allclose(noisy.sums["genomics"], slide.sums["genomics"], atol=5e-6)
    off = (noisy.counts["genomics"] - slide.counts["genomics"]) * release.count_weight  # noise of one step, as above
    np.testing.assert_allclose(off, 0.0, atol=5e-6)


def patients(how: Assignment, count: int) -> list[MemoryStatistics]:
    """Each patient's statistics when ``count`` of them are assigned in one call, as a site does."""
    side = np.where(np.arange(40) % 2, 1.0, -1.0)  # two groups, far apart, but alike as the slots see them
    embedded = np.stack([1 + 0.02 * side, 1 - 0.02 * side, np.ones(40), side], axis=1)
    embedded[-1] = [0, 0, -1, 0]  # the one who joins is unlike the others
    embedded = (embedded / np.linalg.norm(embedded, axis=1, keepdims=True))[:count]
    weights = assign(embedded, np.eye(4)[:3], how)
    return [summed("m", embedded[[n]], weights[[n]], np.zeros(1, np.int64), 1) for n in range(count)]


def distance_between_neighbours(how: Assignment) -> float:
    release = Release({"m": (1, 3, 4)}, 1.0)
    everybody = sum(contribution([each], release) for each in patients(how, 40))
    one_fewer = sum(contribution([each], release) for each in patients(how, 39))
    return float(np.linalg.norm((everybody - one_fewer) * STEP)) / release.sensitivity


def test_assignment_must_not_couple_patients() -> None:
    """One patient more moves a sum of hard assignments by at most Delta; balanced ones move everybody."""
    assert distance_between_neighbours("hard") <= 1
    assert distance_between_neighbours("soft") > 2
    assert distance_between_neighbours("balanced") > 2


def test_noise_is_on_every_number_of_its_size_and_on_the_grid() -> None:
    release = Release(PARTS, 2.0)
    drawn = [noisy_sum([], release, random.Random(seed).randbytes) for seed in range(300)]
    for part, (classes, slots, dim) in PARTS.items():
        sums = np.stack([each.sums[part] for each in drawn])
        counts = np.stack([each.counts[part] for each in drawn])
        assert sums.shape[1:] == (classes, slots, dim)
        assert (np.abs(sums.std(axis=0) / release.noise_sd - 1) < 0.25).all()
        assert (np.abs(counts.std(axis=0) / release.count_sd - 1) < 0.25).all()
        assert (np.round(sums / STEP) == sums / STEP).all()
        assert (np.round(counts / STEP) == counts / STEP).all()
    assert noisy_sum.__defaults__ == (os.urandom,)


@pytest.mark.parametrize("bits", [3, 5, 7])
def test_the_discrete_gaussian_s_delta_is_the_gaussian_s(bits: int) -> None:
    """One step of sensitivity 2^bits in whole numbers: the error falls with the square of the grid."""
    sensitivity, epsilon = 1 << bits, 4.0
    sigma = sigma_for(epsilon, 1e-5, 1)
    variance = math.ceil((sigma * sensitivity) ** 2)
    x = np.arange(-40 * sensitivity, 40 * sensitivity + 1)
    mass = np.exp(-np.square(x.astype(float)) / (2 * variance))
    mass /= mass.sum()
    loss = (sensitivity**2 + 2.0 * x * sensitivity) / (2 * variance)
    delta = float(mass @ -np.expm1(np.minimum(epsilon - loss, 0)))
    exact = gaussian_delta(epsilon, sensitivity / math.sqrt(variance))
    assert abs(delta / exact - 1) < 3 * 4.0**-bits


def test_a_slot_of_one_patient_is_never_published() -> None:
    release = Release({"m": (1, 2, 8)}, sigma_for(8, 1e-5, 10))
    lone = MemoryStatistics({"m": np.zeros((1, 2, 8))}, {"m": np.array([[1.0, 0.0]])})
    lone.sums["m"][0, 0, 0] = 1
    vector = contribution([lone], release)
    for seed in range(300):
        assert not published(noisy_sum([vector], release, random.Random(seed).randbytes), release)["m"].any()
    bare = Release({"m": (1, 2, 8)}, 1e-6)  # the control: neither noise nor threshold
    noisy = noisy_sum([vector], bare)
    assert published(noisy, bare, minimum_count=0.5)["m"][0, 0]
    direction = noisy.sums["m"][0, 0] / np.linalg.norm(noisy.sums["m"][0, 0])
    assert direction[0] == pytest.approx(1.0, abs=1e-4)


def test_the_plan_s_figures() -> None:
    release = Release({"genomics": (2, 2, 64), "histology": (2, 2, 64)}, sigma_for(8, 1e-5, 10))
    assert release.sensitivity == pytest.approx(math.sqrt(2 * 1.25))
    assert release.count_sd == pytest.approx(6.0, abs=0.01)
    assert publication_threshold(release, sites=6) == pytest.approx(49.4, abs=0.1)
    one = worth(release, 64, count=50, concentration=0.6)
    assert one.cosine == pytest.approx(0.78, abs=0.01)
    five = worth(release, 64, count=250, concentration=0.6, sites=5)
    assert five.noise_to_signal == pytest.approx(0.36, abs=0.005)
    assert worth(release, 64, count=15, concentration=0.6).released < 0.01


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 60), st.integers(2, 300))
def test_expected_cosine_is_the_mean_of_many_draws(signal: float, dim: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, dim))
    x[:, 0] += signal
    drawn = x[:, 0] / np.linalg.norm(x, axis=1)
    assert expected_cosine(signal, dim) == pytest.approx(drawn.mean(), abs=5 * drawn.std() / math.sqrt(4000) + 1e-6)


def test_mistakes_of_shape_are_refused() -> None:
    release = Release(PARTS, 1.0)
    slide = any_slide(np.random.default_rng(0), 1.0)
    other = MemoryStatistics({"radiology": np.zeros((2, 2, 5))}, {"radiology": np.zeros((2, 2))})
    wrong = MemoryStatistics({"genomics": np.zeros((2, 2, 6))}, {"genomics": np.zeros((2, 2))})
    half = MemoryStatistics(slide.sums, {})
    for slides in ([], [other], [wrong], [half]):
        with pytest.raises(ValueError, match=r"slide|release"):
            contribution(slides, release)
    for part, bad in itertools.product((PARTS, {}), (0.0, math.inf, math.nan)):
        with pytest.raises(ValueError, match="release"):
            Release(part, bad)
    with pytest.raises(ValueError, match="64 bits"):
        Release(PARTS, 1.0, clip=1e15)
