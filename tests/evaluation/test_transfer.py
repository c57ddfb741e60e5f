from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from momkd_fl.evaluation.calibration import calibrate, recalibration
from momkd_fl.evaluation.calibration_choice import choose_calibration
from momkd_fl.evaluation.comparison import Scores
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.evaluation.results import Calibration, Results, Selection
from momkd_fl.evaluation.results_file import from_json, to_json
from momkd_fl.evaluation.transfer import validation_transfer, with_transfer


def drawn(patients: int, seed: int, sites: tuple[str, ...]) -> Scores:
    """Patients whose event is rarer and less certain than an over-confident model says."""
    rng = np.random.default_rng(seed)
    logits = 2.5 * rng.standard_normal(patients)
    labels = (rng.random(patients) < expit(0.5 * logits - 0.8)).astype(np.int64)
    score = expit(logits)
    where = tuple(sites[row % len(sites)] for row in range(patients))
    return Scores(tuple(map(str, range(patients))), labels, np.column_stack([1 - score, score]), where)


def test_calibration_that_carries_over_is_seen_to(results: Results) -> None:
    training, held_out = drawn(600, 1, ("a",)), drawn(800, 2, ("granby", "harrow"))
    calibration = choose_calibration(ScoreHistogram.of(training.labels, training.probabilities))
    chosen = replace(results, selection={"PR": Selection(3, "loss", 0.4, calibration)})
    found = with_transfer(chosen, held_out, task="PR", resamples=100)
    assert [one.site for one in found.transfer] == [None, "granby", "harrow"]
    pooled = found.transfer[0]
    assert pooled.after["brier"].value < pooled.before["brier"].value
    assert pooled.before["calibration_slope"].high < 1
    assert pooled.after["calibration_slope"].low < 1 < pooled.after["calibration_slope"].high
    fit = recalibration(held_out.labels, calibrate(held_out.probabilities, calibration))
    assert pooled.after["calibration_intercept"].value == pytest.approx(fit.intercept)
    (raw,) = [curve for curve in found.curves if curve.kind == "calibration_raw"]
    assert np.average(raw.x, weights=raw.weight) == pytest.approx(held_out.probabilities[:, 1].mean(), abs=1e-4)
    again = with_transfer(found, held_out, task="PR", resamples=100)
    assert again == found
    assert from_json(to_json(found), "results") == found


def test_where_a_site_is_small_nothing_is_said(results: Results) -> None:
    few = drawn(300, 3, ("granby",) * 20 + ("harrow",))
    found = with_transfer(results, few, task="PR", resamples=50)
    by_site = {one.site: one.after for one in found.transfer}
    assert by_site["granby"]["brier"].value is not None
    assert {estimate.value for estimate in by_site["harrow"].values()} == {None}


def test_the_validation_patients_are_told_apart(results: Results) -> None:
    training = drawn(600, 1, ("a",))
    histogram = ScoreHistogram.of(training.labels, training.probabilities)
    (one,) = validation_transfer(histogram, choose_calibration(histogram), task="PR", resamples=100)
    assert one.patients == "validation"
    assert one.after["calibration_slope"].value == pytest.approx(1, abs=0.1)
    assert one.after["calibration_intercept"].value == pytest.approx(0, abs=0.1)
    assert validation_transfer(ScoreHistogram.empty(2), Calibration(), task="PR") == []
    assert validation_transfer(ScoreHistogram.empty(3), Calibration(), task="PR") == []
    kept = with_transfer(replace(results, transfer=[one]), training, task="PR", resamples=50)
    assert kept.transfer[0] == one


def test_results_of_before_there_was_a_choice_are_still_read(results: Results) -> None:
    raw = json.loads(to_json(results))
    raw["selection"]["PR"]["calibration"] = {"slope": 1.3, "intercept": -0.2}
    for name in ("matrix", "transfer", "rule_out"):
        del raw[name]
    found = from_json(json.dumps(raw), "old")
    assert found.selection["PR"].calibration == Calibration(1.3, -0.2, "platt")
    assert (found.matrix, found.transfer) == ({}, [])
