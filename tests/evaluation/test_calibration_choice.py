from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from momkd_fl.evaluation.calibration import calibrate, mapped
from momkd_fl.evaluation.calibration_choice import KINDS, choose_calibration, fitted
from momkd_fl.evaluation.metrics import BINS, ScoreHistogram, auroc
from momkd_fl.evaluation.results import Calibration

MIDDLES = (np.arange(BINS) + 0.5) / BINS


def histogram(labels: np.ndarray, positive: np.ndarray) -> ScoreHistogram:
    return ScoreHistogram.of(labels, np.column_stack([1 - positive, positive]))


def drawn(patients: int, truth: object, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores; ``truth`` maps the score's logit to the logit of what happens."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal(patients)
    return (rng.random(patients) < expit(truth(logits))).astype(int), expit(logits)


def test_platt_from_bins_is_near_the_fit_on_scores() -> None:
    labels, score = drawn(4000, lambda x: 2.0 * x - 0.7, seed=5)
    found = fitted(histogram(labels, score).sides(1), "platt")
    fit = LogisticRegression(C=1e6).fit(np.log(score / (1 - score))[:, None], labels)
    assert found.slope == pytest.approx(fit.coef_[0, 0], abs=0.05)
    assert found.intercept == pytest.approx(fit.intercept_[0], abs=0.05)


def test_temperature_is_the_slope_alone() -> None:
    labels, score = drawn(4000, lambda x: 0.4 * x, seed=6)
    found = fitted(histogram(labels, score).sides(1), "temperature")
    fit = LogisticRegression(C=1e6, fit_intercept=False).fit(np.log(score / (1 - score))[:, None], labels)
    assert found.slope == pytest.approx(fit.coef_[0, 0], abs=0.02)
    assert found.intercept == 0


def test_isotonic_passes_through_the_blocks_of_sklearns() -> None:
    labels, score = drawn(3000, lambda x: 3 * np.tanh(2 * x), seed=7)
    counts = histogram(labels, score).counts[0]
    found = fitted(histogram(labels, score).sides(1), "isotonic")
    high, low = (counts[1].sum() + 1) / (counts[1].sum() + 2), 1 / (counts[0].sum() + 2)
    seen = counts.sum(axis=0) > 0
    target = (counts[1] * high + counts[0] * low)[seen] / counts.sum(axis=0)[seen]
    steps = IsotonicRegression().fit(MIDDLES[seen], target, sample_weight=counts.sum(axis=0)[seen])
    levels = np.unique(steps.predict(MIDDLES[seen]).round(12))
    np.testing.assert_allclose([share for _, share in found.knots[1:-1]], levels, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(patients=st.integers(2, 300), seed=st.integers(0, 999), kind=st.sampled_from(KINDS))
def test_every_kind_is_increasing_inside_and_keeps_the_ranking(patients: int, seed: int, kind: str) -> None:
    labels, score = drawn(patients, lambda x: 0.5 * x, seed)
    labels[:2] = 0, 1
    found = fitted(histogram(labels, score).sides(1), kind)
    moved = calibrate(np.column_stack([1 - score, score]), found)[:, 1]
    order = np.argsort(score)
    assert (np.diff(moved[order]) > 0).all()
    assert moved.min() > 0
    assert moved.max() < 1
    assert auroc(labels, moved) == pytest.approx(auroc(labels, score))


@pytest.mark.parametrize(
    ("truth", "kind"),
    [
        (lambda x: 0.4 * x, "temperature"),
        (lambda x: 1.0 * x - 1.5, "platt"),
        (lambda x: np.where(np.abs(x) < 1, -2.0, np.where(x > 0, 2.0, -2.2)), "isotonic"),
    ],
)
def test_the_kind_that_made_the_scores_is_chosen(truth: object, kind: str) -> None:
    labels, score = drawn(4000, truth, seed=3)
    start = time.perf_counter()
    found = choose_calibration(histogram(labels, score))
    assert time.perf_counter() - start < 5
    assert found.kind == kind
    assert set(found.losses) == set(KINDS)
    assert found == choose_calibration(histogram(labels, score))


def test_a_small_cohort_is_not_given_a_curve() -> None:
    kinds = [choose_calibration(histogram(*drawn(60, lambda x: x, seed))).kind for seed in range(10)]
    assert kinds.count("temperature") >= 8


def test_choosing_lowers_the_error_on_new_patients() -> None:
    labels, score = drawn(800, lambda x: 0.5 * x - 1.2, seed=1)
    fresh, unseen = drawn(4000, lambda x: 0.5 * x - 1.2, seed=2)
    moved = mapped(unseen, choose_calibration(histogram(labels, score)))
    assert np.mean((moved - fresh) ** 2) < np.mean((unseen - fresh) ** 2) - 0.02


def test_scores_that_rank_backwards_are_not_reversed() -> None:
    labels, score = drawn(400, lambda x: -x, seed=2)
    for kind in ("platt", "temperature"):
        assert fitted(histogram(labels, score).sides(1), kind).slope == 1.0
    assert fitted(histogram(labels, score).sides(1), "temperature").intercept == 0.0


def test_too_few_patients_get_platts_and_a_missing_class_nothing() -> None:
    few = choose_calibration(histogram(np.array([0, 1]), np.array([0.0, 1.0])))
    assert few.kind == "platt"
    assert few.losses == {}
    assert np.isfinite(few.to_list()).all()
    assert choose_calibration(histogram(np.zeros(30, dtype=int), np.full(30, 0.5))) == Calibration()


def test_several_classes_share_one_calibration() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([2, 2, 2], 600)
    labels = np.array([rng.choice(3, p=row) for row in probabilities])
    found = choose_calibration(ScoreHistogram.of(labels, probabilities))
    assert found.slope == pytest.approx(1, abs=0.35)
    np.testing.assert_allclose(calibrate(probabilities, found).sum(axis=1), 1)


def test_a_calibration_says_what_it_is() -> None:
    assert Calibration(2.0, -0.1).to_list() == [2.0, -0.1]
    isotonic = Calibration(kind="isotonic", knots=[[0.0, 0.1], [0.5, 0.4], [1.0, 0.9]])
    assert isotonic.to_list() == [0.0, 0.1, 0.5, 0.4, 1.0, 0.9]
    with pytest.raises(ValueError, match="knots"):
        Calibration(kind="isotonic")
    with pytest.raises(ValueError, match="share"):
        Calibration(kind="isotonic", knots=[[0.0]])
