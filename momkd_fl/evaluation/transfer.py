"""Whether the calibration that was frozen on the training sites carries over to patients it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from momkd_fl.evaluation.calibration import calibrate
from momkd_fl.evaluation.comparison import Scores
from momkd_fl.evaluation.curves import calibration_curve
from momkd_fl.evaluation.intervals import RESAMPLES
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.evaluation.operating import probability_errors
from momkd_fl.evaluation.results import MINIMUM_CELL, Calibration, Results, Transfer


def with_transfer(
    results: Results,
    raw: Scores,
    *,
    task: str,
    class_minimum: int = MINIMUM_CELL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Results:
    """The results with the transfer of a task's calibration to its held-out patients, and their curve before it.

    ``raw`` are the federated model's uncalibrated scores. Only two-class tasks have any.
    """
    if raw.probabilities.shape[1] != 2:
        return results
    where: Sequence[str | None] = [None, *raw.site_names] if len(raw.site_names) > 1 else [None]
    calibration = results.selection[task].calibration
    found = []
    for site in where:
        here = raw if site is None else raw.at(site)
        before = probability_errors(here, class_minimum=class_minimum, resamples=resamples, seed=seed)
        after = probability_errors(
            replace(here, probabilities=calibrate(here.probabilities, calibration)),
            class_minimum=class_minimum,
            resamples=resamples,
            seed=seed,
        )
        found.append(Transfer(task, "held_out", site, before, after))
    curve = replace(calibration_curve(raw, task=task, method="federated"), kind="calibration_raw")
    return replace(
        results,
        transfer=[one for one in results.transfer if (one.task, one.patients) != (task, "held_out")] + found,
        curves=[one for one in results.curves if (one.task, one.kind) != (task, "calibration_raw")] + [curve],
    )


def validation_transfer(
    histogram: ScoreHistogram, calibration: Calibration, *, task: str, resamples: int = RESAMPLES, seed: int = 0
) -> list[Transfer]:
    """The same on the training sites' validation patients, from their summed histogram (bins' middles); [] of nobody.

    The calibration was fitted on these very patients.
    """
    if len(histogram.counts) != 1 or not histogram.counts.any():
        return []
    label, place = np.nonzero(histogram.counts[0])
    times = histogram.counts[0][label, place]
    middle = np.repeat((place + 0.5) / histogram.counts.shape[2], times)
    raw = Scores(
        tuple(str(row) for row in range(len(middle))),
        np.repeat(label, times).astype(np.int64),
        np.column_stack([1 - middle, middle]),
        ("validation",) * len(middle),
    )
    before = probability_errors(raw, resamples=resamples, seed=seed)
    moved = replace(raw, probabilities=calibrate(raw.probabilities, calibration))
    return [Transfer(task, "validation", None, before, probability_errors(moved, resamples=resamples, seed=seed))]
