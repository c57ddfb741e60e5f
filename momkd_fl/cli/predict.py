"""``momkd predict`` and ``momkd evaluate``: a finished run's model on a hospital's own slides, histology alone."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momkd_fl.cli.frame import OK
from momkd_fl.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from momkd_fl.evaluation.results import Estimate, Metric
    from momkd_fl.federation.kept_model import KeptModel
    from momkd_fl.federation.work import Work

    Floats = NDArray[np.float64]


_QUIET_S = 2.0


def predict_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``momkd predict``."""
    _shared_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="CSV", help="the table of predictions to write")
    parser.epilog = (
        "One row a patient of the label table who has slides, whether labelled or not. The table holds patients' ids: "
        "it is written with mode 0600 and sent nowhere."
    )


def evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``momkd evaluate``."""
    _shared_options(parser)
    parser.add_argument("--out", type=Path, default=None, metavar="JSON", help="also write the figures to this file")
    parser.epilog = (
        "Over the patients who were not trained on: all of a site that only evaluates, the validation patients of one "
        "that trained. Threshold and calibration are the model's own, frozen when it was made."
    )


def run_predict(args: argparse.Namespace) -> int:
    """Score every patient and write the table.

    Raises
    ------
    UserError
        ``predictions-unwritable``, and as :func:`momkd_fl.federation.kept_model.load_model` and ``work_with``.
    """
    kept, work, scored = _scored(args, labels_needed=False)
    _write(args.out, _table(kept, work, scored).encode())
    labelled = sum(patient.label is not None for patient in work.cohort.patients)
    print(f"{len(scored)} patients, {labelled} of them with a label, scored for {work.config.task}: {args.out}")
    if kept.threshold is None:
        print("The model has no frozen threshold, so that nobody is called positive or negative.")
    return OK


def run_evaluate(args: argparse.Namespace) -> int:
    """Print how the model does on patients it was not trained on, and write it where asked.

    Raises
    ------
    UserError
        ``evaluate-nobody``, and as :func:`run_predict`.
    """
    from momkd_fl.evaluation.report_text import spoken

    kept, work, scored = _scored(args, labels_needed=True)
    split = "test" if work.cohort.role == "evaluate" else "validation"
    found = _figures(kept, work, scored, split)
    trained = "none of them trained on" if split == "test" else "kept from training, but the model was chosen on them"
    print(f"{work.config.task} at {work.cohort.site}: {found['patients']} labelled patients, {trained}.")
    for name, estimate in found["estimates"].items():
        why = f": {estimate.reason}" if estimate.reason else ""
        print(f"  {name.replace('_', ' '):22} {spoken(estimate)}{why}")
    if args.out is not None:
        said = {**found, "estimates": {name: vars(one) for name, one in found["estimates"].items()}}
        _write(args.out, json.dumps(said, indent=1).encode())
        print(f"Figures: {args.out}")
    return OK


def _shared_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", type=Path, required=True, metavar="CONFIG", help="the site's configuration file")
    parser.add_argument(
        "--model",
        type=Path,
        default=None,
        metavar="FILE",
        help="a run's model.safetensors; default: the one this site keeps",
    )


def _scored(args: argparse.Namespace, *, labels_needed: bool) -> tuple[KeptModel, Work, Floats]:
    from momkd_fl.config.base import load
    from momkd_fl.config.site import SiteConfig
    from momkd_fl.federation.kept_model import load_model, score_all, work_with
    from momkd_fl.federation.site_data import device_of
    from momkd_fl.federation.vault import open_vault

    site = load(args.site, SiteConfig)
    kept = load_model(site, args.model, open_vault(site.seal))
    print(f"Model of run {kept.plan.run}, task {kept.plan.config.task}: {kept.path}")
    work = work_with(kept, site, device_of(site), labels_needed=labels_needed)
    print(f"Scoring {len(work.cohort.patients)} patients on {work.device}.", flush=True)
    started = time.monotonic()

    def told(done: int) -> None:
        if time.monotonic() - started > _QUIET_S:
            print(f"{done} of {len(work.cohort.patients)} patients", file=sys.stderr, flush=True)

    return kept, work, score_all(kept, work, told)


def _table(kept: KeptModel, work: Work, scored: Floats) -> str:
    """Calibrated probabilities by class, and for two classes the decision at the frozen threshold."""
    from momkd_fl.evaluation.calibration import calibrate

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = scored.shape[1]
    writer.writerow(["patient", "slides", "split", "label", *(f"p{c}" for c in range(classes)), "score", "called"])
    calibrated = calibrate(scored, kept.calibration)
    for patient, raw, row in zip(work.cohort.patients, scored, calibrated, strict=True):
        label = "" if patient.label is None else patient.label
        split = "" if patient.label is None else patient.split
        called = "" if kept.threshold is None or classes != 2 else int(raw[1] >= kept.threshold)
        shares = [f"{value:.6g}" for value in row]
        writer.writerow([patient.id, len(patient.slides), split, label, *shares, f"{raw[-1]:.8g}", called])
    return text.getvalue()


def _figures(kept: KeptModel, work: Work, scored: Floats, split: str) -> dict[str, Any]:
    from momkd_fl.evaluation.calibration import calibrate, calibrated_threshold
    from momkd_fl.evaluation.comparison import held_out
    from momkd_fl.evaluation.operating import operating
    from momkd_fl.federation.kept_model import labelled_scores

    scores, task = labelled_scores(work, scored, split), kept.plan.config.task
    if not scores.ids:
        raise UserError(
            "evaluate-nobody",
            f"Site '{work.cohort.site}': no patient in the split '{split}' has a label for '{task}', so there is "
            "nothing to evaluate on. 'momkd predict' scores patients without labels.",
        )
    estimates: Mapping[Metric, Estimate] = {"auroc": held_out(scores).pooled}
    if kept.threshold is not None and scores.probabilities.shape[1] == 2:
        made = replace(scores, probabilities=calibrate(scores.probabilities, kept.calibration))
        frozen = calibrated_threshold(kept.threshold, kept.calibration)
        estimates = operating(made, task=task, method="federated", threshold=frozen).metrics
    return {
        "task": task,
        "site": work.cohort.site,
        "run": kept.plan.run,
        "model_sha256": kept.digest,
        "split": split,
        "patients": len(scores.ids),
        "estimates": estimates,
    }


def _write(path: Path, content: bytes) -> None:
    from momkd_fl.training.checkpoint import write_durably

    try:
        write_durably(path, content)
    except OSError as error:
        raise UserError(
            "predictions-unwritable", f"{path}: cannot be written ({error.strerror}). Give another file with --out."
        ) from None
