"""From a finished run to ``results.json``: the sites' own evaluations, and patients' scores where they may be had."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

import momkd_fl
from momkd_fl.config.federation import FederationConfig
from momkd_fl.evaluation.calibration import calibrate, calibrated_threshold
from momkd_fl.evaluation.comparison import Models, Scores, differences, held_out, matrix
from momkd_fl.evaluation.curves import binned_roc_curve
from momkd_fl.evaluation.intervals import auroc_interval
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.evaluation.operating import operating
from momkd_fl.evaluation.report import with_curves, write_report
from momkd_fl.evaluation.results import (
    Cohort,
    Curve,
    Estimate,
    Failure,
    MemoryHealth,
    Method,
    Operating,
    Protection,
    Provenance,
    Results,
    Round,
    Seconds,
    Selection,
    State,
)
from momkd_fl.evaluation.results_file import write_results
from momkd_fl.evaluation.transfer import validation_transfer, with_transfer
from momkd_fl.federation.artefacts import account, spoken
from momkd_fl.federation.coordinator import Outcome, config_digest
from momkd_fl.federation.plan import model_digest
from momkd_fl.federation.state import Arrays, RoundRecord

Origin = Literal["synthetic", "simulation", "federation"]
MEASURED = "AUROC of the training sites' validation patients together, from their summed score histograms"
AGREED = "agreement beforehand: the last round, since no score may leave the sites"
TOGETHER = "held-out sites together"
PAIRS: Sequence[tuple[Method, Method]] = (
    ("federated", "pooled"),
    ("federated", "local_median"),
    ("federated", "no_genomics_control"),
    ("federated", "random_memory"),
)


@dataclass(frozen=True)
class Circumstances:
    """What the run's state does not know: where it ran, how long it took, what it needed."""

    origin: Origin
    run_seconds: float
    peak_rss_mb: float
    install_seconds: float | None = None
    phases: dict[str, float] = field(default_factory=dict)


def results_of(config: FederationConfig, outcome: Outcome, where: Circumstances) -> Results:
    """The results of one run as the coordinator can know them: from the sites' score histograms."""
    task, chosen = config.task, outcome.chosen
    threshold = None if chosen.threshold is None else calibrated_threshold(chosen.threshold, chosen.calibration)
    results = Results(
        schema="momkd-results/1",
        name=outcome.state.run,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        origin=where.origin,
        tasks=[task],
        seconds=Seconds(where.install_seconds, where.run_seconds, dict(where.phases)),
        peak_rss_mb=where.peak_rss_mb,
        quorum=config.rounds.quorum,
        rounds=[_round(record) for record in outcome.state.history],
        cohorts=_cohorts(config, outcome),
        held_out={},
        selection={
            task: Selection(
                chosen.best.round,
                MEASURED if config.privacy.measured else AGREED,
                threshold,
                chosen.calibration,
            )
        },
        provenance=_provenance(config, outcome),
        protection=_protection(config, outcome, where.origin),
        failures=[Failure(code, site=site, recovered=False) for site, code in outcome.failures] + _lost(outcome),
        differing=list(outcome.differing),
        rule_out=[task] if config.rule_out else [],
    )
    binned = binned_scores(outcome)
    scored = compared(results, config, binned)
    fitted = []
    if config.privacy.measured:
        histogram = ScoreHistogram.from_arrays(chosen.best.scores)
        fitted = validation_transfer(histogram, chosen.calibration, task=task, seed=config.seed)
    # A calibration curve's bins of some twenty patients hold counts that a live federation does not publish.
    kept = [c for c in scored.curves if where.origin != "federation" and c.kind.startswith("calibration")]
    return replace(scored, curves=_binned_curves(task, outcome) + kept, transfer=[*fitted, *scored.transfer])


def compared(
    results: Results, config: FederationConfig, scores: Mapping[Method, Models], local: Sequence[str] = ()
) -> Results:
    """The results with every method's held-out figures, differences, operating points and curves.

    Parameters
    ----------
    scores : mapping of method to its uncalibrated predictions for the same held-out patients
    local : the sites whose own models make up ``local_median``, in its order
    """
    task, seed = config.task, config.seed
    chosen = results.selection[task]
    calibrated = dict(scores)
    one = scores.get("federated")
    if isinstance(one, Scores):
        calibrated["federated"] = replace(one, probabilities=calibrate(one.probabilities, chosen.calibration))
    renewed = replace(
        results,
        held_out={method: {task: held_out(models, seed=seed)} for method, models in scores.items()},
        differences=differences({task: scores}, [pair for pair in PAIRS if set(pair) <= set(scores)], seed=seed),
        operating=_operating(task, calibrated.get("federated"), chosen.threshold, seed),
        local_models=_local_models(task, scores, local),
        matrix=_matrix(task, scores, local, seed),
    )
    renewed = with_curves(renewed, {task: calibrated})
    return with_transfer(renewed, one, task=task, seed=seed) if isinstance(one, Scores) else renewed


def write_outcome(results: Results, folder: Path) -> Path:
    """Write ``results.json``, ``results.csv``, ``report.html`` and ``model_card.md``; returns the page's path."""
    write_results(results, folder)
    page, _ = write_report(results, {}, folder / "report.html")
    return page


def with_data_digest(results: Results, states_dir: Path) -> Results:
    """The results with one digest over the sites' own, where this machine holds every site's state."""
    found = {
        path.parent.name: json.loads(path.read_text("utf-8"))["data"] for path in states_dir.glob("*/provenance.json")
    }
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return replace(results, provenance=replace(results.provenance, data=digest))


def binned_scores(outcome: Outcome) -> dict[Method, Models]:
    """Held-out patients as their sites' score histograms show them: scores at the middle of their bin."""
    parts = []
    for site, members in _histograms(outcome).items():
        counts = ScoreHistogram.from_arrays(members).counts
        if len(counts) != 1:
            return {}  # more than two classes: one score per patient does not describe them
        label, place = np.nonzero(counts[0])
        times = counts[0][label, place]
        middle = np.repeat((place + 0.5) / counts.shape[2], times)
        names = tuple(f"{site}/{row}" for row in range(len(middle)))
        scores = np.column_stack([1 - middle, middle])
        parts.append(Scores(names, np.repeat(label, times).astype(np.int64), scores, (site,) * len(middle)))
    return {"federated": Scores.join(parts)} if parts else {}


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 over the package's source files."""
    root = Path(momkd_fl.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def checkpoint_digest(outcome: Outcome) -> str:
    """SHA-256 of the selected weights and memory."""
    return model_digest(outcome.chosen.best.weights, outcome.chosen.best.memory)


def _histograms(outcome: Outcome) -> dict[str, Arrays]:
    """Score histograms of held-out patients by site; of a secure sum one, of all those sites together."""
    if outcome.held_out:
        return {TOGETHER: outcome.held_out}
    found = sorted(outcome.evaluations.get("test", {}).items())
    return {site: parcel.arrays["scores"] for site, parcel in found if "scores" in parcel.arrays}


def _cohorts(config: FederationConfig, outcome: Outcome) -> list[Cohort]:
    """What each site said of its cohort; of a listed site that did not, only its part in the federation."""
    told = {site: parcel.body.cohort for split in outcome.evaluations.values() for site, parcel in split.items()}
    silent = (
        Cohort(site, member.role, patients=None, slides=None, with_genomics=None, tasks={})
        for site, member in config.members.items()
        if site not in told
    )
    return [*told.values(), *silent]


def _protection(config: FederationConfig, outcome: Outcome, origin: Origin) -> Protection:
    """What left the sites and what bounds it, from the configuration; which slots moved, from the run."""
    accounts = {role: account(config, role) for role in {member.role for member in config.members.values()}}
    costs = {site: accounts[member.role].epsilon for site, member in config.members.items()}
    trained = accounts["train"]
    return Protection(
        "mutual_tls" if origin == "federation" else "in_process",
        config.aggregation.kind,
        {site: _finite(epsilon) for site, epsilon in costs.items()},
        delta=config.privacy.delta if config.privacy.noisy else None,
        memory_epsilon=trained.memory_epsilon,
        anchors_epsilon=trained.anchors_epsilon,
        memory_conditional=trained.conditional,
        noise_sites=trained.noise_sites,
        alone_epsilon=_finite(trained.alone_epsilon),
        started=outcome.state.started,
        slots_released={
            name: float(np.mean(moved))
            for name, moved in outcome.state.released.items()
            if name in ("anchors", "slots")
        },
        artefacts={
            role: {each.name: spoken(each, config) for each in found.artefacts} for role, found in accounts.items()
        },
    )


def _finite(epsilon: float | None) -> float | None:
    return None if epsilon is None or math.isinf(epsilon) else epsilon


def _provenance(config: FederationConfig, outcome: Outcome) -> Provenance:
    prints = [f"{site}:{sorted(hello['fingerprint'].items())}" for site, hello in sorted(outcome.state.members.items())]
    return Provenance(
        configuration=config_digest(config),
        code=code_digest(),
        architecture=outcome.state.architecture,
        checkpoint=checkpoint_digest(outcome),
        fingerprint=hashlib.sha256("\n".join(prints).encode()).hexdigest(),
        data=None,
        seeds={"run": config.seed},
        software={name: importlib.metadata.version(name) for name in ("momkd-fl", "torch", "flwr", "numpy")},
    )


def _round(record: RoundRecord) -> Round:
    sites: dict[State, list[str]] = {}
    for site, state in record.states.items():
        name: State = "refused" if state.startswith("refused") else "trained" if state == "trained" else "missing"
        sites.setdefault(name, []).append(site)
    return Round(
        round=record.round,
        seconds=record.seconds,
        bytes=record.bytes_sent + record.bytes_received,
        sites=sites,
        validation_auroc=record.auroc,
        validation_loss=record.loss,
        memory=MemoryHealth(
            record.slot_movement_rad,
            record.effective_slots,
            record.moved_share,
            record.effective_patches,
            record.slot_cosine,
        ),
        seconds_by_phase=record.seconds_by_phase,
    )


def _lost(outcome: Outcome) -> list[Failure]:
    return [
        Failure(state.removeprefix("refused:"), site=site, round=record.round)
        for record in outcome.state.history
        for site, state in record.states.items()
        if state.startswith("refused:")
    ]


def _operating(task: str, federated: Models | None, threshold: float | None, seed: int) -> list[Operating]:
    if threshold is None or not isinstance(federated, Scores):
        return []
    names = federated.site_names
    return [
        operating(federated, task=task, method="federated", threshold=threshold, site=site, seed=seed)
        for site in ([None, *names] if len(names) > 1 else [None])
    ]


def _local_models(task: str, found: Mapping[Method, Models], sites: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    models = found.get("local_median")
    if models is None or isinstance(models, Scores):
        return {}
    pairs = zip(sites, models, strict=False)
    return {task: {site: auroc_interval(model.labels, model.probabilities) for site, model in pairs}}


def _matrix(
    task: str, found: Mapping[Method, Models], sites: Sequence[str], seed: int
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Every site's own model, and the federated one, at every held-out site; nothing without local models."""
    models, federated = found.get("local_median"), found.get("federated")
    if models is None or isinstance(models, Scores):
        return {}
    by_site = dict(zip(sites, models, strict=False))
    if isinstance(federated, Scores):
        by_site["federated"] = federated
    return {task: matrix(by_site, seed=seed)}


def _binned_curves(task: str, outcome: Outcome) -> list[Curve]:
    total: ScoreHistogram | None = None
    for members in _histograms(outcome).values():
        one = ScoreHistogram.from_arrays(members)
        total = one if total is None else total + one
    curve = None if total is None else binned_roc_curve(total, task=task, method="federated")
    return [] if curve is None else [curve]
