"""How sure: bootstrap over patients, DeLong, Holm, and random effects over sites. All intervals are 95%.

Resamples are weights (B, n): how often each patient was drawn. One set of weights serves every statistic and
every model of the same patients, so that comparisons are paired by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata, t

from momkd_fl.evaluation.metrics import Floats, auprc, auroc, columns, estimable
from momkd_fl.evaluation.results import MINIMUM_CELL, Estimate

Weights = NDArray[np.int32]

RESAMPLES = 2000
_CHUNK = 250
Z95 = float(norm.ppf(0.975))
_SITES_FOR_PREDICTION = 4


def stratified_weights(strata: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Weights:
    """Bootstrap weights (B, n): patients are drawn with replacement within each stratum (class, or site and class)."""
    groups = np.unique(np.asarray(strata), return_inverse=True)[1].ravel()
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(groups)), dtype=np.int32)
    for group in range(int(groups.max()) + 1 if len(groups) else 0):
        rows = np.flatnonzero(groups == group)
        drawn = rng.integers(len(rows), size=(resamples, len(rows)))
        flat = (drawn + len(rows) * np.arange(resamples)[:, None]).ravel()
        weights[:, rows] = np.bincount(flat, minlength=resamples * len(rows)).reshape(resamples, len(rows))
    return weights


def weighted_auroc(weights: Weights, labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """AUROC of every resample (B,); NaN where a resample lacks a class."""
    areas = []
    for positive, score in columns(labels, probabilities):
        order = np.argsort(score[~positive], kind="stable")
        ranked = score[~positive][order]
        low = np.searchsorted(ranked, score[positive], "left")
        high = np.searchsorted(ranked, score[positive], "right")
        parts = []
        for chunk in _chunks(weights):
            below = np.zeros((len(chunk), len(ranked) + 1))
            np.cumsum(chunk[:, ~positive][:, order], axis=1, out=below[:, 1:])
            mine = chunk[:, positive]
            hits = (mine * (below[:, low] + below[:, high])).sum(axis=1) / 2
            with np.errstate(invalid="ignore", divide="ignore"):
                parts.append(hits / (mine.sum(axis=1) * below[:, -1]))
        areas.append(np.concatenate(parts))
    return np.asarray(np.mean(areas, axis=0), dtype=np.float64)


def weighted_auprc(weights: Weights, labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Average precision of every resample (B,)."""
    areas = []
    for positive, score in columns(labels, probabilities):
        order = np.argsort(-score, kind="stable")
        # Patients tied with a positive are called together with it: precision is taken at the tie's end.
        last = np.searchsorted(-score[order], -score[order], "right") - 1
        is_positive = positive[order]
        parts = []
        for chunk in _chunks(weights):
            ranked = chunk[:, order].astype(np.float64)
            called = np.cumsum(ranked, axis=1)[:, last[is_positive]]
            hits = np.cumsum(ranked * is_positive, axis=1)[:, last[is_positive]]
            mine = ranked[:, is_positive]
            precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
            parts.append((mine * precision).sum(axis=1) / mine.sum(axis=1))
        areas.append(np.concatenate(parts))
    return np.asarray(np.mean(areas, axis=0), dtype=np.float64)


def percentile_interval(value: float, drawn: Floats) -> Estimate:
    """``value`` with the 2.5th and 97.5th percentile of its resamples."""
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def too_few(class_minimum: int) -> Estimate:
    """Not estimable under the class minimum."""
    return Estimate.not_estimable(f"fewer than {class_minimum} patients of a class")


def auroc_interval(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    class_minimum: int = MINIMUM_CELL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """AUROC with the interval of the stratified bootstrap."""
    value = auroc(labels, probabilities, class_minimum=class_minimum)
    if value is None:
        return too_few(class_minimum)
    weights = stratified_weights(labels, resamples=resamples, seed=seed)
    return percentile_interval(value, weighted_auroc(weights, labels, probabilities))


def auprc_interval(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    class_minimum: int = MINIMUM_CELL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Average precision with the interval of the stratified bootstrap."""
    value = auprc(labels, probabilities, class_minimum=class_minimum)
    if value is None:
        return too_few(class_minimum)
    weights = stratified_weights(labels, resamples=resamples, seed=seed)
    return percentile_interval(value, weighted_auprc(weights, labels, probabilities))


def wilson_interval(part: int, whole: int, what: str) -> Estimate:
    """A share with Wilson's interval, which stays sensible at 0 and 1; ``what`` it is a share of, for the reason."""
    if not whole:
        return Estimate.not_estimable(f"no {what}")
    share = part / whole
    centre = (share + Z95**2 / (2 * whole)) / (1 + Z95**2 / whole)
    half = Z95 * np.sqrt(share * (1 - share) / whole + Z95**2 / (4 * whole**2)) / (1 + Z95**2 / whole)
    return Estimate(share, float(max(0.0, min(centre - half, share))), float(min(1.0, max(centre + half, share))))


def delong_covariance(labels: ArrayLike, scores: Sequence[ArrayLike]) -> tuple[Floats, Floats]:
    """AUROCs (M,) of M models on the same patients (two classes) and their covariance (M, M).

    Source: DeLong et al., Biometrics 1988, by mid-ranks (Sun and Xu, IEEE Signal Processing Letters 2014).
    Needs two patients of each class.
    """
    of_positives, of_negatives = [], []
    for probabilities in scores:
        ((positive, score),) = columns(labels, probabilities)
        ranks, m, n = rankdata(score), int(positive.sum()), int((~positive).sum())
        of_positives.append((ranks[positive] - rankdata(score[positive])) / n)
        of_negatives.append(1 - (ranks[~positive] - rankdata(score[~positive])) / m)
    areas = np.mean(of_positives, axis=1)
    covariance = np.atleast_2d(np.cov(of_positives)) / m + np.atleast_2d(np.cov(of_negatives)) / n
    return np.asarray(areas, dtype=np.float64), np.asarray(covariance, dtype=np.float64)


def delong_interval(labels: ArrayLike, probabilities: ArrayLike, *, class_minimum: int = MINIMUM_CELL) -> Estimate:
    """AUROC of two classes with DeLong's interval, cut at 0 and 1."""
    if not estimable(labels, probabilities, max(class_minimum, 2)):
        return too_few(max(class_minimum, 2))
    (area,), variance = delong_covariance(labels, [probabilities])
    half = Z95 * np.sqrt(variance[0, 0])
    return Estimate(float(area), float(max(0.0, area - half)), float(min(1.0, area + half)))


def delong_test(labels: ArrayLike, first: ArrayLike, second: ArrayLike) -> tuple[Estimate, float]:
    """Difference of two AUROCs on the same patients (first minus second), its interval and two-sided p."""
    areas, covariance = delong_covariance(labels, [first, second])
    difference = float(areas[0] - areas[1])
    error = float(np.sqrt(max(0.0, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])))
    if error == 0:
        return Estimate(difference, difference, difference), 1.0 if difference == 0 else 0.0
    p_value = float(2 * norm.sf(abs(difference) / error))
    return Estimate(difference, difference - Z95 * error, difference + Z95 * error), p_value


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


@dataclass(frozen=True)
class RandomEffects:
    """Mean over sites with its interval, the variance between sites, and where a new site's value lies."""

    mean: Estimate
    between_variance: float
    prediction: Estimate


def random_effects(values: ArrayLike, variances: ArrayLike) -> RandomEffects:
    """Random-effects mean of k >= 2 sites' values with their (positive) sampling variances.

    Between-site variance by DerSimonian and Laird (1986); interval by Hartung, Knapp, Sidik and Jonkman with
    k - 1 degrees of freedom, never narrower than with its factor at 1; prediction interval with k - 2 (Higgins
    et al., JRSS A 2009), from four sites on.
    """
    y, v = np.asarray(values, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    k = len(y)
    if k < 2 or len(v) != k or (v <= 0).any():
        raise ValueError("random effects need two or more values, each with a positive variance")
    w = 1 / v
    q = float(w @ (y - w @ y / w.sum()) ** 2)
    between = max(0.0, (q - (k - 1)) / (w.sum() - (w @ w) / w.sum()))
    w = 1 / (v + between)
    mean = float(w @ y / w.sum())
    factor = max(1.0, float(w @ (y - mean) ** 2) / (k - 1))
    half = float(t.ppf(0.975, k - 1) * np.sqrt(factor / w.sum()))
    if k < _SITES_FOR_PREDICTION:
        prediction = Estimate.not_estimable(f"fewer than {_SITES_FOR_PREDICTION} sites")
    else:
        reach = float(t.ppf(0.975, k - 2) * np.sqrt(between + 1 / w.sum()))
        prediction = Estimate(mean, mean - reach, mean + reach)
    return RandomEffects(Estimate(mean, mean - half, mean + half), float(between), prediction)


def _chunks(weights: Weights) -> Iterator[Weights]:
    """Resamples in parts, so that large cohorts need bounded memory."""
    for start in range(0, len(weights), _CHUNK):
        yield weights[start : start + _CHUNK]
