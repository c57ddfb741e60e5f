"""What a model does at the threshold that was frozen on the training sites."""

from __future__ import annotations

from momkd_fl.evaluation.calibration import recalibration
from momkd_fl.evaluation.comparison import Scores
from momkd_fl.evaluation.intervals import (
    RESAMPLES,
    Z95,
    Weights,
    percentile_interval,
    stratified_weights,
    too_few,
    weighted_auprc,
    weighted_auroc,
    wilson_interval,
)
from momkd_fl.evaluation.metrics import Floats, auprc, auroc, brier, decisions, estimable
from momkd_fl.evaluation.results import MINIMUM_CELL, Estimate, Method, Metric, Operating


def operating(
    scores: Scores,
    *,
    task: str,
    method: Method,
    threshold: float,
    site: str | None = None,
    class_minimum: int = MINIMUM_CELL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Operating:
    """What a two-class model does at a frozen threshold, at one site or at all.

    Shares have Wilson's interval, slope and intercept of the recalibration Wald's, the others the stratified
    bootstrap's. Under the class minimum nothing is estimable.
    """
    here = scores if site is None else scores.at(site)
    labels, probabilities = here.labels, here.probabilities
    if not len(here.ids) or not estimable(labels, probabilities, class_minimum):
        names: tuple[Metric, ...] = (
            *("auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "share_spared", "brier"),
        )
        return Operating(task, method, site, threshold, {name: too_few(class_minimum) for name in names})
    weights = stratified_weights(labels, resamples=resamples, seed=seed)
    made = decisions(labels, probabilities, threshold)
    tp, fp, tn, fn = made.true_positive, made.false_positive, made.true_negative, made.false_negative
    positive, score = labels == 1, probabilities[:, 1]
    drawn_tp = weights @ (positive & (score >= threshold))
    drawn_fp = weights @ (~positive & (score >= threshold))
    return Operating(
        task,
        method,
        site,
        threshold,
        {
            "auroc": _bootstrapped(auroc(labels, probabilities), weighted_auroc(weights, labels, probabilities)),
            "auprc": _bootstrapped(auprc(labels, probabilities), weighted_auprc(weights, labels, probabilities)),
            "prevalence": wilson_interval(tp + fn, len(labels), "patient"),
            "sensitivity": wilson_interval(tp, tp + fn, "positive patient"),
            "specificity": wilson_interval(tn, tn + fp, "negative patient"),
            "ppv": wilson_interval(tp, tp + fp, "patient called positive"),
            "npv": wilson_interval(tn, tn + fn, "patient called negative"),
            "f1": _bootstrapped(made.f1, 2 * drawn_tp / (drawn_tp + drawn_fp + tp + fn)),
            "balanced_accuracy": _bootstrapped(
                made.balanced_accuracy, (drawn_tp / (tp + fn) + 1 - drawn_fp / (tn + fp)) / 2
            ),
            "share_spared": wilson_interval(tn + fn, len(labels), "patient"),
            **_errors(here, weights),
        },
    )


def probability_errors(
    scores: Scores, *, class_minimum: int = MINIMUM_CELL, resamples: int = RESAMPLES, seed: int = 0
) -> dict[Metric, Estimate]:
    """Brier score, calibration slope and intercept of a two-class model, with the intervals of :func:`operating`."""
    if not len(scores.ids) or not estimable(scores.labels, scores.probabilities, class_minimum):
        names: tuple[Metric, ...] = ("brier", "calibration_slope", "calibration_intercept")
        return dict.fromkeys(names, too_few(class_minimum))
    return _errors(scores, stratified_weights(scores.labels, resamples=resamples, seed=seed))


def _errors(scores: Scores, weights: Weights) -> dict[Metric, Estimate]:
    labels, probabilities = scores.labels, scores.probabilities
    squares = weights @ ((probabilities[:, 1] - (labels == 1)) ** 2) / len(labels)
    return {"brier": _bootstrapped(brier(labels, probabilities), squares), **_recalibrated(scores)}


def _recalibrated(scores: Scores) -> dict[Metric, Estimate]:
    fit = recalibration(scores.labels, scores.probabilities)
    if fit is None:
        nothing = Estimate.not_estimable("a threshold separates the classes")
        return {"calibration_slope": nothing, "calibration_intercept": nothing}
    return {
        "calibration_slope": _wald(fit.slope, fit.slope_se),
        "calibration_intercept": _wald(fit.intercept, fit.intercept_se),
    }


def _wald(value: float, error: float) -> Estimate:
    return Estimate(value, value - Z95 * error, value + Z95 * error)


def _bootstrapped(value: float | None, drawn: Floats) -> Estimate:
    return Estimate.not_estimable("nobody to say it of") if value is None else percentile_interval(value, drawn)
