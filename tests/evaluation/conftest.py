"""A generated run to report on: six training hospitals, two held out, four methods, scores by patient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from momkd_fl.evaluation.calibration import calibrate, calibrated_threshold
from momkd_fl.evaluation.calibration_choice import choose_calibration
from momkd_fl.evaluation.comparison import Models, Scores, differences, held_out, matrix
from momkd_fl.evaluation.disclosure import publishable
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.evaluation.operating import operating
from momkd_fl.evaluation.report import with_curves
from momkd_fl.evaluation.results import (
    METHODS,
    SCHEMA,
    Calibration,
    Cohort,
    Estimate,
    Failure,
    MemoryHealth,
    Method,
    Protection,
    Provenance,
    Results,
    Round,
    Seconds,
    Selection,
    SlotShare,
    TaskCohort,
)
from momkd_fl.evaluation.transfer import validation_transfer, with_transfer

TRAINING = ("ashford", "brinmore", "caldera", "dunmere", "elswick", "farrow")
HELD_OUT = ("granby", "harrow")
SEPARATION = {"federated": 1.35, "pooled": 1.42, "no_genomics_control": 1.18}
LOCAL_SEPARATION = (0.35, 0.5, 0.6, 0.66, 0.8, 0.95)
PAIRS: list[tuple[Method, Method]] = [
    ("federated", "pooled"),
    ("federated", "local_median"),
    ("federated", "no_genomics_control"),
]


@pytest.fixture(scope="session")
def scores() -> dict[str, dict[Method, Models]]:
    """Scores of 170 held-out patients by one model a method, and by six hospitals' own models."""
    generator = np.random.default_rng(7)
    sites = (HELD_OUT[0],) * 96 + (HELD_OUT[1],) * 74
    ids = tuple(f"P{row:03d}" for row in range(len(sites)))
    labels = (generator.random(len(sites)) < 0.58).astype(np.int64)
    shared = generator.normal(size=len(sites))

    def model(separation: float) -> Scores:
        logit = separation * labels + 0.85 * shared + 0.5 * generator.normal(size=len(sites)) - 0.55
        positive = 1 / (1 + np.exp(-1.2 * logit))
        return Scores(ids, labels, np.column_stack([1 - positive, positive]), sites)

    by_method: dict[Method, Models] = {name: model(value) for name, value in SEPARATION.items()}
    by_method["local_median"] = [model(value) for value in LOCAL_SEPARATION]
    return {"PR": by_method}


def _round(number: int) -> Round:
    states: dict[str, list[str]] = {"trained": list(TRAINING)}
    for site, when, state in (
        ("dunmere", (6, 7, 8), "missing"),
        ("farrow", (13,), "late"),
        ("brinmore", (3,), "refused"),
    ):
        if number in when:
            states["trained"].remove(site)
            states[state] = [*states.get(state, []), site]
    progress = 1 - np.exp(-number / 5)
    wobble = np.sin(2.7 * number)
    return Round(
        round=number,
        seconds=4.2 + 0.3 * wobble,
        bytes=2 * 820_000 * 4 * len(states["trained"]),
        sites=states,
        validation_auroc=round(0.52 + 0.29 * progress + 0.008 * wobble, 4),
        validation_loss=round(0.69 - 0.2 * progress + 0.05 * max(0, number - 17) / 3 + 0.006 * wobble, 4),
        memory=MemoryHealth(
            0.3 * np.exp(-number / 6) + 0.02 + 0.005 * wobble, 3.2 + 0.5 * progress + 0.1 * wobble, 1.0
        ),
        seconds_by_phase={"train": 3.1, "aggregate": 0.2, "evaluate": 0.9},
    )


def _cohort(site: str, index: int) -> Cohort:
    patients = 62 + 17 * ((index * 5) % 7)
    labels = TaskCohort(patients - 14, round(0.52 + 0.03 * index, 2), {"equivocal": 12, "missing": 2})
    genomic = 0 if site in ("elswick", "farrow") else patients - 12
    return Cohort(site, "train" if site in TRAINING else "evaluate", patients, patients + 13, genomic, {"PR": labels})


@pytest.fixture(scope="session")
def results(scores: dict[str, dict[Method, Models]]) -> Results:
    """A simulation's results with every part filled in but the curves."""
    by_method = scores["PR"]
    federated, local = by_method["federated"], by_method["local_median"]
    assert isinstance(federated, Scores)
    assert isinstance(local, list)
    alone = {site: held_out(one, resamples=200).pooled for site, one in zip(TRAINING, local, strict=True)}
    shares = {"histology": (0.31, 0.27, 0.22, 0.2), "genomics": (0.28, 0.26, 0.25, 0.21)}
    return Results(
        schema=SCHEMA,
        name="example-consortium",
        created="2026-01-15T10:20:00Z",
        origin="synthetic",
        tasks=["PR"],
        seconds=Seconds(48.0, 214.0, {"train": 150.0}),
        peak_rss_mb=2310.0,
        quorum=4,
        rounds=[_round(number) for number in range(1, 21)],
        cohorts=[_cohort(site, index) for index, site in enumerate(TRAINING + HELD_OUT)],
        held_out={method: {"PR": held_out(models, resamples=200)} for method, models in by_method.items()},
        selection={"PR": Selection(16, "summed validation loss", 0.53, Calibration(1.1, -0.05))},
        provenance=Provenance(
            *(f"{digit}" * 64 for digit in "abcdef"), seeds={"run": 0, "bootstrap": 0}, software={"momkd-fl": "0.1.0"}
        ),
        protection=Protection("mutual_tls", "plain"),
        differences=differences(scores, PAIRS, resamples=500),
        operating=[
            operating(federated, task="PR", method="federated", threshold=0.53, site=site, resamples=200)
            for site in (None, *HELD_OUT)
        ],
        local_models={"PR": alone},
        memory_map=[
            SlotShare("PR", modality, label, slot, share)
            for modality, by_slot in shares.items()
            for label in ("PR negative", "PR positive")
            for slot, share in enumerate(by_slot)
        ],
        failures=[Failure("message-not-finite", "brinmore", 3), Failure("transport", "dunmere", 6)],
    )


@pytest.fixture(scope="session")
def federation_results(results: Results) -> Results:
    """What a live federation's coordinator has: suppressed counts, no local or pooled model, no patients' scores."""
    cohorts = [publishable(one) for one in results.cohorts]
    labels = TaskCohort(7, 0.4, {"equivocal": 2})
    cohorts[-1] = publishable(replace(results.cohorts[-1], patients=9, slides=9, with_genomics=0, tasks={"PR": labels}))
    too_few = Estimate.not_estimable("fewer than 11 patients of a class")
    federated = results.held_out["federated"]["PR"]
    return replace(
        results,
        origin="federation",
        cohorts=cohorts,
        held_out={"federated": {"PR": replace(federated, sites={**federated.sites, HELD_OUT[1]: too_few})}},
        differences=[],
        local_models={},
        curves=[],
    )


@pytest.fixture(scope="session")
def full_results(results: Results, scores: dict[str, dict[Method, Models]]) -> Results:
    """The same run with a second task, ODX, on five held-out hospitals, with every comparator and every table."""
    generator = np.random.default_rng(11)
    tested = ("granby", "harrow", "ilkeston", "jarrow", "kelham")

    def model(signal: float, sites: tuple[str, ...]) -> Scores:
        names = tuple(site for site in sites for _ in range(70))
        labels = (generator.random(len(names)) < 0.35).astype(np.int64)
        positive = 1 / (1 + np.exp(-(2 * signal * labels + 1.6 * generator.normal(size=len(names)) - 0.2)))
        ids = tuple(f"{site}{row}" for row, site in enumerate(names))
        return Scores(ids, labels, np.column_stack([1 - positive, positive]), names)

    def onto(one: Scores, noise: float) -> Scores:
        logit = np.log(one.probabilities[:, 1] / one.probabilities[:, 0])
        moved = 1 / (1 + np.exp(-(logit + noise * generator.normal(size=len(logit)))))
        return replace(one, probabilities=np.column_stack([1 - moved, moved]))

    federated = model(0.9, tested)
    by_method: dict[Method, Models] = {
        method: federated if method == "federated" else onto(federated, 0.3 + 0.15 * place)
        for place, method in enumerate(METHODS)
    }
    histogram = ScoreHistogram.of(federated.labels, federated.probabilities)
    calibration = choose_calibration(histogram)
    calibrated = replace(federated, probabilities=calibrate(federated.probabilities, calibration))
    threshold = calibrated_threshold(0.4, calibration)
    own = {
        site: model(0.4 + 0.1 * place, TRAINING[:place] + TRAINING[place + 1 :]) for place, site in enumerate(TRAINING)
    }
    pairs: list[tuple[Method, Method]] = [("federated", method) for method in METHODS[1:]]
    full = replace(
        results,
        tasks=["PR", "ODX"],
        cohorts=[*results.cohorts, *(_cohort(site, place) for place, site in enumerate(tested[2:]))],
        held_out={
            method: {**results.held_out.get(method, {}), "ODX": held_out(models, resamples=100)}
            for method, models in by_method.items()
        },
        selection={**results.selection, "ODX": Selection(16, "validation AUROC", threshold, calibration)},
        differences=results.differences + differences({"ODX": by_method}, pairs, resamples=200),
        operating=results.operating
        + [
            operating(calibrated, task="ODX", method="federated", threshold=threshold, site=site, resamples=100)
            for site in (None, *tested)
        ],
        matrix={"ODX": matrix({**own, "federated": model(1.0, TRAINING)}, resamples=100)},
        transfer=validation_transfer(histogram, calibration, task="ODX", resamples=100),
        rounds=[replace(one, bytes_by_site={"ashford": 3_000_000}) for one in results.rounds],
    )
    drawn = with_curves(full, {**scores, "ODX": {"federated": calibrated, "pooled": by_method["pooled"]}})
    return with_transfer(drawn, federated, task="ODX", resamples=100)
