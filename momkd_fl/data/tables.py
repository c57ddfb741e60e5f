"""Tables as text: labels by patient, with everything that is no label excluded and counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from momkd_fl.config.site import LabelTable, TaskLabels
from momkd_fl.data.listing import listed, rows_named
from momkd_fl.data.tables_columns import column_index, find_column
from momkd_fl.data.tables_text import Row, open_text
from momkd_fl.data.tables_xlsx import is_workbook, open_sheet
from momkd_fl.errors import UserError

__all__ = ["MISSING", "Labels", "Row", "Table", "column_index", "open_table", "read_labels", "read_table"]

MISSING = "(missing)"
"""How an empty cell is called where excluded values are counted."""

_NO_IDS = {"", "#N/A", "#REF!", "#NAME?", "#VALUE!", "#DIV/0!", "#NULL!", "#NUM!"}
"""What a spreadsheet leaves where an id should be: nothing, or the error of a failed formula."""


@dataclass(frozen=True)
class Table:
    """A small table read whole, every cell as text without surrounding blanks.

    Attributes
    ----------
    notes : tuple of str
        What the site should be told about how the file was read (which sheet).
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """One task's labels.

    Attributes
    ----------
    by_patient : dict
        Class of every patient whose value stands in the configuration.
    excluded : dict
        Patients without a class, counted by the value that was found; empty cells are
        :data:`MISSING`. None of them ever becomes a class.
    patients : tuple
        All patients of the table, sorted.
    rows : dict
        Numbers of every patient's rows in the file.
    duplicates : int
        Rows that repeat an earlier one in every cell.
    notes : tuple of str
        Sentences for the site's own screen: repeated rows, which sheet and which column was read.
    """

    by_patient: dict[str, int]
    excluded: dict[str, int]
    patients: tuple[str, ...]
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    duplicates: int = 0
    notes: tuple[str, ...] = ()


@contextmanager
def open_table(path: Path, sheet: str | None = None) -> Iterator[tuple[tuple[str, ...], Iterator[Row]]]:
    """Stream a csv or tsv file (also .gz, UTF-8) or a workbook's sheet: its column names, then its rows.

    Rows that are blank are left out, and still counted. The separator is the one of comma, tab and
    semicolon that the header has most of.

    Raises
    ------
    UserError
        ``table-missing``, ``table-empty``, ``sheet-no-workbook``, or ``table-row-length`` while the rows are
        read; and as :func:`momkd_fl.data.tables_text.open_text` and :func:`momkd_fl.data.tables_xlsx.open_sheet`.
    """
    with _opened(path, sheet) as (columns, rows, _):
        yield columns, rows


@contextmanager
def _opened(path: Path, sheet: str | None) -> Iterator[tuple[tuple[str, ...], Iterator[Row], tuple[str, ...]]]:
    if not path.is_file():
        raise UserError("table-missing", f"{path}: there is no such table. Correct the path in the site's file.")
    if sheet is not None and not is_workbook(path):
        raise UserError(
            "sheet-no-workbook",
            f"{path}: a sheet is named ('{sheet}'), but this is no .xlsx file. Remove the setting 'sheet'.",
        )
    source: AbstractContextManager[tuple[Iterator[Row], tuple[str, ...]]]
    source = open_sheet(path, sheet) if is_workbook(path) else _text(path)
    with source as (records, notes):
        columns = tuple(cell.strip() for cell in next(records, (1, []))[1])
        if not any(columns):
            raise UserError("table-empty", f"{path}: the first row has no column names. Add a header row.")
        yield columns, _rows(path, records, len(columns)), notes


@contextmanager
def _text(path: Path) -> Iterator[tuple[Iterator[Row], tuple[str, ...]]]:
    with open_text(path) as records:
        yield records, ()


def _rows(path: Path, records: Iterator[Row], width: int) -> Iterator[Row]:
    for number, cells in records:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != width:
            hint = " (a text or decimal comma that needs quotes?)" if len(cells) > width else ""
            raise UserError(
                "table-row-length",
                f"{path}, row {number}: {len(cells)} cells where the header has {width}{hint}. Mend the row.",
            )
        yield number, [cell.strip() for cell in cells]


def read_table(path: Path, sheet: str | None = None) -> Table:
    """Read a small table whole (see :func:`open_table`)."""
    with _opened(path, sheet) as (columns, rows, notes):
        return Table(path, columns, tuple(rows), notes)


def patient_column(table: Table, name: str | None, setting: str, first: str = "patient") -> list[str]:
    """The patient ids of all rows (see :func:`momkd_fl.data.tables_columns.find_column`).

    Raises
    ------
    UserError
        As ``find_column``, or ``patient-id-empty`` naming the rows.
    """
    place = find_column(table.path, table.columns, name, "patient", setting, first)
    empty = [number for number, cells in table.rows if cells[place] in _NO_IDS]
    if empty:
        raise UserError(
            "patient-id-empty",
            f"{table.path}, {rows_named(empty)}: '{table.columns[place]}' is empty or an error value. Fill in the "
            "patient's id (of merged cells only the first holds it).",
        )
    return [cells[place] for _, cells in table.rows]


def detected(table: Table, name: str | None, kind: str, place: int, setting: str, first: str) -> tuple[str, ...]:
    """A sentence where a column was recognised by a customary name, which nobody configured."""
    column = table.columns[place]
    if name is not None or column == first:
        return ()
    return (f"{table.path}: each {kind} was read from column '{column}'. Set {setting} to read another.",)


def repeated_rows(table: Table) -> list[tuple[int, int]]:
    """Rows that repeat an earlier one in every cell: (row, the earlier row)."""
    first: dict[tuple[str, ...], int] = {}
    pairs = [(number, first.setdefault(tuple(cells), number)) for number, cells in table.rows]
    return [(number, earlier) for number, earlier in pairs if number != earlier]


def canonical_value(value: str) -> str:
    """A label value as it is compared: '1.0', '1,0' and '1' are one value, since exports write all three.

    '1,000' stays as it is: it may be a thousand.
    """
    whole = re.fullmatch(r"([+-]?\d+)(?:\.0*|,0{1,2})", value.strip())
    return whole.group(1) if whole else value.strip()


def class_of_value(task: TaskLabels) -> dict[str, int]:
    """The class of every configured value, in canonical form.

    Raises
    ------
    UserError
        ``label-value-twice``: two classes share a value.
    """
    classes: dict[str, int] = {}
    for number, values in enumerate(task.values_by_class):
        for value in map(canonical_value, values):
            if classes.setdefault(value, number) != number:
                raise UserError(
                    "label-value-twice",
                    f"The value '{value}' of column '{task.column}' stands in two classes. Leave it in one.",
                )
    return classes


def read_labels(
    config: LabelTable,
    task: TaskLabels,
    without: Collection[str] = (),
    *,
    needed: bool = True,
) -> Labels:
    """Read one task's labels by patient, leaving out the patients ``without``.

    A patient may have several rows (one a slide). An empty cell does not contradict a value of
    another row; any other two values that do not mean the same class do, also where one of them
    is no label ('equivocal' beside 'positive').

    Raises
    ------
    UserError
        ``label-conflict`` naming the rows; ``label-values-unknown`` where no row has a configured
        value (where none is ``needed``: and some row another one); and as :func:`open_table`,
        :func:`column_index` and :func:`patient_column`.
    """
    table = read_table(config.path, config.sheet)
    setting = "data.labels.patient"
    patients = patient_column(table, config.patient, setting)
    place = column_index(table.path, table.columns, task.column, "the task's column")
    classes = class_of_value(task)
    rows: dict[str, list[int]] = {}
    values: dict[str, list[tuple[int, str]]] = {}
    for patient, (number, cells) in zip(patients, table.rows, strict=True):
        if patient in without:
            continue
        rows.setdefault(patient, []).append(number)
        found = values.setdefault(patient, [])
        if cells[place]:
            found.append((number, canonical_value(cells[place])))
    _check_agreement(table.path, task.column, values, classes)
    value_of = {patient: found[0][1] if found else "" for patient, found in sorted(values.items())}
    by_patient = {patient: classes[value] for patient, value in value_of.items() if value in classes}
    excluded = Counter(value or MISSING for value in value_of.values() if value not in classes)
    if not by_patient and (needed or set(excluded) - {MISSING}):
        seen = ", ".join(f"'{value}'" for value, _ in excluded.most_common(8)) or "no rows"
        wanted = ", ".join(f"'{value}'" for value in classes)
        raise UserError(
            "label-values-unknown",
            f"{table.path}: no row of column '{task.column}' has one of the task's values ({wanted}); found {seen}. "
            "Correct the task's values; in YAML, put yes, no, true and false in quotes.",
        )
    twice = repeated_rows(table)
    patient_place = find_column(table.path, table.columns, config.patient, "patient", setting, "patient")
    return Labels(
        by_patient,
        dict(sorted(excluded.items())),
        tuple(sorted(values)),
        rows={patient: tuple(numbers) for patient, numbers in sorted(rows.items())},
        duplicates=len(twice),
        notes=(
            *table.notes,
            *detected(table, config.patient, "patient", patient_place, setting, "patient"),
            *_repetitions(table.path, twice),
        ),
    )


def _check_agreement(
    path: Path, column: str, values: dict[str, list[tuple[int, str]]], classes: dict[str, int]
) -> None:
    conflicts = []
    for patient, found in values.items():
        first: dict[int | str, tuple[int, str]] = {}  # by meaning: a class, or else the value itself
        for number, value in found:
            first.setdefault(classes.get(value, value), (number, value))
        if len(first) > 1:
            numbers, said = zip(*first.values(), strict=True)
            quoted = " and ".join(f"'{value}'" for value in said)
            conflicts.append(f"{rows_named(numbers)}: patient '{patient}' has {quoted}")
    if conflicts:
        raise UserError(
            "label-conflict",
            f"{path}: {len(conflicts)} patient(s) have two values of '{column}': {listed(conflicts)}. "
            "One patient has one label: correct or empty the wrong ones.",
        )


def _repetitions(path: Path, twice: list[tuple[int, int]]) -> tuple[str, ...]:
    if not twice:
        return ()
    named = listed([f"row {number} (as row {earlier})" for number, earlier in twice], separator=", ")
    return (f"{path}: {len(twice)} row(s) repeat an earlier one and change nothing: {named}.",)
