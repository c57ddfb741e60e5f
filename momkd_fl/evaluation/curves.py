"""Curves to draw from patients' scores: ROC with a bootstrap band, calibration, decision curve.

Scores are here only where they may be: in a simulation, or inside one site; a coordinator has their summed
histogram. All curves are for two classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from momkd_fl.evaluation.comparison import Scores
from momkd_fl.evaluation.intervals import RESAMPLES, stratified_weights, wilson_interval
from momkd_fl.evaluation.metrics import Floats, ScoreHistogram
from momkd_fl.evaluation.results import MINIMUM_CELL, Curve, Method

RATES = np.linspace(0.0, 1.0, 101)
_CHUNK = 250


def roc_curve(scores: Scores, *, task: str, method: Method, resamples: int = RESAMPLES, seed: int = 0) -> Curve:
    """ROC with a pointwise 95% band of the stratified bootstrap over patients; both classes must be there."""
    return _roc(scores.labels, scores.probabilities[:, 1], task, method, resamples, seed)


def median_roc_curve(models: Sequence[Scores], *, task: str, method: Method) -> Curve:
    """Median sensitivity of several models at each false positive rate; no band."""
    several = [_roc(one.labels, one.probabilities[:, 1], task, method, 1, 0).y for one in models]
    return Curve("roc", task, method, _list(RATES), _list(np.median(several, axis=0)))


def binned_roc_curve(
    histogram: ScoreHistogram,
    *,
    task: str,
    method: Method,
    class_minimum: int = MINIMUM_CELL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Curve | None:
    """ROC of a summed score histogram, with the bound of its binning error; None under the class minimum."""
    error = histogram.auroc_error(class_minimum)
    if error is None or len(histogram.counts) != 1:
        return None
    by_class = histogram.counts[0]
    middles = (np.arange(by_class.shape[1]) + 0.5) / by_class.shape[1]
    labels = np.repeat([0, 1], by_class.sum(axis=1))
    score = np.concatenate([np.repeat(middles, counts) for counts in by_class])
    return replace(_roc(labels, score, task, method, resamples, seed), binning_error=error)


def calibration_curve(scores: Scores, *, task: str, method: Method) -> Curve:
    """Observed share of positives against mean prediction in 3 to 10 equal-sized bins of some twenty patients.

    The interval is Wilson's.
    """
    labels, score = scores.labels, scores.probabilities[:, 1]
    bins = np.array_split(np.argsort(score, kind="stable"), int(np.clip(len(labels) // 20, 3, 10)))
    bins = [rows for rows in bins if len(rows)]
    shares = [wilson_interval(int(labels[rows].sum()), len(rows), "patient") for rows in bins]
    return Curve(
        "calibration",
        task,
        method,
        _list(np.array([score[rows].mean() for rows in bins])),
        _list(np.array([share.value for share in shares])),
        _list(np.array([share.low for share in shares])),
        _list(np.array([share.high for share in shares])),
        _list(np.array([len(rows) / len(labels) for rows in bins])),
    )


def decision_curves(scores: Scores, *, task: str, method: Method) -> tuple[Curve, Curve]:
    """Net benefit TP/n - FP/n * t/(1-t) for thresholds t of 0.02 to 0.80: of the model, and of calling all positive.

    Source: Vickers and Elkin, Medical Decision Making 2006.
    """
    thresholds = np.linspace(0.02, 0.8, 40)
    odds = thresholds / (1 - thresholds)
    called = scores.probabilities[None, :, 1] >= thresholds[:, None]
    positive = scores.labels == 1
    benefit = (called & positive).mean(axis=1) - (called & ~positive).mean(axis=1) * odds
    everyone = positive.mean() - (1 - positive.mean()) * odds
    return (
        Curve("decision", task, method, _list(thresholds), _list(benefit)),
        Curve("decision_all", task, method, _list(thresholds), _list(everyone)),
    )


def _roc(labels: NDArray[np.int64], score: Floats, task: str, method: Method, resamples: int, seed: int) -> Curve:
    order = np.argsort(-score, kind="stable")
    ranked, positive = score[order], labels[order] == 1
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # tied scores make one step
    weights = stratified_weights(labels[order], resamples=resamples, seed=seed)
    parts = range(0, resamples, _CHUNK)  # bounded memory for large cohorts
    drawn = np.concatenate([_sensitivities(weights[start : start + _CHUNK], positive, ends) for start in parts])
    middle = _sensitivities(np.ones((1, len(labels)), np.int32), positive, ends)[0]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return Curve("roc", task, method, _list(RATES), _list(middle), _list(low), _list(high))


def _sensitivities(weights: NDArray[np.int32], positive: NDArray[np.bool_], ends: NDArray[np.intp]) -> Floats:
    """Sensitivity at each of RATES for every row of patient weights; scores run from high to low."""
    hits = np.cumsum(weights * positive, axis=1)[:, ends]
    alarms = np.cumsum(weights * ~positive, axis=1)[:, ends]
    curves = np.empty((len(weights), len(RATES)))
    for row, (hit, alarm) in enumerate(zip(hits, alarms, strict=True)):
        x, y = np.append(0.0, alarm / alarm[-1]), np.append(0.0, hit / hit[-1])
        last = np.append(x[1:] != x[:-1], True)  # the top of each vertical step
        curves[row] = np.interp(RATES, x[last], y[last])
    return curves


def _list(values: Floats) -> list[float]:
    return [round(float(value), 6) for value in values]
