"""Tables as text: labels by patient, with everything that is no label excluded and counted."""

from __future__ import annotations

import csv
import difflib
import gzip
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

from momkd_fl.config.site import LabelTable, TaskLabels
from momkd_fl.errors import UserError

MISSING = "(missing)"
"""How an empty cell is called where excluded values are counted."""

Row = tuple[int, list[str]]
"""A row's number in its file (the header is row 1) and its cells."""


@dataclass(frozen=True)
class Table:
    """A small table read whole, every cell as text without surrounding blanks."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


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
    """

    by_patient: dict[str, int]
    excluded: dict[str, int]
    patients: tuple[str, ...]


@contextmanager
def open_table(path: Path) -> Iterator[tuple[tuple[str, ...], Iterator[Row]]]:
    """Stream a csv or tsv file (also .gz, UTF-8): its column names, then its rows that are not blank.

    The separator is the one of comma, tab and semicolon that the header has most of.

    Raises
    ------
    UserError
        ``table-missing``, ``table-unreadable``, ``table-empty``, or ``table-row-length`` while the
        rows are read.
    """
    if not path.is_file():
        raise UserError("table-missing", f"{path}: there is no such table. Correct the path in the site's file.")
    try:
        opener = gzip.open if path.suffix.lower() == ".gz" else open
        with cast(TextIO, opener(path, "rt", encoding="utf-8-sig", newline="")) as file:
            header = file.readline()
            separator = max(",\t;", key=header.count)
            columns = tuple(cell.strip() for cell in next(csv.reader([header], delimiter=separator), []))
            if not any(columns):
                raise UserError("table-empty", f"{path}: the first row has no column names. Add a header row.")
            yield columns, _rows(path, file, separator, len(columns))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as reason:
        raise UserError(
            "table-unreadable",
            f"{path}: the table cannot be read ({type(reason).__name__}). Save it as csv or tsv in UTF-8.",
        ) from None


def _rows(path: Path, file: TextIO, separator: str, width: int) -> Iterator[Row]:
    reader = csv.reader(file, delimiter=separator)
    for cells in reader:
        number = reader.line_num + 1  # the header was taken from the file before this reader saw it
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != width:
            raise UserError(
                "table-row-length",
                f"{path}, row {number}: {len(cells)} cells where the header has {width}. Mend the row.",
            )
        yield number, [cell.strip() for cell in cells]


def read_table(path: Path) -> Table:
    """Read a small table whole (see :func:`open_table`)."""
    with open_table(path) as (columns, rows):
        return Table(path, columns, tuple(rows))


def column_index(path: Path, columns: Sequence[str], name: str, setting: str) -> int:
    """Where the column ``name`` stands.

    Raises
    ------
    UserError
        ``column-unknown``, with the nearest column; ``column-twice``.
    """
    if columns.count(name) > 1:
        raise UserError("column-twice", f"{path}: the column '{name}' stands there twice. Rename or remove one.")
    if name in columns:
        return columns.index(name)
    folded = {column.lower(): column for column in columns}
    near = [column for column in folded if column.startswith(name.lower())]
    near = near or difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f"did you mean '{folded[near[0]]}'?" if near else f"it has {', '.join(columns[:12])}."
    raise UserError("column-unknown", f"{path}: there is no column '{name}' ({setting}); {hint}")


def patient_column(table: Table, name: str, setting: str) -> list[str]:
    """The patient ids of all rows.

    Raises
    ------
    UserError
        ``column-unknown``, or ``patient-id-empty`` naming the row.
    """
    place = column_index(table.path, table.columns, name, setting)
    for number, cells in table.rows:
        if not cells[place]:
            raise UserError(
                "patient-id-empty", f"{table.path}, row {number}: '{name}' is empty. Fill in the patient's id."
            )
    return [cells[place] for _, cells in table.rows]


def canonical_value(value: str) -> str:
    """A label value as it is compared: '1.0' and '1' are one value, since exports write both."""
    whole = re.fullmatch(r"([+-]?\d+)\.0*", value.strip())
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


def read_labels(config: LabelTable, task: TaskLabels) -> Labels:
    """Read one task's labels by patient.

    A patient may have several rows (one a slide). An empty cell does not contradict a value of
    another row; any other two values that do not mean the same class do, also where one of them
    is no label ('equivocal' beside 'positive').

    Raises
    ------
    UserError
        ``label-conflict`` naming the rows; ``label-values-unknown`` where no row has a configured
        value; and as :func:`open_table`, :func:`column_index` and :func:`patient_column`.
    """
    table = read_table(config.path)
    patients = patient_column(table, config.patient, "data.labels.patient")
    place = column_index(table.path, table.columns, task.column, "the task's column")
    classes = class_of_value(task)
    values: dict[str, tuple[int, str]] = {}
    for patient, (number, cells) in zip(patients, table.rows, strict=True):
        value = canonical_value(cells[place])
        first, known = values.get(patient, (number, ""))
        if known and value and known != value and (known not in classes or classes[known] != classes.get(value)):
            raise UserError(
                "label-conflict",
                f"{table.path}, rows {first} and {number}: patient '{patient}' has two values of '{task.column}', "
                f"'{known}' and '{value}'. One patient has one label: correct or empty one of them.",
            )
        values[patient] = (first, known) if known else (number, value)
    by_patient = {patient: classes[value] for patient, (_, value) in sorted(values.items()) if value in classes}
    excluded = Counter(value or MISSING for _, value in values.values() if value not in classes)
    if not by_patient:
        seen = ", ".join(f"'{value}'" for value, _ in excluded.most_common(8)) or "no rows"
        wanted = ", ".join(f"'{value}'" for value in classes)
        raise UserError(
            "label-values-unknown",
            f"{table.path}: no row of column '{task.column}' has one of the task's values ({wanted}); found {seen}. "
            "Correct the task's values; in YAML, put yes, no, true and false in quotes.",
        )
    return Labels(by_patient, dict(sorted(excluded.items())), tuple(sorted(values)))
