"""Temperature, Platt or isotonic: chosen and fitted on the summed score histogram of the training sites' validation.

The choice is by cross-validated log loss; the simplest kind within one standard error of the best is taken, so that
a small cohort is not given a curve it cannot support. Bins' middles stand for the scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import logit

from momkd_fl.evaluation.calibration import fit_logistic, mapped
from momkd_fl.evaluation.metrics import Floats, Labels, ScoreHistogram
from momkd_fl.evaluation.results import MINIMUM_CELL, Calibration, Scaling

KINDS: Final[tuple[Scaling, ...]] = get_args(Scaling)
"""From the simplest to the most flexible."""

_SLOPE_MIN = 0.05
_FOLDS, _REPEATS = 5, 10

Sides = list[tuple[Labels, Labels]]
"""Positives and others (B,) by score column."""


def choose_calibration(histogram: ScoreHistogram, *, seed: int = 0) -> Calibration:
    """The calibration to freeze.

    Under 11 patients of a class nothing can be chosen between, and Platt's is fitted; where a class lacks, nothing
    is changed. ``seed`` deals patients to folds.
    """
    sides = histogram.sides(1)
    if not sides:
        return Calibration()
    if not histogram.sides(MINIMUM_CELL):
        return fitted(sides, "platt")
    losses = _cross_validated(sides, np.random.default_rng(seed))
    means = losses.mean(axis=1)
    behind = losses - losses[means.argmin()]
    errors = behind.std(axis=1, ddof=1) / np.sqrt(losses.shape[1])
    chosen = next(kind for kind, row in enumerate(behind) if row.mean() <= errors[kind])
    told: dict[Scaling, float] = dict(zip(KINDS, (float(mean) for mean in means), strict=True))
    return replace(fitted(sides, KINDS[chosen]), losses=told)


def fitted(sides: Sides, kind: Scaling) -> Calibration:
    """A calibration of this kind by likelihood, with Platt's targets, which keep it inside (0, 1).

    Where the fitted slope is under 0.05 (the scores rank no better than chance) the slope stays 1, so that no
    calibration reverses or flattens a ranking. Isotonic is the centred one: strictly increasing between the weighted
    centres of its blocks, and half way to 0 and 1 at the ends. Sources: Platt, "Probabilistic outputs for support
    vector machines", 1999; Oron and Flournoy, Statistics in Biopharmaceutical Research 2017.
    """
    middles = _middles(len(sides[0][0]))
    target, weight = _targets(sides)
    if kind == "isotonic":
        return Calibration(kind="isotonic", knots=_knots(middles, target.reshape(len(sides), -1), weight))
    line = np.tile(logit(middles), len(sides)), target, weight
    shifted = kind == "platt"
    (slope, intercept), _ = fit_logistic(*line, free_intercept=shifted)
    if slope < _SLOPE_MIN:
        (slope, intercept), _ = fit_logistic(*line, free_slope=False) if shifted else ((1.0, 0.0), None)
    return Calibration(slope, intercept, kind)


def _targets(sides: Sides) -> tuple[Floats, Floats]:
    """Mean target and number of patients of every column and bin, (V * B,)."""
    targets, weights = [], []
    for positive, negative in sides:
        high, low = (positive.sum() + 1) / (positive.sum() + 2), 1 / (negative.sum() + 2)
        weights.append((positive + negative).astype(np.float64))
        targets.append((positive * high + negative * low) / np.maximum(weights[-1], 1))
    return np.concatenate(targets), np.concatenate(weights)


def _knots(middles: Floats, target: Floats, weight: Floats) -> list[list[float]]:
    by_column = weight.reshape(target.shape)
    count = by_column.sum(axis=0)
    seen = count > 0
    share = (target * by_column).sum(axis=0)[seen] / count[seen]
    levels = isotonic_regression(share, weights=count[seen]).x.round(12)  # neighbouring blocks may be of one level
    blocks = [(levels == level) for level in np.unique(levels)]
    inner = [
        [float(np.average(of[block], weights=count[seen][block])) for of in (middles[seen], share)] for block in blocks
    ]
    return [[0.0, inner[0][1] / 2], *inner, [1.0, (1 + inner[-1][1]) / 2]]


def _cross_validated(sides: Sides, rng: np.random.Generator) -> Floats:
    """Log loss (nats) of every kind on every patient, fitted without that patient's fold: (kinds, patients)."""
    bins = len(sides[0][0])
    middles = _middles(bins)
    places = [np.repeat(np.arange(bins), counts) for pair in sides for counts in pair]
    total = [np.zeros((len(KINDS), len(place))) for place in places]
    for folds in _dealt(places, rng):
        for fold in range(_FOLDS):
            rest = [np.bincount(place[of != fold], minlength=bins) for place, of in zip(places, folds, strict=True)]
            kept: Sides = list(zip(rest[::2], rest[1::2], strict=True))
            for row, kind in enumerate(KINDS):
                share = mapped(middles, fitted(kept, kind))
                for side, (place, of) in enumerate(zip(places, folds, strict=True)):
                    said = share if side % 2 == 0 else 1 - share
                    total[side][row, of == fold] -= np.log(said[place[of == fold]])
    return np.concatenate(total, axis=1) / _REPEATS


def _dealt(places: list[NDArray[np.intp]], rng: np.random.Generator) -> Iterator[list[NDArray[np.intp]]]:
    """The fold of every patient, anew for each repeat; each class is spread evenly."""
    for _ in range(_REPEATS):
        yield [rng.permutation(np.arange(len(place)) % _FOLDS) for place in places]


def _middles(bins: int) -> Floats:
    return np.asarray((np.arange(bins) + 0.5) / bins, dtype=np.float64)
