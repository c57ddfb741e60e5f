"""Whether probabilities mean what they say, and maps that make them mean it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from momkd_fl.evaluation.results import Calibration

Floats = NDArray[np.float64]

_EDGE = 1e-6


@dataclass(frozen=True)
class Recalibration:
    """Logistic recalibration of two-class probabilities, with standard errors.

    ``slope`` is that of the logit; ``intercept`` is calibration in the large, fitted with the slope held at 1.
    A perfect model has slope 1 and intercept 0. Source: Van Calster et al., BMC Medicine 2019.
    """

    slope: float
    slope_se: float
    intercept: float
    intercept_se: float


def recalibration(labels: ArrayLike, probabilities: ArrayLike) -> Recalibration | None:
    """Calibration slope and intercept; None with one class only or where a cut separates the classes."""
    positive, scores = np.asarray(labels) == 1, np.asarray(probabilities, dtype=np.float64)
    if scores.ndim == 2 and scores.shape[1] != 2:
        raise ValueError("recalibration needs two classes")
    if not 0 < positive.sum() < len(positive):
        return None
    x = logit(np.clip(scores if scores.ndim == 1 else scores[:, 1], _EDGE, 1 - _EDGE))
    if x[positive].min() >= x[~positive].max() or x[positive].max() <= x[~positive].min():
        return None
    weight, target = np.ones(len(x)), positive.astype(np.float64)
    (slope, _), (slope_se, _) = fit_logistic(x, target, weight)
    (_, intercept), (_, intercept_se) = fit_logistic(x, target, weight, free_slope=False)
    return Recalibration(slope, slope_se, intercept, intercept_se)


def calibrate(probabilities: ArrayLike, calibration: Calibration) -> Floats:
    """Probabilities (n, C) after ``calibration``.

    For more than two classes every class is mapped alike and rows are normalised again.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.shape[1] == 2:
        positive = mapped(scores[:, 1], calibration)
        return np.column_stack([1 - positive, positive])
    scaled = mapped(scores, calibration)
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True), dtype=np.float64)


def calibrated_threshold(threshold: float, calibration: Calibration) -> float:
    """The threshold on calibrated probabilities of two classes that makes the same decisions."""
    return float(mapped(np.array(threshold), calibration))


def mapped(scores: Floats, calibration: Calibration) -> Floats:
    """Every score of any shape through the calibration's increasing map."""
    if calibration.kind == "isotonic":
        at, share = np.array(calibration.knots).T
        return np.asarray(np.interp(scores, at, share), dtype=np.float64)
    inside = np.clip(scores, _EDGE, 1 - _EDGE)
    return np.asarray(expit(calibration.slope * logit(inside) + calibration.intercept), dtype=np.float64)


def fit_logistic(
    x: Floats, target: Floats, weight: Floats, *, free_slope: bool = True, free_intercept: bool = True
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Weighted logistic line: (slope, intercept) and their standard errors; a slope not free is 1, an intercept 0."""
    free = np.array([free_slope, free_intercept])
    design = np.column_stack([x, np.ones_like(x)])[:, free]
    offset = np.zeros_like(x) if free_slope else x

    def loss(line: Floats) -> tuple[float, Floats]:
        z = design @ line + offset
        gradient = design.T @ (weight * (expit(z) - target))
        return float(weight @ (np.logaddexp(0, z) - target * z)) / weight.sum(), gradient / weight.sum()

    fitted, errors = np.array([1.0, 0.0]), np.zeros(2)
    fitted[free] = minimize(loss, np.zeros(design.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    share = expit(design @ fitted[free] + offset)
    information = (design * (weight * share * (1 - share))[:, None]).T @ design
    errors[free] = np.sqrt(np.diag(np.linalg.pinv(information)))
    return (float(fitted[0]), float(fitted[1])), (float(errors[0]), float(errors[1]))
