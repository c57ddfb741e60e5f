"""From a site's configuration to its cohort."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from momkd_fl.config.federation import Encoder
from momkd_fl.config.site import Data, SiteConfig, TaskLabels
from momkd_fl.data.bags import BagHeader, find_bags, read_bag, read_header
from momkd_fl.data.cache import BagCache
from momkd_fl.data.cohort import Cohort, Patient, Standardise
from momkd_fl.data.encoders import canonical_encoder, check_dimension, resolve_encoder
from momkd_fl.data.genomics import Expression, read_expression, rows_by_patient
from momkd_fl.data.slides import read_links
from momkd_fl.data.splits import Split, read_splits, stratified_split
from momkd_fl.data.standardise import fit_scaling
from momkd_fl.data.tables import Labels, read_labels
from momkd_fl.errors import UserError

PATCH_TOLERANCE = 0.1
"""Relative difference of patch edges that still counts as the same: magnifications are nominal."""

_SHOWN = 5


@dataclass(frozen=True)
class _Features:
    """What all feature files of a site have in common."""

    encoder: str
    dim: int
    patch_um: float | None


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

    Raises
    ------
    UserError
        ``task-unknown``, ``task-classes``, ``no-patients``, ``encoder-unknown``, ``encoder-mixed``,
        ``encoder-mismatch``, ``dim-mixed``, ``dim-mismatch``, ``patch-um-mixed``, ``patch-um-conflict``,
        ``patch-um-mismatch``; and what the files themselves give rise to.
    """
    data = site.data
    labels = read_labels(data.labels, _task(data, task, classes))
    bags = find_bags(data.features)
    links = read_links(data, labels.patients, bags)
    slides, dropped = _slides(labels, links.by_patient, bags)
    if not any(patient in labels.by_patient for patient in slides):
        raise UserError(
            "no-patients",
            f"Site '{site.site}': no patient with a label for '{task}' has a feature file "
            f"(patients were linked by {links.rule}). Compare the ids in {data.labels.path} with the file names.",
        )
    features = _check_features(slides, data)
    if encoder is not None:
        _check_expected(site.site, features, encoder)
    expression = None if data.genomics is None else read_expression(data.genomics)
    rows = {} if expression is None else rows_by_patient(expression, slides)
    if expression is not None:
        dropped["expression_without_patient"] = len(expression.patients) - len(rows)
    split = _split(site, {patient: labels.by_patient[patient] for patient in slides if patient in labels.by_patient})
    if split is None:
        split = stratified_split(
            {patient: labels.by_patient[patient] for patient in slides if patient in labels.by_patient},
            rows,
            validation_fraction,
            seed,
        )
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
        genes_available=() if expression is None else expression.genes,
        gene_scale=None if expression is None else expression.scale,
        neighbours=neighbours,
        standardise=standardise,
        scaling={},
        cache=BagCache(data.cache_mb * 1024**2),
    )
    return cohort
