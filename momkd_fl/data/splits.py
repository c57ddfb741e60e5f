"""Splits by patient: seeded and stratified, or from the site's own file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, cast

from momkd_fl.data.listing import listed, rows_named
from momkd_fl.data.tables import column_index, patient_column, read_table
from momkd_fl.errors import UserError

Split = Literal["train", "validation", "test"]

_FROM_FILE = ("train", "validation")


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


def independent_split(patients: Collection[str], fraction: float, seed: int) -> dict[str, Split]:
    """Split patients each by a draw of its own: none is moved because another one is there.

    Stratified splits are not so: one patient more can push others over, and a sum over the training patients then
    moves by more than one patient's share.
    """
    bound = int(fraction * 2**256)
    return {patient: "validation" if int(_draw(patient, seed), 16) < bound else "train" for patient in sorted(patients)}


def _draw(patient: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\n{patient}".encode()).hexdigest()


def read_splits(path: Path, patients: Collection[str]) -> dict[str, Split]:
    """Read a table with columns ``patient,split`` (csv, tsv or xlsx); other patients than those asked for are ignored.

    Raises
    ------
    UserError
        ``split-conflict`` and ``split-value`` naming the rows; ``split-missing`` where patients have no row.
    """
    table = read_table(path)
    place = column_index(path, table.columns, "split", "data.splits")
    wrong = [f"row {number}: '{cells[place]}'" for number, cells in table.rows if cells[place] not in _FROM_FILE]
    if wrong:
        raise UserError(
            "split-value", f"{path}: split must be 'train' or 'validation', but is otherwise in {listed(wrong)}."
        )
    rows_of: dict[str, dict[str, int]] = {}  # patient, split, first row
    for patient, (number, cells) in zip(patient_column(table, None, "data.splits"), table.rows, strict=True):
        rows_of.setdefault(patient, {}).setdefault(cells[place], number)
    conflicts = [
        f"{rows_named(sorted(found.values()))}: patient '{patient}'"
        for patient, found in rows_of.items()
        if len(found) > 1
    ]
    if conflicts:
        raise UserError(
            "split-conflict",
            f"{path}: {len(conflicts)} patient(s) are in both splits: {listed(conflicts)}. "
            "Remove one row of each: a patient in both would be tested on what it was trained on.",
        )
    absent = sorted(set(patients) - set(rows_of))
    if absent:
        named = listed([f"'{name}'" for name in absent], separator=", ")
        raise UserError(
            "split-missing",
            f"{path}: {len(absent)} labelled patient(s) have no row: {named}. "
            "Add them, or remove data.splits for a seeded split.",
        )
    return {patient: cast(Split, next(iter(rows_of[patient]))) for patient in sorted(patients)}
