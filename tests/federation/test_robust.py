"""Robust middles: what a minority can and cannot do, and symmetries that hold whatever the sites send."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from momkd_fl.federation import robust
from momkd_fl.federation.aggregation import clip_factor
from momkd_fl.federation.robust import geometric_median, norm, squared_distances, trimmed_mean, weiszfeld

Points = NDArray[np.float32]
MIDDLES: dict[str, Callable[[Points], NDArray[np.float64]]] = {
    "median": lambda x: geometric_median(list(x), np.ones(len(x))).value,
    "trimmed": lambda x: trimmed_mean(list(x)).value,
}
MIDDLE = pytest.mark.parametrize("middle", MIDDLES.values(), ids=MIDDLES)
CLOSE = 1e-4
"""Share of the points' spread: they are float32, and Weiszfeld's iteration ends at a tolerance."""


@st.composite
def clouds(draw: st.DrawFn, least: int = 5) -> Points:
    """A few points that lie anywhere."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, width = draw(st.integers(least, 9)), draw(st.integers(2, 12))
    return random.normal(size=(count, width)).astype(np.float32)


def spread(points: Points) -> float:
    return float(np.sqrt(squared_distances(list(points)).mean()))


@MIDDLE
@given(points=clouds(), seed=st.integers(0, 1000))
def test_order_of_the_sites_does_not_matter(middle: Callable[[Points], Points], points: Points, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(points))
    np.testing.assert_allclose(middle(points[order]), middle(points), atol=CLOSE * spread(points))


@MIDDLE
@given(points=clouds(), shift=st.floats(-100, 100))
def test_it_moves_with_the_points(middle: Callable[[Points], Points], points: Points, shift: float) -> None:
    moved = middle(points + np.float32(shift)) - np.float32(shift)
    np.testing.assert_allclose(moved, middle(points), atol=CLOSE * (spread(points) + abs(shift) / 10))


@MIDDLE
@given(points=clouds(), scale=st.floats(1e-6, 1e6))
def test_it_grows_with_the_points(middle: Callable[[Points], Points], points: Points, scale: float) -> None:
    grown = middle((points * scale).astype(np.float32)) / scale
    np.testing.assert_allclose(grown, middle(points), atol=CLOSE * spread(points))


@given(points=clouds(), seed=st.integers(0, 1000))
def test_the_median_turns_with_the_points(points: Points, seed: int) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(points.shape[1],) * 2))
    turned = MIDDLES["median"]((points @ turn).astype(np.float32))
    np.testing.assert_allclose(turned, MIDDLES["median"](points) @ turn, atol=CLOSE * spread(points))


@given(points=clouds(least=3), attackers=st.integers(1, 4), size=st.floats(1, 1e5), seed=st.integers(0, 1000))
def test_fewer_than_half_cannot_carry_the_median_away(points: Points, attackers: int, size: float, seed: int) -> None:
    """Minsker's bound around the honest mean, wherever the attackers stand."""
    assume(2 * attackers < len(points))
    honest, random = points[attackers:], np.random.default_rng(seed)
    sent = points.copy()
    sent[:attackers] = size * random.normal(size=sent[:attackers].shape)
    share = attackers / len(points)
    centre = honest.mean(axis=0)
    bound = 2 * (1 - share) / (1 - 2 * share) * np.linalg.norm(honest - centre, axis=1).max()
    smoothed = 4 * robust.SMOOTHING * spread(sent)
    assert np.linalg.norm(MIDDLES["median"](sent) - centre) <= bound + smoothed


def test_half_or_more_can() -> None:
    """The control: with as many attackers as others, and more, the bound does not hold."""
    honest = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    attackers = np.full((4, 6), 1e6, np.float32)
    found = MIDDLES["median"](np.concatenate([honest, attackers]))
    assert np.linalg.norm(found) > 1e6


@given(points=clouds(), size=st.floats(-1e8, 1e8))
def test_the_trimmed_mean_stays_between_honest_numbers(points: Points, size: float) -> None:
    sent = points.copy()
    sent[0] = size
    found = MIDDLES["trimmed"](sent)
    assert (found <= points[1:].max(axis=0) + 1e-6).all()
    assert (found >= points[1:].min(axis=0) - 1e-6).all()


@given(points=clouds())
def test_the_median_is_the_least_sum_of_distances(points: Points) -> None:
    found = MIDDLES["median"](points)

    def total(place: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(points - place, axis=1).sum())

    directions = np.random.default_rng(1).normal(size=(20, points.shape[1]))
    for direction in directions / np.linalg.norm(directions, axis=1, keepdims=True):
        assert total(found) <= total(found + 1e-2 * direction) * (1 + 1e-6)


def test_median_of_a_line_by_hand() -> None:
    """In one dimension it is the median."""
    points = [np.array([x], np.float32) for x in (0, 1, 2, 10, 1000)]
    assert geometric_median(points, np.ones(5)).value[0] == pytest.approx(2.0, abs=1e-2)
    weighted = geometric_median(points, np.array([1.0, 1.0, 1.0, 1.0, 9.0]))
    assert weighted.value[0] == pytest.approx(1000.0, abs=1e-2)


def test_of_two_it_is_the_mean_and_of_equals_themselves() -> None:
    one, two = np.zeros(3, np.float32), np.full(3, 4, np.float32)
    np.testing.assert_allclose(geometric_median([one, two], np.ones(2)).value, 2.0)
    same = geometric_median([two, two, two], np.ones(3))
    np.testing.assert_array_equal(same.value, two)
    assert (same.iterations, same.converged) == (0, True)


def test_trimmed_mean_by_hand() -> None:
    points = [np.array([x, -x], np.float32) for x in (1, 2, 3, 4, 500)]
    np.testing.assert_allclose(trimmed_mean(points).value, [3, -3])
    ten = [np.array([x], np.float32) for x in (0, 0, 1, 2, 3, 4, 5, 6, 90, 90)]
    assert trimmed_mean(ten).value[0] == pytest.approx(3.5)
    with pytest.raises(ValueError, match="nothing left"):
        trimmed_mean(points[:2])


@MIDDLE
def test_blocks_are_put_together(middle: Callable[[Points], Points], monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(3).normal(size=(6, 50)).astype(np.float32)
    whole = middle(points)
    monkeypatch.setattr(robust, "BLOCK", 7)
    np.testing.assert_allclose(middle(points), whole, rtol=1e-6)


def test_convergence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(4).normal(size=(5, 8)).astype(np.float32)
    squared = squared_distances(list(points))
    coefficients, iterations, converged = weiszfeld(squared, np.ones(5))
    assert converged
    assert coefficients.sum() == pytest.approx(1.0)
    monkeypatch.setattr(robust, "ITERATIONS_MAX", iterations - 1)
    assert weiszfeld(squared, np.ones(5))[1:] == (iterations - 1, False)


def test_no_finite_vector_has_an_infinite_norm() -> None:
    huge = np.full(4, 3e38, np.float32)
    assert norm([huge, huge]) == pytest.approx(np.sqrt(8) * 3e38, rel=1e-6)
    assert clip_factor(norm([huge]), 1.0) > 0


@pytest.mark.parametrize("count", [3, 4, 5])
def test_an_attacker_of_minus_a_hundred_times(count: int) -> None:
    """Errors against the honest mean, over its norm, as PRIVACY.md states them: sites that mostly agree."""
    random = np.random.default_rng(count)
    shared = random.normal(size=20_000)
    sent = (shared + 0.5 * random.normal(size=(count, 20_000))).astype(np.float32)
    honest = sent[1:].mean(axis=0)
    bound = float(np.median(np.linalg.norm(sent[1:], axis=1)))
    sent[0] *= -100

    def error(found: NDArray[np.floating]) -> float:
        return float(np.linalg.norm(found - honest) / np.linalg.norm(honest))

    clipped = np.stack([each * np.float32(clip_factor(norm([each]), bound)) for each in sent])
    assert 20 <= error(sent.mean(axis=0)) <= 36
    assert 0.38 <= error(clipped.mean(axis=0)) <= 0.7
    assert 0.1 <= error(MIDDLES["median"](clipped)) <= 0.3
