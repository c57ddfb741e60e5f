"""A generated run to report on: six training hospitals, two held out, four methods, scores by patient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from momkd_fl.evaluation.results import (
    SCHEMA,
    Cohort,
    Difference,
    Estimate,
    Failure,
    HeldOut,
    MemoryHealth,
    Operating,
    Protection,
    Provenance,
    Results,
    Round,
    Seconds,
    Selection,
    SlotShare,
    TaskCohort,
)
from sklearn.metrics import roc_auc_score

TRAINING = ("ashford", "brinmore", "caldera", "dunmere", "elswick", "farrow")
HELD_OUT = ("granby", "harrow")
SEPARATION = {"federated": 1.35, "pooled": 1.42, "local_median": 0.62, "no_genomics_control": 1.18}


@dataclass(frozen=True)
class PatientScores:
    ids: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    sites: list[str]


def _estimate(labels: np.ndarray, values: np.ndarray, seed: int = 0) -> Estimate:
    if min((labels == 1).sum(), (labels == 0).sum()) < 11:
        return Estimate.not_estimable("fewer than 11 patients of a class")
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == c) for c in (0, 1)]
    drawn = []
    for _ in range(200):
        rows = np.concatenate([generator.choice(group, len(group)) for group in groups])
        drawn.append(roc_auc_score(labels[rows], values[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(round(float(roc_auc_score(labels, values)), 4), round(float(low), 4), round(float(high), 4))


@pytest.fixture(scope="session")
def scores() -> dict[str, dict[str, PatientScores]]:
    generator = np.random.default_rng(7)
    sites = np.array([HELD_OUT[0]] * 96 + [HELD_OUT[1]] * 74)
    labels = (generator.random(len(sites)) < 0.58).astype(np.int64)
    shared = generator.normal(size=len(sites))
    by_method = {}
    for method, separation in SEPARATION.items():
        logit = separation * labels + 0.85 * shared + 0.5 * generator.normal(size=len(sites)) - 0.55
        ids = [f"P{i:03d}" for i in range(len(sites))]
        by_method[method] = PatientScores(ids, labels, 1 / (1 + np.exp(-1.2 * logit)), sites.tolist())
    return {"PR": by_method}


def _held_out(one: PatientScores) -> HeldOut:
    sites = np.array(one.sites)
    by_site = {s: _estimate(one.labels[sites == s], one.probabilities[sites == s]) for s in HELD_OUT}
    values = [estimate.value for estimate in by_site.values() if estimate.value is not None]
    return HeldOut(
        pooled=_estimate(one.labels, one.probabilities),
        within_site=Estimate(float(np.mean(values))),
        sites=by_site,
        between_sites_sd=float(np.std(values, ddof=1)),
    )


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
    return Cohort(site, "evaluate" if site in HELD_OUT else "train", patients, patients + 13, genomic, {"PR": labels})


def _operating(site: str | None) -> Operating:
    middle = {"sensitivity": 0.82, "specificity": 0.7, "ppv": 0.79, "npv": 0.74, "f1": 0.8, "balanced_accuracy": 0.76}
    metrics = {name: Estimate(value, value - 0.07, value + 0.06) for name, value in middle.items()}
    metrics |= {"auprc": Estimate(0.86, 0.79, 0.91), "prevalence": Estimate(0.58), "brier": Estimate(0.17, 0.15, 0.2)}
    metrics["calibration_slope"] = Estimate(0.94, 0.71, 1.2)
    if site == HELD_OUT[1]:
        metrics["npv"] = Estimate.not_estimable("fewer than 11 patients of a class")
    return Operating("PR", "federated", site, 0.53, metrics)


@pytest.fixture(scope="session")
def results(scores: dict[str, dict[str, PatientScores]]) -> Results:
    """A simulation's results with every part filled in."""
    held_out = {method: {"PR": _held_out(one)} for method, one in scores["PR"].items()}
    local = {site: Estimate(0.6 + 0.02 * i, 0.52 + 0.02 * i, 0.69 + 0.02 * i) for i, site in enumerate(TRAINING)}
    shares = {"histology": (0.31, 0.27, 0.22, 0.2), "genomics": (0.28, 0.26, 0.25, 0.21)}
    value = {method: by_task["PR"].pooled.value or 0.0 for method, by_task in held_out.items()}
    widths = {"pooled": 0.021, "local_median": 0.06, "no_genomics_control": 0.03}
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
        held_out=held_out,
        selection={"PR": Selection(16, "summed validation loss", 0.53, {"slope": 1.1, "intercept": -0.05})},
        provenance=Provenance(
            *(f"{digit}" * 64 for digit in "abcdef"), seeds={"run": 0, "bootstrap": 0}, software={"momkd-fl": "0.1.0"}
        ),
        protection=Protection("mutual_tls", "plain"),
        differences=[
            Difference(
                "PR",
                "federated",
                reference,
                Estimate(
                    value["federated"] - value[reference],
                    *(value["federated"] - value[reference] + w for w in (-width, width)),
                ),
                p_value=0.2 if reference == "pooled" else 0.0004,
                p_holm=0.4 if reference == "pooled" else 0.0012,
            )
            for reference, width in widths.items()
        ],
        operating=[_operating(site) for site in (None, *HELD_OUT)],
        local_models={"PR": local},
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
    small = TaskCohort("<11", None, {"equivocal": "<11", "missing": None})
    cohorts = [replace(one, tasks={"PR": TaskCohort(60, 0.6, {"equivocal": "<11"})}) for one in results.cohorts]
    cohorts[-1] = replace(cohorts[-1], patients="<11", slides="<11", with_genomics=0, tasks={"PR": small})
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
