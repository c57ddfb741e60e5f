"""Expression of a site's patients: one row a patient, one column a gene, on a scale that is declared."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from momkd_fl.config.site import Genomics, Layout, Scale
from momkd_fl.data.expression_folders import detect_folder, read_folder
from momkd_fl.data.expression_layouts import Raw, detect, read_layout
from momkd_fl.data.gene_names import PANELS, canonical_gene, is_ensembl, load_panel, panel_columns
from momkd_fl.data.tables import open_table
from momkd_fl.errors import UserError

__all__ = [
    "PANELS",
    "Expression",
    "canonical_gene",
    "load_panel",
    "on_panel",
    "panel_columns",
    "read_expression",
    "rows_by_patient",
]

# Largest credible value of each scale. TPM sums to 1e6, so log2(TPM + 1) stays under 20; the rest
# leaves room for other pipelines (RSEM counts) and catches values that were never logged.
_LARGEST = {"tpm": 1e6, "log2tpm": 25.0, "zscore": 1000.0, "signedlog": 25.0}

_ENOUGH_TO_JUDGE = 100
"""Fewer values than this may by chance all be positive or all be small."""


@dataclass(frozen=True)
class Expression:
    """Expression of a site's patients.

    Attributes
    ----------
    values : ndarray (patients, genes), float32
        On a log-like scale: TPM has become log2(TPM + 1).
    scale : str
        Scale of ``values``: 'log2tpm', 'zscore' or 'signedlog'.
    layout : str
        How the files were read, e.g. 'wide, genes in rows'.
    notes : tuple of str
        What was recognised, left out and resolved: sentences without ids or values.
    """

    patients: tuple[str, ...]
    genes: tuple[str, ...]
    values: npt.NDArray[np.float32]
    scale: Scale
    layout: str = ""
    notes: tuple[str, ...] = ()


def read_expression(config: Genomics, patients: Collection[str] | None = None) -> Expression:
    """Read and check the site's expression.

    A patient whose cells are all empty is one without expression, a gene whose cells are all empty is one
    that the table lacks; any other empty cell is an error. Of several columns of one gene that with the
    highest mean stays (``duplicates: refuse`` refuses them); a patient may stand there twice with the
    same values only.

    Parameters
    ----------
    patients : collection of str, optional
        The site's patients; they help to recognise the layout where no gene is known.

    Raises
    ------
    UserError
        ``genes-duplicated``, ``expression-patient-duplicated``, ``expression-missing``, ``expression-empty``,
        ``expression-scale``; and as :mod:`momkd_fl.data.expression_layouts` and
        :mod:`momkd_fl.data.expression_folders`.
    """
    raw = _read(config, patients)
    notes = [f"The expression was read as '{raw.layout}'.", *raw.notes]
    rows = _patient_rows(config.path, raw, notes)
    columns = _gene_columns(config, raw, rows, notes)
    if not rows or not columns:
        raise UserError("expression-empty", f"{config.path}: there is no expression in it. Leave it out.")
    names, genes = tuple(raw.patients[row] for row in rows), tuple(columns)
    values = raw.values
    if rows != list(range(len(raw.patients))):
        values = values[rows]
    if list(columns.values()) != list(range(len(raw.genes))):
        values = values[:, list(columns.values())]
    _check_complete(config.path, raw, rows, genes, values)
    _check_scale(config.path, config.scale, values)
    scale = config.scale
    if scale == "tpm":
        values, scale = np.log2(values + np.float32(1)), "log2tpm"
    return Expression(names, genes, values, scale, raw.layout, tuple(notes))


def _read(config: Genomics, patients: Collection[str] | None) -> Raw:
    layout: Layout
    if config.path.is_dir():
        layout = config.layout or detect_folder(config.path)
        if layout in ("npy", "gdc-star"):
            return read_folder(config, layout)
        raise UserError(
            "expression-layout", f"{config.path}: this is a folder, but data.genomics.layout is '{layout}'."
        )
    if config.layout in ("npy", "gdc-star"):
        raise UserError(
            "expression-layout", f"{config.path}: this is no folder, as data.genomics.layout '{config.layout}' needs."
        )
    with open_table(config.path) as (columns, _):
        layout = config.layout or detect(config, columns, patients)
    return read_layout(config, layout)


def _patient_rows(path: Path, raw: Raw, notes: list[str]) -> list[int]:
    """The row of each patient who has expression, in the file's order."""
    rows: dict[str, int] = {}
    same = 0
    for row, patient in enumerate(raw.patients):
        first = rows.setdefault(patient, row)
        if first == row:
            continue
        if not np.array_equal(raw.values[first], raw.values[row], equal_nan=True):
            raise UserError(
                "expression-patient-duplicated",
                f"{path}, {raw.kind}s {raw.places[first]} and {raw.places[row]}: patient '{patient}' stands there "
                f"twice, with other values. Keep one {raw.kind} for each patient.",
            )
        same += 1
    if same:
        notes.append(f"{same} {raw.kind}s repeat a patient with the same values; each patient counts once.")
    found = [row for row in rows.values() if not np.isnan(raw.values[row]).all()]
    if len(found) < len(rows):
        notes.append(f"{len(rows) - len(found)} patients have no value at all and count as without expression.")
    return found


def _gene_columns(config: Genomics, raw: Raw, rows: list[int], notes: list[str]) -> dict[str, int]:
    """The column of each gene, by its compared name, in the file's order."""
    empty = np.ones(len(raw.genes), dtype=bool)
    sums = np.zeros(len(raw.genes))
    for row in rows:  # one row at a time: no second table in memory
        empty &= np.isnan(raw.values[row])
        sums += np.nan_to_num(raw.values[row])
    columns: dict[str, int] = {}
    twice: dict[str, tuple[str, str]] = {}
    for column, name in enumerate(raw.genes):
        gene = canonical_gene(name)
        if rows and empty[column]:
            continue
        if gene in columns:
            twice.setdefault(gene, (raw.genes[columns[gene]], name))
        if gene not in columns or sums[column] > sums[columns[gene]]:
            columns[gene] = column
    if twice and config.duplicates == "refuse":
        named = ", ".join(a if a == b else f"{a} (also as {b})" for a, b in list(twice.values())[:8])
        raise UserError(
            "genes-duplicated",
            f"{config.path}: {len(twice)} gene(s) stand there more than once: {named}. Keep one of each, or set "
            "data.genomics.duplicates to highest_mean.",
        )
    if twice:
        notes.append(f"{len(twice)} genes stand there more than once; of each, that with the highest mean was kept.")
    if rows and empty.any():
        notes.append(f"{int(empty.sum())} genes have no value for any patient and were left out.")
    ensembl = sum(map(is_ensembl, raw.genes))
    if ensembl:
        left = sum(map(is_ensembl, columns))
        notes.append(f"{ensembl} genes have Ensembl ids; the panels' genes became symbols, {left} keep the id.")
    return columns


def _check_complete(
    path: Path, raw: Raw, rows: Sequence[int], genes: Sequence[str], values: npt.NDArray[np.float32]
) -> None:
    for row, line in zip(rows, values, strict=True):
        if np.isnan(line).any():
            gene = genes[int(np.argmax(np.isnan(line)))]
            raise UserError(
                "expression-missing",
                f"{path}, {raw.kind} {raw.places[row]}: gene {gene} has no value. Remove the gene or the patient; "
                "nothing is filled in.",
            )


def _check_scale(path: Path, scale: Scale, values: npt.NDArray[np.float32]) -> None:
    low, high = float(values.min()), float(values.max())
    wrong = None
    if max(high, -low if scale in ("zscore", "signedlog") else high) > _LARGEST[scale]:
        wrong = f"the {'maximum is' if high > -low else 'minimum is'} {high if high > -low else low:,.6g}"
    elif scale in ("tpm", "log2tpm") and low < 0:
        wrong = f"the minimum is {low:,.6g}, and it cannot be negative"
        if scale == "log2tpm" and abs(low - np.log2(0.001)) < 0.01:
            wrong += " (values of log2(TPM + 0.001), as Xena has them, are to be rewritten as log2(TPM + 1))"
    elif values.size >= _ENOUGH_TO_JUDGE and scale == "tpm" and high <= 20:
        wrong = f"the maximum is {high:,.6g}, so the values look logged already"
    elif values.size >= _ENOUGH_TO_JUDGE and scale in ("zscore", "signedlog") and low >= 0:
        wrong = f"the minimum is {low:,.6g}, and values around a mean are negative for some"
    if wrong is not None:
        raise UserError("expression-scale", f"{path}: declared {scale}, but {wrong}. Correct data.genomics.scale.")


def on_panel(expression: Expression, panel: Sequence[str]) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Columns of the panel's genes that the table has, in the panel's order, and the genes it lacks.

    Raises
    ------
    UserError
        ``genes-no-overlap``.
    """
    columns, missing = panel_columns(expression.genes, panel)
    return expression.values[:, columns], missing


def rows_by_patient(expression: Expression, patients: Collection[str]) -> dict[str, int]:
    """Row of each patient who has expression: by the exact id, else by the TCGA barcode.

    A barcode of a tumour sample ('TCGA-A6-2671-01A-...') belongs to its participant
    ('TCGA-A6-2671'); one of a normal sample (types 10 and up) belongs to nobody here.

    Raises
    ------
    UserError
        ``expression-patient-ambiguous``: several samples of one patient, none with the exact id.
    """
    rows = {name: row for row, name in enumerate(expression.patients)}
    samples: dict[str, list[str]] = {}
    for name in rows:
        barcode = re.match(r"(TCGA-\w{2}-\w{4})-0\d", name)
        if barcode:
            samples.setdefault(barcode.group(1), []).append(name)
    found: dict[str, int] = {}
    for patient in sorted(patients):
        if patient in rows:
            found[patient] = rows[patient]
        elif len(samples.get(patient, ())) > 1:
            raise UserError(
                "expression-patient-ambiguous",
                f"Patient '{patient}' has several samples in the expression table "
                f"({', '.join(samples[patient][:3])}). Keep one of them.",
            )
        elif patient in samples:
            found[patient] = rows[samples[patient][0]]
    return found
