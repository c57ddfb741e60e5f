"""Splits by patient: seeded and stratified, or from the site's own file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, cast

from momkd_fl.data.tables import column_index, patient_column, read_table
from momkd_fl.errors import UserError

Split = Literal["train", "validation", "test"]


def stratified_split(
    labels: Mapping[str, int], genomic: Collection[str], fraction: float, seed: int
) -> dict[str, Split]:
    """Split patients into train and validation.

    A class of n patients gives round(fraction · n) of them, at least one and never all, to
    validation; a class of one patient stays in train. Within a class, patients with expression and
    patients without give theirs in proportion. Who is taken depends on the seed and the ids alone,
    not on the order of rows.

    Parameters
    ----------
    labels : mapping
        Class of each patient.
    genomic : collection of str
        Patients with expression.
    """
    split: dict[str, Split] = dict.fromkeys(sorted(labels), "train")
    for label in sorted(set(labels.values())):
        members = sorted((patient for patient in labels if labels[patient] == label), key=lambda p: _draw(p, seed))
        wanted = 0 if len(members) < 2 else min(max(round(fraction * len(members)), 1), len(members) - 1)
        with_expression = [patient for patient in members if patient in genomic]
        without = [patient for patient in members if patient not in genomic]
        share = round(wanted * len(with_expression) / len(members))
        for patient in with_expression[:share] + without[: wanted - share]:
            split[patient] = "validation"
    return split


def _draw(patient: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\n{patient}".encode()).hexdigest()


def read_splits(path: Path, patients: Collection[str]) -> dict[str, Split]:
    """Read a table with columns ``patient,split``; other patients than those asked for are ignored.

    Raises
    ------
    UserError
        ``split-conflict`` naming the rows; ``split-value``; ``split-missing`` where a patient has no row.
    """
    table = read_table(path)
    place = column_index(path, table.columns, "split", "data.splits")
    first: dict[str, tuple[str, int]] = {}
    for patient, (number, cells) in zip(patient_column(table, "patient", "data.splits"), table.rows, strict=True):
        value = cells[place]
        if value not in ("train", "validation"):
            raise UserError(
                "split-value", f"{path}, row {number}: split is '{value}'; it must be 'train' or 'validation'."
            )
        known, row = first.setdefault(patient, (value, number))
        if known != value:
            raise UserError(
                "split-conflict",
                f"{path}, rows {row} and {number}: patient '{patient}' is in two splits, '{known}' and '{value}'. "
                "Remove one row: a patient in both would be tested on what it was trained on.",
            )
    absent = sorted(set(patients) - set(first))
    if absent:
        raise UserError(
            "split-missing",
            f"{path}: {len(absent)} labelled patient(s) have no row, first '{absent[0]}'. Add them, or remove "
            "data.splits for a seeded split.",
        )
    return {patient: cast(Split, first[patient][0]) for patient in sorted(patients)}
