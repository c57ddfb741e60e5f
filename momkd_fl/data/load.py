"""From a site's configuration to its cohort."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from momkd_fl.config.federation import Encoder
from momkd_fl.config.site import Data, SiteConfig, TaskLabels
from momkd_fl.data.bags import Format, find_bags, read_bag
from momkd_fl.data.cache import BagCache
from momkd_fl.data.cohort import Cohort, Patient, Standardise
from momkd_fl.data.features import SlidesByPatient, check_expected, common_features
from momkd_fl.data.genomics import Expression, read_expression, rows_by_patient
from momkd_fl.data.slides import read_links
from momkd_fl.data.splits import Split, independent_split, read_splits, stratified_split
from momkd_fl.data.standardise import Moments, fit_scaling, slide_moments
from momkd_fl.data.store import Store
from momkd_fl.data.tables import Labels, read_labels
from momkd_fl.data.withdrawal import read_withdrawn, withdrawn_file
from momkd_fl.errors import UserError

T = TypeVar("T")


def load_cohort(
    site: SiteConfig,
    *,
    task: str,
    classes: int,
    encoder: Encoder | None = None,
    neighbours: int = 8,
    standardise: Standardise = "site",
    validation_fraction: float = 0.2,
    seed: int = 0,
    independent_splits: bool = False,
    labels_needed: bool = True,
) -> Cohort:
    """Read everything a site has for one task.

    All headers are read, and with ``standardise='site'`` all features: the scaling is fitted on
    every slide of the cohort's patients, whatever their label or split. Patients of an 'evaluate'
    site are all in the split 'test'.

    Parameters
    ----------
    classes : int
        The federation's number of classes.
    encoder : Encoder, optional
        What the federation expects; None: not compared.
    independent_splits : bool
        Each patient is drawn by itself, without stratification: needed where single patients are to be hidden.
    labels_needed : bool
        Refuse a cohort in which nobody has a label.

    Withdrawn patients (withdrawal.py) are in no part of it; the others are in the splits they were in before.

    Raises
    ------
    UserError
        ``withdrawals-unreadable``, ``task-unknown``, ``task-classes``, ``no-patients``, ``encoder-unknown``,
        ``encoder-mixed``, ``encoder-mismatch``, ``dim-mixed``, ``dim-mismatch``, ``patch-um-mixed``,
        ``patch-um-conflict``, ``patch-um-mismatch``; and what the files themselves give rise to.
    """
    data = site.data
    stores = () if data.store is None else (Store(data.store),)
    labels = read_labels(data.labels, _task(data, task, classes), needed=labels_needed)
    slides, dropped = _slides(site, task, labels, labels_needed)
    withdrawn = read_withdrawn(withdrawn_file(site))
    features = common_features(_others(slides, withdrawn), data)
    if encoder is not None:
        check_expected(site.site, features, encoder)
    expression = None if data.genomics is None else read_expression(data.genomics, labels.patients)
    rows = {} if expression is None else rows_by_patient(expression, slides)
    if expression is not None:
        dropped["expression_without_patient"] = len(expression.patients) - len(rows)
    split = _split(site, slides, labels, rows, validation_fraction, seed, independent_splits)
    if withdrawn:  # only now, so that nobody else changes from training to validation or back
        labels = read_labels(data.labels, data.tasks[task], without=withdrawn, needed=labels_needed)
        slides, rows = _others(slides, withdrawn), _others(rows, withdrawn)
    cohort = Cohort(
        site=site.site,
        role=site.role,
        task=task,
        classes=classes,
        patients=_patients(site, slides, labels, split, expression, rows),
        exclusions=labels.excluded,
        dropped=dropped,
        encoder=features.encoder,
        dim=features.dim,
        patch_um=features.patch_um,
        panel=(),
        genes_available=expression.genes if expression is not None and rows else (),
        gene_scale=expression.scale if expression is not None and rows else None,
        neighbours=neighbours,
        standardise=standardise,
        scaling={},
        cache=BagCache(data.cache_mb * 1024**2),
        format=data.format,
        stores=stores,
    )
    if standardise != "site":
        return cohort
    scaling = fit_scaling(_moments(path, data.format, stores) for paths in slides.values() for path in paths)
    return replace(cohort, scaling={site.site: scaling})


def slides_of(site: SiteConfig, patient: str) -> tuple[Path, ...]:
    """Feature files of one patient of the label table, whatever the patient's label; () where there are none.

    Raises
    ------
    UserError
        ``withdraw-unknown``: no such patient stands in the table.
    """
    labels = read_labels(site.data.labels, next(iter(site.data.tasks.values())))
    if patient not in labels.patients:
        raise UserError(
            "withdraw-unknown",
            f"{site.data.labels.path}: no patient '{patient}' stands in the label table, so nobody was withdrawn. "
            "Give the id as it stands there.",
        )
    bags = find_bags(site.data.features)
    names = read_links(site.data, labels.patients, bags).by_patient.get(patient, ())
    return tuple(bags[slide] for slide in names if slide in bags)


def _others(by_patient: Mapping[str, T], withdrawn: Collection[str]) -> dict[str, T]:
    return {patient: value for patient, value in by_patient.items() if patient not in withdrawn}


def _moments(path: Path, format: Format | None, stores: tuple[Store, ...]) -> Moments:
    for store in stores:
        entry = store.find(path)
        if entry is not None:
            return store.moments(entry)
    return slide_moments(read_bag(path, format).features)


def _task(data: Data, name: str, classes: int) -> TaskLabels:
    if name not in data.tasks:
        near = difflib.get_close_matches(name, data.tasks, n=1, cutoff=0.5)
        known = ", ".join(sorted(data.tasks))
        hint = f"did you mean to call '{near[0]}' so?" if near else f"it has {known}."
        raise UserError(
            "task-unknown", f"data.tasks has no task '{name}', which the federation trains; {hint} Add it to the file."
        )
    task = data.tasks[name]
    if len(task.values_by_class) != classes:
        raise UserError(
            "task-classes",
            f"data.tasks.{name} describes {len(task.values_by_class)} classes, but the federation trains {classes}. "
            "List the values of each class in the federation's order.",
        )
    return task


def _slides(
    site: SiteConfig, task: str, labels: Labels, labels_needed: bool
) -> tuple[dict[str, tuple[Path, ...]], dict[str, int]]:
    """Feature files of every patient of the label table who has one, and what was left out."""
    bags = find_bags(site.data.features)
    links = read_links(site.data, labels.patients, bags)
    linked = {patient: links.by_patient.get(patient, ()) for patient in labels.patients}
    slides = {
        patient: tuple(bags[slide] for slide in names if slide in bags)
        for patient, names in linked.items()
        if any(slide in bags for slide in names)
    }
    if not (slides.keys() & labels.by_patient.keys() if labels_needed else slides):
        who = f"patient with a label for '{task}'" if labels_needed else "patient of the label table"
        raise UserError(
            "no-patients",
            f"Site '{site.site}': no {who} has a feature file (patients and slides were "
            f"linked by {links.rule}). Compare the ids in {site.data.labels.path} with the files' names.",
        )
    named = {slide for names in linked.values() for slide in names}
    dropped = {
        "patients_without_slides": len(linked) - len(slides),
        "slides_without_file": len(named - set(bags)),
        "slides_without_patient": len(set(bags) - named),
    }
    return slides, dropped


def _split(
    site: SiteConfig,
    slides: Collection[str],
    labels: Labels,
    genomic: Collection[str],
    fraction: float,
    seed: int,
    independent: bool,
) -> dict[str, Split]:
    """Split of every labelled patient of the cohort."""
    labelled = {patient: labels.by_patient[patient] for patient in slides if patient in labels.by_patient}
    if site.role == "evaluate":
        return dict.fromkeys(labelled, "test")
    if site.data.splits is not None:
        return read_splits(site.data.splits, labelled)
    if independent:
        return independent_split(labelled, fraction, seed)
    return stratified_split(labelled, genomic, fraction, seed)


def _patients(
    site: SiteConfig,
    slides: SlidesByPatient,
    labels: Labels,
    split: Mapping[str, Split],
    expression: Expression | None,
    rows: Mapping[str, int],
) -> tuple[Patient, ...]:
    unlabelled: Split = "test" if site.role == "evaluate" else "train"
    return tuple(
        Patient(
            id=patient,
            slides=slides[patient],
            label=labels.by_patient.get(patient),
            genes=expression.values[rows[patient]] if expression is not None and patient in rows else None,
            split=split.get(patient, unlabelled),
            site=site.site,
        )
        for patient in sorted(slides)
    )
