from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from momkd_fl.evaluation.calibration import calibrate, calibrated_threshold, recalibration
from momkd_fl.evaluation.results import Calibration


def test_recalibration_finds_slope_and_intercept() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(20_000)
    labels = rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * logits)))
    fit = recalibration(labels.astype(int), 1 / (1 + np.exp(-logits)))
    assert fit is not None
    assert fit.slope == pytest.approx(0.5, abs=3 * fit.slope_se)
    assert fit.intercept == pytest.approx(0.0, abs=3 * fit.intercept_se)
    reference = LogisticRegression(C=1e9, tol=1e-8).fit(logits[:, None], labels)
    assert fit.slope == pytest.approx(reference.coef_[0, 0], abs=1e-4)


def test_calibration_in_the_large_balances_the_mean() -> None:
    rng = np.random.default_rng(1)
    scores = rng.uniform(0.1, 0.9, 500)
    labels = (rng.random(500) < scores**2).astype(int)
    fit = recalibration(labels, scores)
    assert fit is not None
    assert fit.intercept < 0
    moved = 1 / (1 + np.exp(-(np.log(scores / (1 - scores)) + fit.intercept)))
    assert moved.mean() == pytest.approx(labels.mean(), abs=1e-6)


def test_recalibration_needs_both_classes_and_some_overlap() -> None:
    assert recalibration([0, 0, 0], [0.1, 0.2, 0.3]) is None
    assert recalibration([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]) is None
    assert recalibration([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4]) is None
    with pytest.raises(ValueError, match="two classes"):
        recalibration([0, 1, 2], np.eye(3))


@given(
    slope=st.floats(0.1, 4),
    intercept=st.floats(-2, 2),
    threshold=st.floats(0.05, 0.95),
    scores=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=20),
)
def test_calibration_keeps_decisions(slope: float, intercept: float, threshold: float, scores: list[float]) -> None:
    before = np.array([score for score in scores if abs(score - threshold) > 1e-6])
    after = calibrate(np.column_stack([1 - before, before]), Calibration(slope, intercept))
    np.testing.assert_allclose(after.sum(axis=1), 1)
    moved = calibrated_threshold(threshold, Calibration(slope, intercept))
    np.testing.assert_array_equal(after[:, 1] >= moved, before >= threshold)


def test_several_classes_stay_probabilities_and_identity_changes_nothing() -> None:
    probabilities = np.random.default_rng(0).dirichlet([1, 2, 3], 50)
    np.testing.assert_allclose(calibrate(probabilities, Calibration()), probabilities, atol=1e-5)
    scaled = calibrate(probabilities, Calibration(2.0, -0.5))
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    np.testing.assert_array_equal(scaled.argmax(axis=1), probabilities.argmax(axis=1))
