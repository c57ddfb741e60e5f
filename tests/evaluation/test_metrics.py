from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss, f1_score, roc_auc_score

from momkd_fl.evaluation.metrics import BINS, ScoreHistogram, auprc, auroc, brier, decisions, estimable


def cohort(patients: int, *, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and informative probabilities (n, C)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=patients)
    logits = rng.standard_normal((patients, classes)) + 1.2 * np.eye(classes)[labels]
    exponentials = np.exp(logits)
    return labels, exponentials / exponentials.sum(axis=1, keepdims=True)


def test_discrimination_is_that_of_scikit_learn() -> None:
    labels, probabilities = cohort(200)
    assert auroc(labels, probabilities) == pytest.approx(roc_auc_score(labels, probabilities[:, 1]))
    assert auroc(labels, probabilities[:, 1]) == auroc(labels, probabilities)
    assert auprc(labels, probabilities) == pytest.approx(average_precision_score(labels, probabilities[:, 1]))
    labels, probabilities = cohort(200, classes=4)
    assert auroc(labels, probabilities) == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))


def test_under_the_class_minimum_nothing_is_estimable() -> None:
    labels, probabilities = np.repeat([0, 1], [40, 10]), np.linspace(0, 1, 50)
    assert auroc(labels, probabilities, class_minimum=10) is not None
    assert auroc(labels, probabilities, class_minimum=11) is None
    assert auprc(labels, probabilities, class_minimum=11) is None
    assert auroc(np.zeros(5, dtype=int), np.linspace(0, 1, 5)) is None
    assert auroc([], []) is None
    assert not estimable([0, 1, 1], np.eye(3), 1)


def test_decisions_are_those_of_scikit_learn() -> None:
    labels, probabilities = cohort(150, seed=3)
    made = decisions(labels, probabilities, 0.4)
    called = probabilities[:, 1] >= 0.4
    assert made.f1 == pytest.approx(f1_score(labels, called))
    assert made.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, called))
    assert made.ppv == pytest.approx(labels[called].mean())
    assert made.npv == pytest.approx(1 - labels[~called].mean())
    assert made.sensitivity == pytest.approx(called[labels == 1].mean())
    assert made.specificity == pytest.approx(1 - called[labels == 0].mean())
    assert brier(labels, probabilities) == pytest.approx(brier_score_loss(labels, probabilities[:, 1]))


def test_a_share_of_nobody_is_none() -> None:
    made = decisions([0, 0], [0.1, 0.2], 0.5)
    assert (made.sensitivity, made.ppv, made.balanced_accuracy) == (None, None, None)
    assert (made.specificity, made.npv) == (1.0, 1.0)
    assert brier([], []) is None


def test_more_than_two_classes_have_no_threshold() -> None:
    labels, probabilities = cohort(30, classes=3)
    with pytest.raises(ValueError, match="two classes"):
        decisions(labels, probabilities, 0.5)
    assert ScoreHistogram.of(labels, probabilities).youden_threshold() is None


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="3 labels"):
        auroc([0, 1, 1], [0.2, 0.3])


@settings(max_examples=60, deadline=None)
@given(
    patients=st.integers(4, 300), classes=st.integers(2, 4), seed=st.integers(0, 10_000), bins=st.sampled_from([5, 100])
)
def test_a_histogram_bounds_its_own_error(patients: int, classes: int, seed: int, bins: int) -> None:
    labels, probabilities = cohort(patients, classes=classes, seed=seed)
    histogram = ScoreHistogram.of(labels, probabilities, bins)
    exact = auroc(labels, probabilities)
    binned, error = histogram.auroc(minimum=1), histogram.auroc_error(minimum=1)
    assert (exact is None) == (binned is None) == (error is None)
    if exact is not None and binned is not None and error is not None:
        assert abs(exact - binned) <= error + 1e-12


@settings(max_examples=40, deadline=None)
@given(patients=st.integers(0, 80), cut=st.integers(0, 80), classes=st.integers(2, 4), seed=st.integers(0, 10_000))
def test_histograms_add_and_travel(patients: int, cut: int, classes: int, seed: int) -> None:
    labels, probabilities = cohort(patients, classes=classes, seed=seed)
    parts = [ScoreHistogram.of(labels[rows], probabilities[rows]) for rows in (slice(None, cut), slice(cut, None))]
    summed = {name: parts[0].to_arrays()[name] + parts[1].to_arrays()[name] for name in parts[0].to_arrays()}
    whole = ScoreHistogram.of(labels, probabilities)
    for other in (parts[0] + parts[1], ScoreHistogram.from_arrays(summed), whole + ScoreHistogram.empty(classes)):
        np.testing.assert_array_equal(other.counts, whole.counts)
    np.testing.assert_array_equal(whole.class_counts(), np.bincount(labels, minlength=classes))


@pytest.mark.parametrize(
    "counts",
    [
        np.zeros((2, 2, BINS)),
        np.zeros((1, 3, BINS)),
        np.zeros((2, BINS)),
        np.full((1, 2, BINS), -1.0),
        np.full((1, 2, BINS), np.nan),
    ],
)
def test_what_is_no_histogram_is_refused(counts: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no score histogram"):
        ScoreHistogram.from_arrays({"counts": counts})


def test_unlike_histograms_do_not_add() -> None:
    with pytest.raises(ValueError, match="cannot be added"):
        ScoreHistogram.empty(2) + ScoreHistogram.empty(3)


def test_the_histograms_minimum_is_that_of_what_leaves_a_site() -> None:
    labels, probabilities = np.repeat([0, 1], [40, 10]), np.linspace(0, 1, 50)
    histogram = ScoreHistogram.of(labels, np.column_stack([1 - probabilities, probabilities]))
    assert histogram.auroc() is None
    assert histogram.auroc_error() is None
    assert histogram.auroc(minimum=10) is not None


def test_the_threshold_is_youdens() -> None:
    labels, probabilities = cohort(400, seed=1)
    threshold = ScoreHistogram.of(labels, probabilities).youden_threshold()
    assert threshold is not None

    def youden(at: float) -> float:
        made = decisions(labels, probabilities, at)
        return made.sensitivity + made.specificity - 1

    assert youden(threshold) == pytest.approx(max(youden(edge) for edge in np.arange(BINS + 1) / BINS))
    separated = ScoreHistogram.of([0, 0, 1, 1], np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9]]))
    assert separated.youden_threshold() == pytest.approx(0.5, abs=0.02)
    assert ScoreHistogram.of([0], np.array([[0.5, 0.5]])).youden_threshold() is None
