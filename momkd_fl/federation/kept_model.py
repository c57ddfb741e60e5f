"""The model that a finished run left, put to use: scores of a site's patients, with no run and no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from momkd_fl.config.site import SiteConfig
from momkd_fl.errors import UserError
from momkd_fl.evaluation.comparison import Scores
from momkd_fl.evaluation.results import Calibration
from momkd_fl.federation.plan import MODEL_FILE, MODEL_KIND, SitePlan, model_digest
from momkd_fl.federation.site_data import cohort_for_run
from momkd_fl.federation.state import Arrays
from momkd_fl.federation.student import set_weights
from momkd_fl.federation.vault import CLEAR, Vault
from momkd_fl.federation.work import Work
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import architecture_hash

PATIENTS_AT_ONCE = 50


@dataclass(frozen=True)
class KeptModel:
    """A run's selected model with all that gives it meaning.

    Attributes
    ----------
    path : where it was read from
    threshold : of the second class's score before calibration; None where none was frozen
    """

    path: Path
    plan: SitePlan
    weights: Arrays
    memory: Arrays
    threshold: float | None
    calibration: Calibration

    @property
    def digest(self) -> str:
        """SHA-256 of weights and memory, as the run's report names it."""
        return model_digest(self.weights, self.memory)


def load_model(site: SiteConfig, path: Path | None, vault: Vault = CLEAR) -> KeptModel:
    """The model in ``path``; None: the one in the site's own state folder.

    Raises
    ------
    UserError
        ``model-missing``, ``model-other``, ``model-version``, ``checkpoint-corrupt``, and as :class:`Vault`.
    """
    where = site.state_dir / MODEL_FILE if path is None else path
    try:
        tensors, meta = (vault if path is None else CLEAR).read_tensors(where, MODEL_KIND)
    except UserError as mistake:
        if mistake.code != "checkpoint-missing":
            raise
        raise UserError(
            "model-missing",
            f"{where}: there is no model. A site keeps one when a run has ended; or name a file with --model, such as "
            "the coordinator's.",
        ) from None
    if not {"federation", "panel", "architecture", "threshold"} <= meta.keys():
        raise UserError(
            "model-other", f"{where}: is no model of a finished run, but another file of momkd-fl. Name {MODEL_FILE}."
        )
    groups: dict[str, Arrays] = {"weights": {}, "memory": {}, "space": {}}
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = value
    plan = SitePlan(meta["run"], meta["federation"], tuple(meta["panel"]), meta["architecture"], groups["space"])
    calibration = Calibration.from_list(meta["calibration"]) if meta["calibration"] else Calibration()
    try:
        _ = plan.config
    except UserError as mistake:
        raise UserError(
            "model-version",
            f"{where}: was made by another version of momkd-fl, whose settings are others: {mistake.sentence} Install "
            "that version, or train again.",
        ) from None
    return KeptModel(where, plan, groups["weights"], groups["memory"], meta["threshold"], calibration)


def work_with(kept: KeptModel, site: SiteConfig, device: torch.device, *, labels_needed: bool) -> Work:
    """The student with the model's weights over the site's cohort, read as the run read it, without any genomics.

    Raises
    ------
    UserError
        ``model-version`` where this software gives the weights another meaning, and what the site's files give rise to.
    """
    cohort = cohort_for_run(site, kept.plan.config, labels_needed=labels_needed)
    blind = tuple(replace(patient, genes=None) for patient in cohort.patients)
    work = Work.of_plan(kept.plan, replace(cohort, patients=blind, genes_available=()), device)
    if architecture_hash(work.shape) != kept.plan.architecture:
        raise UserError(
            "model-version",
            f"{kept.path}: was trained by a version of momkd-fl whose student is another one. Install that version.",
        )
    set_weights(work.model, work.layout, kept.weights)
    return work


def score_all(kept: KeptModel, work: Work, told: Callable[[int], None]) -> NDArray[np.float64]:
    """Probabilities (n, C) of every patient with a slide, labelled or not, before calibration.

    Parameters
    ----------
    told : hears how many patients are done, now and then
    """
    memory, patients = Memory.from_arrays(kept.memory, work.space), work.cohort.patients
    found = []
    for start in range(0, len(patients), PATIENTS_AT_ONCE):
        found.append(work.score_patients(memory, patients[start : start + PATIENTS_AT_ONCE]).probabilities)
        told(min(start + PATIENTS_AT_ONCE, len(patients)))
    return np.concatenate(found)


def labelled_scores(work: Work, probabilities: NDArray[np.float64], split: str) -> Scores:
    """The scores (of all patients) of a split's patients that have a label."""
    rows = [row for row, one in enumerate(work.cohort.patients) if one.label is not None and one.split == split]
    labelled = [work.cohort.patients[row] for row in rows]
    return Scores(
        tuple(patient.id for patient in labelled),
        np.array([patient.label for patient in labelled], np.int64),
        probabilities[rows],
        (work.cohort.site,) * len(rows),
    )
