"""Expression tables: one row a patient, one column a gene, on a scale that is declared."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from momkd_fl.config.site import Genomics, Scale
from momkd_fl.data.tables import column_index, open_table
from momkd_fl.errors import UserError

PANELS = ("odx21", "pam50")
"""Panels that come with the package (``data/panels/*.txt``)."""

_ALIASES = {"CTSL2": "CTSV", "ORC6L": "ORC6", "KNTC2": "NDC80", "CDCA1": "NUF2"}

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
    """

    patients: tuple[str, ...]
    genes: tuple[str, ...]
    values: npt.NDArray[np.float32]
    scale: Scale


def canonical_gene(name: str) -> str:
    """A gene symbol as it is compared: upper case, and today's symbol for a former one."""
    symbol = name.strip().upper()
    return _ALIASES.get(symbol, symbol)


def read_expression(config: Genomics) -> Expression:
    """Read and check the site's expression table.

    A row whose cells are all empty is a patient without expression; any other empty cell is an error.

    Raises
    ------
    UserError
        ``genes-duplicated``, ``expression-patient-duplicated``, ``expression-not-numeric``,
        ``expression-missing``, ``expression-empty``, ``expression-scale``; and as
        :func:`momkd_fl.data.tables.open_table`.
    """
    rows: dict[str, npt.NDArray[np.float32]] = {}
    numbers: dict[str, int] = {}
    with open_table(config.path) as (columns, lines):
        place = 0 if config.patient is None else column_index(config.path, columns, config.patient, "genomics.patient")
        genes = _gene_columns(config.path, columns, place)
        for number, cells in lines:
            patient = cells.pop(place)
            if not patient:
                raise UserError(
                    "patient-id-empty", f"{config.path}, row {number}: the patient id is empty. Fill it in."
                )
            if patient in numbers:
                raise UserError(
                    "expression-patient-duplicated",
                    f"{config.path}, rows {numbers[patient]} and {number}: patient '{patient}' stands there twice. "
                    "Keep one row for each patient.",
                )
            numbers[patient] = number
            if any(cells):
                rows[patient] = _numbers(config.path, number, genes, cells)
    if not rows or not genes:
        raise UserError("expression-empty", f"{config.path}: there is no expression in this table. Leave it out.")
    values = np.stack(list(rows.values()))
    _check_scale(config.path, config.scale, values)
    if config.scale == "tpm":
        return Expression(tuple(rows), genes, np.log2(values + np.float32(1)), "log2tpm")
    return Expression(tuple(rows), genes, values, config.scale)


def _gene_columns(path: Path, columns: Sequence[str], place: int) -> tuple[str, ...]:
    first: dict[str, str] = {}
    twice: dict[str, tuple[str, str]] = {}
    for number, column in enumerate(columns):
        if number == place:
            continue
        gene = canonical_gene(column)
        if not gene:
            raise UserError("gene-unnamed", f"{path}: column {number + 1} has no gene symbol. Name or remove it.")
        if gene in first:
            twice[gene] = (first[gene], column)
        first.setdefault(gene, column)
    if twice:
        named = ", ".join(a if a == b else f"{a} (also as {b})" for a, b in list(twice.values())[:8])
        raise UserError(
            "genes-duplicated",
            f"{path}: {len(twice)} gene(s) have more than one column: {named}. Keep one column for each gene.",
        )
    return tuple(first)


def _numbers(path: Path, row: int, genes: Sequence[str], cells: list[str]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
        try:
            values = np.array(cells, dtype=np.float32)
        except ValueError:
            values = np.array([_number(cell) for cell in cells], dtype=np.float32)
    if np.isfinite(values).all():
        return values
    place = int(np.argmin(np.isfinite(values)))
    cell, gene = cells[place], genes[place]
    if cell.lower() in ("", "na", "n/a", "nan", "null", "none"):
        raise UserError(
            "expression-missing",
            f"{path}, row {row}: gene {gene} has no value. Remove the gene or the patient; nothing is filled in.",
        )
    raise UserError(
        "expression-not-numeric",
        f"{path}, row {row}: gene {gene} has '{cell[:40]}', which is not a number (decimals take a point). "
        "Correct the cell, or remove the column if it is no gene.",
    )


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _check_scale(path: Path, scale: Scale, values: npt.NDArray[np.float32]) -> None:
    low, high = float(values.min()), float(values.max())
    wrong = None
    if max(high, -low if scale in ("zscore", "signedlog") else high) > _LARGEST[scale]:
        wrong = f"the {'maximum is' if high > -low else 'minimum is'} {high if high > -low else low:,.6g}"
    elif scale in ("tpm", "log2tpm") and low < 0:
        wrong = f"the minimum is {low:,.6g}, and it cannot be negative"
    elif values.size >= _ENOUGH_TO_JUDGE and scale == "tpm" and high <= 20:
        wrong = f"the maximum is {high:,.6g}, so the values look logged already"
    elif values.size >= _ENOUGH_TO_JUDGE and scale in ("zscore", "signedlog") and low >= 0:
        wrong = f"the minimum is {low:,.6g}, and values around a mean are negative for some"
    if wrong is not None:
        raise UserError("expression-scale", f"{path}: declared {scale}, but {wrong}. Correct data.genomics.scale.")


def load_panel(name: str | Path) -> tuple[str, ...]:
    """Genes of a panel: 'odx21', 'pam50', or a text file with one symbol a line ('#' starts a comment).

    Raises
    ------
    UserError
        ``panel-missing``, ``panel-empty`` or ``panel-duplicated``.
    """
    if str(name) in PANELS:
        text = (resources.files("momkd_fl.data") / "panels" / f"{name}.txt").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise UserError(
                "panel-missing", f"{name}: neither a known panel ({', '.join(PANELS)}) nor a readable text file."
            ) from None
    genes = [canonical_gene(line) for line in (row.split("#", 1)[0] for row in text.splitlines()) if line.strip()]
    if not genes:
        raise UserError("panel-empty", f"{name}: the panel names no gene. Write one symbol a line.")
    twice = sorted({gene for gene in genes if genes.count(gene) > 1})
    if twice:
        raise UserError("panel-duplicated", f"{name}: {', '.join(twice[:8])} stand in the panel twice. Keep one each.")
    return tuple(genes)


def on_panel(expression: Expression, panel: Sequence[str]) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Columns of the panel's genes that the table has, in the panel's order, and the genes it lacks.

    Raises
    ------
    UserError
        ``genes-no-overlap``.
    """
    columns, missing = panel_columns(expression.genes, panel)
    return expression.values[:, columns], missing


def panel_columns(genes: Sequence[str], panel: Sequence[str]) -> tuple[list[int], list[str]]:
    """Places in ``genes`` of the panel's genes, in the panel's order, and the genes that have none.

    Raises
    ------
    UserError
        ``genes-no-overlap``.
    """
    place = {gene: number for number, gene in enumerate(genes)}
    wanted = [canonical_gene(gene) for gene in panel]
    missing = [gene for gene in wanted if gene not in place]
    if len(missing) == len(wanted):
        raise UserError(
            "genes-no-overlap",
            f"The expression table has none of the panel's {len(wanted)} genes (wanted {', '.join(wanted[:4])}...; "
            f"found {', '.join(genes[:4])}...). Name its columns by gene symbol.",
        )
    return [place[gene] for gene in wanted if gene in place], missing


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
