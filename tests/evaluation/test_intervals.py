from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, mannwhitneyu, norm
from sklearn.metrics import average_precision_score, roc_auc_score

from momkd_fl.evaluation.intervals import (
    auprc_interval,
    auroc_interval,
    delong_covariance,
    delong_interval,
    delong_test,
    holm,
    random_effects,
    stratified_weights,
    weighted_auprc,
    weighted_auroc,
    wilson_interval,
)

# BCG vaccine trials (Colditz et al., JAMA 1994): cases and others, vaccinated then not.
BCG = np.array(
    [
        (4, 119, 11, 128),
        (6, 300, 29, 274),
        (3, 228, 11, 209),
        (62, 13536, 248, 12619),
        (33, 5036, 47, 5761),
        (180, 1361, 372, 1079),
        (8, 2537, 10, 619),
        (505, 87886, 499, 87892),
        (29, 7470, 45, 7232),
        (17, 1699, 65, 1600),
        (186, 50448, 141, 27197),
        (5, 2493, 3, 2338),
        (27, 16886, 29, 17825),
    ],
    dtype=float,
)


def cohort(patients: int, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two correlated scores."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(patients) % 3 == 0).astype(int)
    shared = rng.standard_normal(patients)
    first = labels + shared + 0.3 * rng.standard_normal(patients)
    second = 0.6 * labels + shared + 0.3 * rng.standard_normal(patients)
    return (labels, first.round(), second.round()) if ties else (labels, first, second)


def test_every_resample_keeps_its_strata() -> None:
    strata = np.array([0, 1, 1, 0, 2, 2, 2])
    weights = stratified_weights(strata, resamples=50, seed=1)
    for stratum in range(3):
        assert (weights[:, strata == stratum].sum(axis=1) == (strata == stratum).sum()).all()
    np.testing.assert_array_equal(weights, stratified_weights(strata, resamples=50, seed=1))
    assert (weights != stratified_weights(strata, resamples=50, seed=2)).any()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.5)


@settings(max_examples=30, deadline=None)
@given(patients=st.integers(9, 60), seed=st.integers(0, 1000), ties=st.booleans())
def test_weighted_areas_are_those_of_the_repeated_patients(patients: int, seed: int, ties: bool) -> None:
    labels, score, _ = cohort(patients, seed, ties)
    weights = stratified_weights(labels, resamples=3, seed=seed)
    for row, auroc, auprc in zip(
        weights, weighted_auroc(weights, labels, score), weighted_auprc(weights, labels, score), strict=True
    ):
        drawn = np.repeat(np.arange(patients), row)
        assert auroc == pytest.approx(roc_auc_score(labels[drawn], score[drawn]))
        assert auprc == pytest.approx(average_precision_score(labels[drawn], score[drawn]))


def test_weighted_auroc_of_several_classes() -> None:
    rng = np.random.default_rng(0)
    labels, probabilities = np.arange(60) % 3, rng.dirichlet([1, 1, 1], 60)
    weights = stratified_weights(labels, resamples=4)
    for row, area in zip(weights, weighted_auroc(weights, labels, probabilities), strict=True):
        drawn = np.repeat(np.arange(60), row)
        assert area == pytest.approx(roc_auc_score(labels[drawn], probabilities[drawn], multi_class="ovr"))


def test_bootstrap_and_delong_agree_and_are_fast() -> None:
    labels, score, _ = cohort(600)
    start = time.perf_counter()
    boot = auroc_interval(labels, score)
    assert time.perf_counter() - start < 3
    delong = delong_interval(labels, score)
    assert boot.value == pytest.approx(delong.value)
    assert boot.low == pytest.approx(delong.low, abs=0.006)
    assert boot.high == pytest.approx(delong.high, abs=0.006)
    assert auroc_interval(labels, score) == boot
    precision = auprc_interval(labels, score)
    assert precision.low < precision.value < precision.high


def test_under_the_class_minimum_a_reason_stands_instead() -> None:
    labels, score, _ = cohort(30)
    for estimate in (auroc_interval(labels, score), auprc_interval(labels, score), delong_interval(labels, score)):
        assert estimate.value is None
        assert estimate.reason == "fewer than 11 patients of a class"
    assert auroc_interval(labels, score, class_minimum=10).value is not None


def test_bootstrap_interval_covers() -> None:
    truth = norm.cdf(1 / np.sqrt(2))
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], [60, 40])
        estimate = auroc_interval(labels, labels + rng.standard_normal(100), resamples=400, seed=seed)
        covered += estimate.low <= truth <= estimate.high
    assert 0.89 <= covered / 200 <= 0.99


@pytest.mark.parametrize("ties", [False, True])
def test_delong_is_its_definition(ties: bool) -> None:
    labels, first, second = cohort(45, 3, ties)
    areas, covariance = delong_covariance(labels, [first, second])
    v10, v01 = [], []
    for score in (first, second):
        wins = score[labels == 1][:, None] - score[labels == 0][None, :]
        psi = (wins > 0) + 0.5 * (wins == 0)
        v10.append(psi.mean(axis=1))
        v01.append(psi.mean(axis=0))
    np.testing.assert_allclose(areas, [roc_auc_score(labels, first), roc_auc_score(labels, second)])
    np.testing.assert_allclose(covariance, np.cov(v10) / 15 + np.cov(v01) / 30)


def test_delong_test_holds_its_level_and_finds_a_difference() -> None:
    rejected = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], [50, 30])
        shared = labels + rng.standard_normal(80)
        _, p = delong_test(labels, shared + rng.standard_normal(80), shared + rng.standard_normal(80))
        rejected += p < 0.05
    assert 0.02 <= rejected / 300 <= 0.09
    labels, first, second = cohort(600)
    difference, p = delong_test(labels, first, second)
    assert p < 1e-6
    assert difference.low > 0
    same, p = delong_test(labels, first, first)
    assert (same.value, p) == (0.0, 1.0)


def test_holm_is_rs_p_adjust() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_random_effects_are_metafors_on_the_bcg_trials() -> None:
    a, b, c, d = BCG.T
    values = np.log(a / (a + b) / (c / (c + d)))
    variances = 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)
    found = random_effects(values, variances)
    # metafor: rma(..., method = "DL") gives -0.7141, tau^2 0.3088, SE 0.1787.
    assert found.mean.value == pytest.approx(-0.7141, abs=1e-4)
    assert found.between_variance == pytest.approx(0.3088, abs=1e-4)
    assert found.mean.low == pytest.approx(-1.108, abs=0.01)
    assert found.mean.high == pytest.approx(-0.321, abs=0.01)
    reach = 2.200985 * np.sqrt(0.3088 + 0.1787**2)
    assert found.prediction.low == pytest.approx(-0.7141 - reach, abs=2e-3)
    assert found.prediction.high == pytest.approx(-0.7141 + reach, abs=2e-3)


def test_prediction_needs_four_sites() -> None:
    assert random_effects([0.7, 0.8, 0.75], [0.01] * 3).prediction.value is None
    assert random_effects([0.7, 0.8, 0.75, 0.7], [0.01] * 4).prediction.value is not None
    assert random_effects([0.7, 0.7], [0.01, 0.01]).between_variance == 0
    for values, variances in (([0.7], [0.1]), ([0.7, 0.8], [0.0, 0.1]), ([0.7, 0.8], [0.1])):
        with pytest.raises(ValueError, match="random effects"):
            random_effects(values, variances)


def test_wilson_is_the_published_interval() -> None:
    # Newcombe, Statistics in Medicine 1998, table I: 81 of 263, 0 of 20 and 29 of 29.
    assert (wilson_interval(81, 263, "").low, wilson_interval(81, 263, "").high) == pytest.approx(
        (0.2553, 0.3662), abs=1e-4
    )
    assert (wilson_interval(0, 20, "").low, wilson_interval(0, 20, "").high) == pytest.approx((0, 0.1611), abs=1e-4)
    assert (wilson_interval(29, 29, "").low, wilson_interval(29, 29, "").high) == pytest.approx((0.8830, 1), abs=1e-4)
    assert wilson_interval(0, 0, "positive patient").reason == "no positive patient"


def test_the_stratified_bootstrap_is_scipys_of_two_samples() -> None:
    labels, score, _ = cohort(120, 4)
    ours = auroc_interval(labels, score)
    theirs = bootstrap(
        (score[labels == 1], score[labels == 0]),
        lambda a, b: mannwhitneyu(a, b).statistic / (len(a) * len(b)),
        n_resamples=2000,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(0),
    ).confidence_interval
    # A percentile's error over 2,000 resamples is about 0.06 of the interval's width.
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.1 * (theirs.high - theirs.low))


def test_delong_without_an_effect_is_close_to_mann_whitneys_p() -> None:
    rng = np.random.default_rng(9)
    labels, score = np.repeat([0, 1], [150, 100]), rng.standard_normal(250)
    (area,), variance = delong_covariance(labels, [score])
    p = 2 * norm.sf(abs(area - 0.5) / np.sqrt(variance[0, 0]))
    assert p == pytest.approx(mannwhitneyu(score[labels == 1], score[labels == 0]).pvalue, abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferronis(p_values: list[float]) -> None:
    # Holm, Scandinavian Journal of Statistics 1979: p of an intersection is its size times its smallest p.
    everyone = range(len(p_values))
    subsets = [s for size in range(1, len(p_values) + 1) for s in combinations(everyone, size)]
    closed = [max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if one in s) for one in everyone]
    assert holm(p_values) == pytest.approx(closed)


def test_random_effects_are_borensteins_worked_example() -> None:
    # Borenstein, Hedges, Higgins and Rothstein, Introduction to Meta-Analysis (2009), dataset 1: mean, SD and size of
    # treated and controls; effects are Hedges' g.
    studies = np.array(
        [
            (94, 22, 60, 92, 20, 60),
            (98, 21, 65, 92, 22, 65),
            (98, 28, 40, 88, 26, 40),
            (94, 19, 200, 82, 17, 200),
            (98, 21, 50, 88, 22, 45),
            (96, 21, 85, 92, 22, 85),
        ],
        dtype=float,
    )
    mean1, sd1, n1, mean2, sd2, n2 = studies.T
    freedom = n1 + n2 - 2
    d = (mean1 - mean2) / np.sqrt(((n1 - 1) * sd1**2 + (n2 - 1) * sd2**2) / freedom)
    shrink = 1 - 3 / (4 * freedom - 1)
    variances = shrink**2 * ((n1 + n2) / (n1 * n2) + d**2 / (2 * (n1 + n2)))
    found = random_effects(shrink * d, variances)
    assert found.mean.value == pytest.approx(0.3582, abs=5e-5)
    assert found.between_variance == pytest.approx(0.0373, abs=5e-5)
    assert (found.prediction.low, found.prediction.high) == pytest.approx((-0.2525, 0.9690), abs=5e-5)
