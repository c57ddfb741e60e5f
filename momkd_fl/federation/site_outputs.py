"""What a site writes for itself, and the little of its cohort that a report may show."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from momkd_fl.data.cohort import Cohort
from momkd_fl.evaluation.results import Cohort as CohortRow
from momkd_fl.evaluation.results import TaskCohort
from momkd_fl.federation.vault import CLEAR, Vault
from momkd_fl.security.seal import Sealed
from momkd_fl.training.loop import Prediction

PREDICTIONS_KIND = "predictions"
SPLITS = ("test", "validation")


def write_predictions(path: Path, scored: Prediction, run: str = "", round: int = 0, vault: Vault = CLEAR) -> None:
    """One row a patient: id, label, probability of each class. The file stays at the site."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["patient", "label", *(f"p{label}" for label in range(scored.probabilities.shape[1]))])
    for patient, label, row in zip(scored.ids, scored.labels, scored.probabilities, strict=True):
        writer.writerow([patient, int(label), *(f"{value:.8g}" for value in row)])
    vault.write(path, text.getvalue().encode(), Sealed(PREDICTIONS_KIND, run, round))


def forget_predictions(folder: Path, patient: str, vault: Vault = CLEAR) -> int:
    """Take a patient's row out of every table of predictions in the site's state folder; how many rows there were."""
    gone = 0
    for path in sorted(folder / f"predictions_{split}.csv" for split in SPLITS):
        content = vault.read(path, PREDICTIONS_KIND)
        if content is None:
            continue
        header, *rows = list(csv.reader(content.decode().splitlines()))
        kept = [row for row in rows if row[0] != patient]
        if len(kept) < len(rows):
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([header, *kept])
            vault.write(path, text.getvalue().encode(), vault.sealed_as(path, PREDICTIONS_KIND))
        gone += len(rows) - len(kept)
    return gone


def unmeasured_row(cohort: Cohort) -> CohortRow:
    """The row of a cohort none of whose counts may leave its site."""
    return CohortRow(cohort.site, cohort.role, patients=None, slides=None, with_genomics=None, tasks={})


def cohort_row(cohort: Cohort) -> CohortRow:
    """The cohort's row in the report, with exact counts: the gate withholds the small ones before it leaves."""
    labelled = [patient for patient in cohort.patients if patient.label is not None]
    positive = float(np.mean([patient.label == 1 for patient in labelled])) if labelled else None
    return CohortRow(
        site=cohort.site,
        role=cohort.role,
        patients=len(cohort.patients),
        slides=sum(len(patient.slides) for patient in cohort.patients),
        with_genomics=sum(patient.genes is not None for patient in cohort.patients),
        tasks={cohort.task: TaskCohort(len(labelled), positive, dict(cohort.exclusions))},
    )
