from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.data.standardise import fit_scaling, slide_moments


def _slides(sizes, seed=0):
    draw = np.random.default_rng(seed)
    return [(draw.normal(size=(size, 3)) * [1, 5, 0.2] + [10, -3, 0]).astype(np.float32) for size in sizes]


def test_slides_of_one_size_equal_plain_statistics():
    slides = _slides([50] * 7)
    scaling = fit_scaling(map(slide_moments, slides))
    patches = np.concatenate(slides).astype(float)
    np.testing.assert_allclose(scaling.mean, patches.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(scaling.sd, patches.std(axis=0), rtol=1e-4)
    scaled = np.concatenate([scaling.apply(slide) for slide in slides])
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-3)
    assert scaled.dtype == np.float32


def test_a_large_slide_counts_as_one():
    small, large = np.zeros((2, 2), dtype=np.float32), np.ones((1000, 2), dtype=np.float32)
    np.testing.assert_allclose(fit_scaling(map(slide_moments, [small, large])).mean, 0.5)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.randoms())
def test_order_of_slides_does_not_matter(sizes, order):
    slides = _slides(sizes)
    other = list(slides)
    order.shuffle(other)
    one, two = fit_scaling(map(slide_moments, slides)), fit_scaling(map(slide_moments, other))
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.sd, two.sd, rtol=1e-4)


def test_a_constant_dimension_is_not_blown_up():
    slide = _slides([40])[0]
    slide[:, 2] = 4
    scaling = fit_scaling([slide_moments(slide)])
    np.testing.assert_allclose(scaling.apply(slide)[:, 2], 0, atol=1e-6)
    assert np.isfinite(scaling.apply(slide + np.float32(1))).all()
    assert scaling.sd[2] >= 1e-3 * scaling.sd[0]


def test_tiles_give_what_the_whole_gives():
    slide = np.random.default_rng(0).normal(3, 2, (9_000, 16)).astype(np.float32)
    mean, variance = slide_moments(slide)
    np.testing.assert_allclose(mean, slide.mean(axis=0, dtype=np.float64), rtol=1e-12)
    centred = slide - mean.astype(np.float32)
    np.testing.assert_allclose(variance, np.square(centred).mean(axis=0, dtype=np.float64), rtol=1e-12)
    scaling = fit_scaling([(mean, variance)])
    whole = (slide - scaling.mean) / scaling.sd
    np.testing.assert_array_equal(scaling.apply(slide), whole)
    assert scaling.apply(slide, slide) is slide
    np.testing.assert_array_equal(slide, whole)


def test_the_input_is_left_alone():
    slide = _slides([10])[0]
    before = slide.copy()
    fit_scaling([slide_moments(slide)]).apply(slide)
    np.testing.assert_array_equal(slide, before)
    with pytest.raises(ValueError, match="no slide"):
        fit_scaling([])
