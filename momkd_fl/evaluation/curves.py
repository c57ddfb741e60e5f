"""Curves to draw from patients' scores: ROC with a bootstrap band, calibration, decision curve.

Scores are here only where they may be: in a simulation, or inside one site. All curves are for two classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from momkd_fl.evaluation.results import Curve, Method

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
RATES = np.linspace(0.0, 1.0, 101)
_Z95 = 1.959963984540054


def roc_curve(
    labels: Labels, probabilities: Floats, *, task: str, method: Method, resamples: int = 2000, seed: int = 0
) -> Curve:
    """ROC with a pointwise 95% band of the stratified bootstrap over patients.

    Parameters
    ----------
    labels : (n,) 0 or 1, both present
    probabilities : (n,) of class 1
    """
    generator = np.random.default_rng(seed)
    order = np.argsort(-probabilities, kind="stable")
    ranked, positive = probabilities[order], labels[order] == 1
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # tied scores make one step
    drawn = np.empty((resamples, len(RATES)))
    for start in range(0, resamples, 250):  # bounded memory for large cohorts
        rows = min(250, resamples - start)
        weights = np.zeros((rows, len(labels)))
        for group in (positive, ~positive):
            weights[:, group] = generator.multinomial(group.sum(), np.full(group.sum(), 1 / group.sum()), rows)
        drawn[start : start + rows] = _sensitivities(weights, positive, ends)
    middle = _sensitivities(np.ones((1, len(labels))), positive, ends)[0]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return Curve("roc", task, method, _list(RATES), _list(middle), _list(low), _list(high))


def calibration_curve(labels: Labels, probabilities: Floats, *, task: str, method: Method) -> Curve:
    """Observed share of positives against mean prediction in equal-sized bins of some twenty patients, 3 to 10 bins.

    The interval is Wilson's.
    """
    bins = np.array_split(np.argsort(probabilities, kind="stable"), int(np.clip(len(labels) // 20, 3, 10)))
    bins = [rows for rows in bins if len(rows)]
    count = np.array([len(rows) for rows in bins], dtype=float)
    share = np.array([labels[rows].mean() for rows in bins])
    predicted = np.array([probabilities[rows].mean() for rows in bins])
    centre = (share + _Z95**2 / (2 * count)) / (1 + _Z95**2 / count)
    half = _Z95 * np.sqrt(share * (1 - share) / count + _Z95**2 / (4 * count**2)) / (1 + _Z95**2 / count)
    return Curve(
        "calibration",
        task,
        method,
        _list(predicted),
        _list(share),
        _list(np.clip(centre - half, 0, 1)),
        _list(np.clip(centre + half, 0, 1)),
        _list(count / count.sum()),
    )


def decision_curves(labels: Labels, probabilities: Floats, *, task: str, method: Method) -> tuple[Curve, Curve]:
    """Net benefit TP/n - FP/n * t/(1-t) for thresholds t of 0.02 to 0.80: of the model, and of calling all positive.

    Source: Vickers and Elkin, Medical Decision Making 2006.
    """
    thresholds = np.linspace(0.02, 0.8, 40)
    odds = thresholds / (1 - thresholds)
    called = probabilities[None, :] >= thresholds[:, None]
    positive = labels == 1
    benefit = (called & positive).mean(axis=1) - (called & ~positive).mean(axis=1) * odds
    everyone = positive.mean() - (1 - positive.mean()) * odds
    return (
        Curve("decision", task, method, _list(thresholds), _list(benefit)),
        Curve("decision_all", task, method, _list(thresholds), _list(everyone)),
    )


def _sensitivities(weights: Floats, positive: NDArray[np.bool_], ends: NDArray[np.intp]) -> Floats:
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
