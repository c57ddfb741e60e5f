from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve as sklearn_roc_curve

from momkd_fl.evaluation.comparison import Scores
from momkd_fl.evaluation.curves import (
    RATES,
    binned_roc_curve,
    calibration_curve,
    decision_curves,
    median_roc_curve,
    roc_curve,
)
from momkd_fl.evaluation.metrics import ScoreHistogram, auroc


def _scores(labels: list[int], positive: list[float]) -> Scores:
    score = np.array(positive, dtype=np.float64)
    ids = tuple(str(row) for row in range(len(labels)))
    return Scores(ids, np.array(labels, dtype=np.int64), np.column_stack([1 - score, score]), ("a",) * len(labels))


def _random(patients: int, separation: float, seed: int = 0) -> Scores:
    generator = np.random.default_rng(seed)
    labels = (generator.random(patients) < 0.4).astype(int)
    return _scores(labels.tolist(), (1 / (1 + np.exp(-generator.normal(size=patients) - separation * labels))).tolist())


def test_area_under_the_drawn_curve_is_the_auroc() -> None:
    scores = _random(1500, 1.5)
    curve = roc_curve(scores, task="PR", method="federated", resamples=50)
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(auroc(scores.labels, scores.probabilities), abs=0.003)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=4, max_size=40))
def test_points_of_the_curve_are_those_of_sklearn_with_ties(rows: list[tuple[int, int]]) -> None:
    labels = [0, 1] + [label for label, _ in rows]
    scores = [0.1, 0.9] + [value / 4 for _, value in rows]
    curve = roc_curve(_scores(labels, scores), task="PR", method="federated", resamples=2)
    x, y, _ = sklearn_roc_curve(labels, scores, drop_intermediate=False)
    tops = {float(rate): float(y[x == rate].max()) for rate in np.unique(x)}
    expected = np.interp(RATES, list(tops), list(tops.values()))
    assert curve.y == pytest.approx(expected.tolist(), abs=1e-5)


def test_band_holds_the_curve_and_narrows_with_patients() -> None:
    widths = []
    for patients in (80, 800):
        curve = roc_curve(_random(patients, 1.2), task="PR", method="federated", resamples=400)
        assert curve.low is not None
        assert curve.high is not None
        low, middle, high = np.array(curve.low), np.array(curve.y), np.array(curve.high)
        assert (low <= high).all()
        assert ((low <= middle + 1e-6) & (middle <= high + 1e-6)).mean() > 0.97
        widths.append(float((high - low).mean()))
    assert widths[1] < widths[0] / 2


def test_band_covers_the_true_curve_about_as_often_as_it_says() -> None:
    truth = _random(200_000, 1.2, seed=99)
    true_at = roc_curve(truth, task="PR", method="federated", resamples=1).y[30]
    hits = 0
    for seed in range(60):
        curve = roc_curve(_random(150, 1.2, seed), task="PR", method="federated", resamples=200)
        assert curve.low is not None
        assert curve.high is not None
        hits += curve.low[30] <= true_at <= curve.high[30]
    assert hits >= 50  # binomial(60, 0.95) is under 50 once in 10,000


def test_median_of_models_lies_between_them() -> None:
    models = [_random(400, separation) for separation in (0.2, 1.0, 2.0)]
    curve = median_roc_curve(models, task="PR", method="local_median")
    single = [roc_curve(model, task="PR", method="local_median", resamples=1).y for model in models]
    assert curve.y == pytest.approx(np.median(single, axis=0).tolist(), abs=1e-6)
    assert curve.low is None


def test_binned_curve_is_close_and_states_its_error() -> None:
    scores = _random(600, 1.2)
    histogram = ScoreHistogram.of(scores.labels, scores.probabilities)
    curve = binned_roc_curve(histogram, task="PR", method="federated", resamples=100)
    assert curve is not None
    assert curve.binning_error is not None
    area = auroc(scores.labels, scores.probabilities)
    assert area is not None
    assert abs(np.trapezoid(curve.y, curve.x) - area) <= curve.binning_error + 0.004
    few = ScoreHistogram.of(scores.labels[:12], scores.probabilities[:12])
    assert binned_roc_curve(few, task="PR", method="federated") is None


def test_calibration_of_a_calibrated_model_lies_on_the_diagonal_and_of_another_does_not() -> None:
    generator = np.random.default_rng(3)
    probability = generator.random(4000)
    labels = (generator.random(4000) < probability).astype(int).tolist()
    good = calibration_curve(_scores(labels, probability.tolist()), task="PR", method="federated")
    assert np.abs(np.array(good.x) - good.y).max() < 0.06
    assert sum(good.weight or []) == pytest.approx(1.0, abs=1e-4)
    bad = calibration_curve(_scores(labels, (probability**3).tolist()), task="PR", method="federated")
    assert np.abs(np.array(bad.x) - bad.y).max() > 0.2


def test_net_benefit_by_hand() -> None:
    scores = _scores([1, 1, 0, 0], [0.9, 0.3, 0.6, 0.1])
    model, everyone = decision_curves(scores, task="PR", method="federated")
    at = int(np.argmin(np.abs(np.array(model.x) - 0.5)))
    odds = model.x[at] / (1 - model.x[at])
    assert model.y[at] == pytest.approx(0.25 - 0.25 * odds, abs=1e-4)
    assert everyone.y[at] == pytest.approx(0.5 - 0.5 * odds, abs=1e-4)
