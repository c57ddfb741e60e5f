"""Which column of a table holds what: by its configured name, or by the names that are customary."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from momkd_fl.data.listing import listed
from momkd_fl.errors import UserError

CONVENTIONS = {
    "patient": ("patient", "patient_id", "case", "case_id"),
    "slide": ("slide", "slide_id", "filename"),
}
"""Customary names of a column; capitals, blanks and ``_ - .`` make no difference ('PATIENT', 'Patient ID')."""


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


def customary_columns(columns: Sequence[str], kind: Literal["patient", "slide"]) -> list[str]:
    """The columns whose names are customary for ``kind``, in the table's order."""
    wanted = {_plain(name) for name in CONVENTIONS[kind]}
    return [column for column in columns if _plain(column) in wanted]


def find_column(
    path: Path, columns: Sequence[str], name: str | None, kind: Literal["patient", "slide"], setting: str, first: str
) -> int:
    """Where the patients or slides stand.

    Parameters
    ----------
    name : str or None
        The configured name, which always wins; None: the column ``first``, else the only customary one.
    first : str
        The name that counts before all customary ones.

    Raises
    ------
    UserError
        As :func:`column_index`; ``column-not-found`` and ``column-ambiguous`` where no name is configured.
    """
    if name is not None or first in columns:
        return column_index(path, columns, name or first, setting)
    found = customary_columns(columns, kind)
    if not found:
        raise UserError(
            "column-not-found",
            f"{path}: no column has a customary name for the {kind} ({', '.join(CONVENTIONS[kind])}); it has "
            f"{listed(columns, 12, ', ')}. Name the column in {setting}.",
        )
    if len(found) > 1:
        named = ", ".join(f"'{column}'" for column in found)
        raise UserError(
            "column-ambiguous",
            f"{path}: {len(found)} columns could hold the {kind}: {named}. Name the right one in {setting}.",
        )
    return columns.index(found[0])


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
