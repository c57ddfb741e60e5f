"""Expression tables as hospitals have them: recognised by what stands on each axis, then read as they are.

Layouts follow the files that are about: cBioPortal (``Hugo_Symbol, Entrez_Gene_Id``, samples in columns), UCSC Xena
(genes in rows), SurvPath ``rna_clean.csv`` (an unnamed first column of patients), PORPOISE and MCAT (``GENE_rnaseq``
beside ``GENE_cnv``, ``GENE_mut`` and clinical columns, one row a slide), and long tables.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from momkd_fl.config.site import Genomics, Layout
from momkd_fl.data.gene_names import count_known
from momkd_fl.data.tables import column_index, open_table
from momkd_fl.errors import UserError

PATIENT_COLUMNS = (
    "patient", "patient_id", "patientid", "case_id", "case", "caseid", "id", "pid", "submitter_id", "participant",
    "subject", "subject_id", "sample_id", "bcr_patient_barcode",
)  # fmt: skip
GENE_COLUMNS = ("hugo_symbol", "gene_name", "gene_symbol", "symbol", "gene", "genes", "gene_id", "ensembl_id")
VALUE_COLUMNS = ("value", "expression", "tpm", "tpm_unstranded", "log2tpm", "zscore", "z_score")

_ANNOTATIONS = {*GENE_COLUMNS, "entrez_gene_id", "entrez", "gene_type", "biotype", "description", "cytoband", "length"}
_MISSING = {"", "na", "n/a", "nan", "null", "none"}
_CERTAIN = 3
"""Known genes in the header from which on the rows need not be looked at."""

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Raw:
    """Expression as the files have it.

    Attributes
    ----------
    layout : str
    patients, genes : list of str
        Names as they stand; both may repeat.
    values : ndarray (patients, genes), float32
        On the file's scale; NaN where a cell is empty.
    kind, places : str, list of str
        Where each patient stands: the 'row', 'column' or 'file', and its number or name.
    notes : tuple of str
        Sentences without ids or values.
    """

    layout: str
    patients: list[str]
    genes: list[str]
    values: Values
    kind: str
    places: list[str]
    notes: tuple[str, ...] = ()


def detect(config: Genomics, columns: Sequence[str], patients: Collection[str] | None) -> Layout:
    """The layout of a table: by its column names, else by which axis has the known genes, else the known patients.

    Raises
    ------
    UserError
        ``expression-layout-unknown`` where nothing tells.
    """
    names = [column.lower() for column in columns]
    if any(name.endswith("_rnaseq") for name in names):
        return "porpoise"
    parts = ((config.patient, PATIENT_COLUMNS), (config.gene, GENE_COLUMNS), (config.value, VALUE_COLUMNS))
    if all(named is not None or _first(names, known) is not None for named, known in parts):
        return "long"
    if config.gene or config.patient:
        return "genes-in-rows" if config.gene else "patients-in-rows"
    place = _gene_place(config, columns)
    header = [*columns[:place], *columns[place + 1 :]]
    genes_across = count_known(header)
    if genes_across >= _CERTAIN:
        return "patients-in-rows"
    with open_table(config.path) as (_, lines):
        rows = [cells[place] for _, cells in lines]
    genes_down = count_known(rows)
    if genes_across != genes_down:
        return "patients-in-rows" if genes_across > genes_down else "genes-in-rows"
    if patients:
        down, across = _count_patients(rows, patients), _count_patients(header, patients)
        if down != across:
            return "patients-in-rows" if down > across else "genes-in-rows"
    if names[0] in PATIENT_COLUMNS or names[0] in _ANNOTATIONS:
        return "patients-in-rows" if names[0] in PATIENT_COLUMNS else "genes-in-rows"
    raise UserError(
        "expression-layout-unknown",
        f"{config.path}: neither the column names nor the first column has gene symbols or Ensembl ids that are known, "
        "so which axis has the genes cannot be told. Set data.genomics.layout to patients-in-rows or genes-in-rows.",
    )


def read_layout(config: Genomics, layout: Layout) -> Raw:
    """Read a table of the given layout.

    Raises
    ------
    UserError
        ``patient-id-empty``, ``gene-unnamed``, ``expression-not-numeric``, ``expression-value-twice``,
        ``expression-column-unknown``; and as :func:`momkd_fl.data.tables.open_table`.
    """
    if layout == "long":
        return _long(config)
    if layout == "genes-in-rows":
        return _genes_in_rows(config)
    return _patients_in_rows(config, porpoise=layout == "porpoise")


def _patients_in_rows(config: Genomics, *, porpoise: bool) -> Raw:
    path, values = config.path, bytearray()
    patients, places = [], []
    with open_table(path) as (columns, lines):
        place = _patient_place(config, columns)
        kept = [number for number in range(len(columns)) if number != place]
        notes: tuple[str, ...] = ()
        if porpoise:
            kept = [number for number in kept if columns[number].lower().endswith("_rnaseq")]
            notes = (_dropped_of_porpoise(columns, kept),)
        elif place and not columns[0]:
            kept.remove(0)  # the row numbers that pandas writes
        genes = [columns[number] for number in kept]
        if porpoise:
            genes = [gene[: -len("_rnaseq")] for gene in genes]
        if not all(genes):
            blank = kept[genes.index("")] + 1
            raise UserError("gene-unnamed", f"{path}: column {blank} has no gene symbol. Name or remove it.")
        for row, cells in lines:
            if not cells[place]:
                raise UserError("patient-id-empty", f"{path}, row {row}: the patient id is empty. Fill it in.")
            patients.append(cells[place])
            places.append(str(row))
            values += _numbers(path, row, genes, [cells[number] for number in kept]).tobytes()
    table = np.frombuffer(values, dtype=np.float32).reshape(len(patients), len(genes))
    return Raw("porpoise" if porpoise else "wide, patients in rows", patients, genes, table, "row", places, notes)


def _genes_in_rows(config: Genomics) -> Raw:
    path, values, genes, unnamed = config.path, bytearray(), [], 0
    with open_table(path) as (columns, lines):
        place = _gene_place(config, columns)
        kept = [n for n, name in enumerate(columns) if n != place and name.lower() not in _ANNOTATIONS]
        patients = [columns[number] for number in kept]
        if not all(patients):
            blank = kept[patients.index("")] + 1
            raise UserError("patient-id-empty", f"{path}: column {blank} has no patient id. Name or remove it.")
        for row, cells in lines:
            if not cells[place]:
                unnamed += 1
                continue
            genes.append(cells[place])
            values += _numbers(path, row, [genes[-1]] * len(kept), [cells[n] for n in kept]).tobytes()
    table = np.frombuffer(values, dtype=np.float32).reshape(len(genes), len(kept))
    notes = []
    if len(columns) - 1 > len(kept):
        notes.append(f"{len(columns) - 1 - len(kept)} columns that describe genes were left out.")
    if unnamed:
        notes.append(f"{unnamed} rows without a gene name were left out.")
    places = [str(number + 1) for number in kept]
    values_by_patient = np.ascontiguousarray(table.T)
    return Raw("wide, genes in rows", patients, genes, values_by_patient, "column", places, tuple(notes))


def _long(config: Genomics) -> Raw:
    path = config.path
    patients: dict[str, int] = {}
    genes: dict[str, int] = {}
    places, who, which, what, where = [], array("l"), array("l"), array("d"), array("l")
    with open_table(path) as (columns, lines):
        at = [
            _column(path, columns, name, known, setting)
            for name, known, setting in (
                (config.patient, PATIENT_COLUMNS, "patient"),
                (config.gene, GENE_COLUMNS, "gene"),
                (config.value, VALUE_COLUMNS, "value"),
            )
        ]
        for row, cells in lines:
            patient, gene, cell = (cells[number] for number in at)
            if not patient:
                raise UserError("patient-id-empty", f"{path}, row {row}: the patient id is empty. Fill it in.")
            if not gene:
                raise UserError("gene-unnamed", f"{path}, row {row}: there is no gene name. Fill it in.")
            if patient not in patients:
                places.append(str(row))
            who.append(patients.setdefault(patient, len(patients)))
            which.append(genes.setdefault(gene, len(genes)))
            what.append(_number(path, row, gene, cell))
            where.append(row)
    table = _table_of_long(path, (len(patients), len(genes)), who, which, what, where)
    return Raw("long", list(patients), list(genes), table, "row", places)


def _table_of_long(
    path: Path, shape: tuple[int, int], who: array[int], which: array[int], what: array[float], where: array[int]
) -> Values:
    table = np.full(shape, np.nan, dtype=np.float32)
    rows, columns = np.array(who, dtype=np.int64), np.array(which, dtype=np.int64)
    found = np.array(what, dtype=np.float32)
    table[rows, columns] = found
    other = np.flatnonzero(~((table[rows, columns] == found) | np.isnan(found)))
    if other.size:
        raise UserError(
            "expression-value-twice",
            f"{path}, row {where[int(other[0])]}: this patient has another value of the same gene in a later row. "
            "Keep one row for each patient and gene.",
        )
    return table


def _dropped_of_porpoise(columns: Sequence[str], kept: Sequence[int]) -> str:
    lower = [column.lower() for column in columns]
    cnv, mut = (sum(name.endswith(ending) for name in lower) for ending in ("_cnv", "_mut"))
    rest = len(columns) - len(kept) - cnv - mut
    return (
        f"{len(kept)} expression columns were kept; {cnv} of copy numbers, {mut} of mutations and {rest} of ids and "
        "clinical facts were left out."
    )


def _column(path: Path, columns: Sequence[str], name: str | None, known: Sequence[str], setting: str) -> int:
    if name is not None:
        return column_index(path, columns, name, f"data.genomics.{setting}")
    place = _first([column.lower() for column in columns], known)
    if place is None:
        raise UserError(
            "expression-column-unknown",
            f"{path}: no column looks like that of the {setting}; it has {', '.join(columns[:12])}. "
            f"Set data.genomics.{setting}.",
        )
    return place


def _first(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((names.index(word) for word in known if word in names), None)


def _gene_place(config: Genomics, columns: Sequence[str]) -> int:
    if config.gene is not None:
        return column_index(config.path, columns, config.gene, "data.genomics.gene")
    return _first([column.lower() for column in columns], GENE_COLUMNS) or 0


def _patient_place(config: Genomics, columns: Sequence[str]) -> int:
    """The patients' column: as configured, else the first, or where that has no name a known one if there is one."""
    if config.patient is not None:
        return column_index(config.path, columns, config.patient, "genomics.patient")
    return 0 if columns[0] else _first([column.lower() for column in columns], PATIENT_COLUMNS) or 0


def _count_patients(names: Sequence[str], patients: Collection[str]) -> int:
    known = set(patients)
    return sum(name in known or name[:12] in known for name in names)


def _numbers(path: Path, row: int, genes: Sequence[str], cells: list[str]) -> Values:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
        try:
            values = np.array(cells, dtype=np.float32)
        except ValueError:
            return np.array([_number(path, row, *pair) for pair in zip(genes, cells, strict=True)], dtype=np.float32)
    for place in np.flatnonzero(~np.isfinite(values)).tolist():
        _number(path, row, genes[place], cells[place])
    return values


def _number(path: Path, row: int, gene: str, cell: str) -> float:
    """The value of a cell, NaN where it is empty."""
    if cell.lower() in _MISSING:
        return float("nan")
    try:
        value = float(cell)
    except ValueError:
        _refuse(path, row, gene, cell)
    if not abs(value) < float(np.finfo(np.float32).max):
        _refuse(path, row, gene, cell)
    return value


def _refuse(path: Path, row: int, gene: str, cell: str) -> NoReturn:
    raise UserError(
        "expression-not-numeric",
        f"{path}, row {row}: gene {gene} has '{cell[:40]}', which is not a number (decimals take a point). "
        "Correct the cell, or remove the column if it is no gene.",
    )
