"""Which slides belong to which patient."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from momkd_fl.config.site import Data, LabelTable, SlideTable
from momkd_fl.data.bags import slide_id
from momkd_fl.data.listing import listed, rows_named
from momkd_fl.data.tables import detected, open_table, patient_column, read_table
from momkd_fl.data.tables_columns import customary_columns, find_column
from momkd_fl.errors import UserError

_SEPARATORS = "-_. "

Rule = Literal["label table", "slide table", "slide ids"]


@dataclass(frozen=True)
class SlideLinks:
    """Slide ids by patient, each patient's sorted, and the rule that linked them.

    Attributes
    ----------
    rows : dict
        Number of the row that links each slide, in the table that the rule names; empty for 'slide ids'.
    notes : tuple of str
        Sentences for the site's own screen: slides matched by the start of their id, slides listed
        twice, a column that was recognised by its name.
    """

    by_patient: dict[str, tuple[str, ...]]
    rule: Rule
    rows: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_links(data: Data, patients: Collection[str], slides: Collection[str]) -> SlideLinks:
    """Link slides to patients by the first rule that applies.

    1. the label table's slide column (``data.labels.slide``), several slides separated by ';';
    2. the slide table (``data.slides``);
    3. the label table's slide column by a customary name, if it names any of the site's slides;
    4. the ids: a slide belongs to the patient whose id it equals, or starts with up to one of
       ``- _ .`` or a blank ('P1' has 'P1-DX1', never 'P10').

    Parameters
    ----------
    patients, slides : collections of str
        Ids of the label table's patients and of the feature files.

    Raises
    ------
    UserError
        ``slide-two-patients`` naming the rows; ``slide-ambiguous`` where rule 4 finds two patients.
    """
    if data.labels.slide is not None:
        return _from_table(data.labels, "label table")
    if data.slides is not None:
        return _from_table(data.slides, "slide table")
    with open_table(data.labels.path, data.labels.sheet) as (columns, _):
        customary = customary_columns(columns, "slide")
    notes: tuple[str, ...] = ()
    if customary:
        if _names_any(data.labels, slides):
            return _from_table(data.labels, "label table")
        notes = (
            f"{data.labels.path}: column '{customary[0]}' names none of the feature files, so slides were matched to "
            "patients by their ids. Correct the column if it should say which slides a patient has.",
        )
    return _from_ids(patients, slides, notes)


def _names_any(config: LabelTable, slides: Collection[str]) -> bool:
    """Whether the customary slide column holds slides at all: it may count them instead."""
    with open_table(config.path, config.sheet) as (columns, rows):
        place = find_column(config.path, columns, None, "slide", "data.labels.slide", "slide_id")
        known = set(slides)
        return any(slide_id(name) in known for _, cells in rows for name in cells[place].split(";"))


def _from_table(config: LabelTable | SlideTable, rule: Rule) -> SlideLinks:
    setting, first = ("data.labels", ("patient", "slide_id"))
    if rule == "slide table":
        setting, first = ("data.slides", ("PATIENT", "FILENAME"))
    table = read_table(config.path, config.sheet)
    patients = patient_column(table, config.patient, f"{setting}.patient", first[0])
    place = find_column(table.path, table.columns, config.slide, "slide", f"{setting}.slide", first[1])
    owners: dict[str, dict[str, int]] = {}  # slide, patient, first row
    twice: list[str] = []
    for patient, (number, cells) in zip(patients, table.rows, strict=True):
        for slide in filter(None, map(slide_id, cells[place].split(";"))):
            found = owners.setdefault(slide, {})
            if patient in found:
                twice.append(f"'{slide}' in row {number} (as in row {found[patient]})")
            found.setdefault(patient, number)
    conflicts = [
        f"{rows_named(list(found.values()))}: slide '{slide}' belongs to "
        + " and to ".join(f"'{patient}'" for patient in found)
        for slide, found in owners.items()
        if len(found) > 1
    ]
    if conflicts:
        raise UserError(
            "slide-two-patients",
            f"{table.path}: {len(conflicts)} slide(s) belong to two patients: {listed(conflicts)}. "
            "Correct the rows; if the column does not hold slides, name the right one.",
        )
    notes = (*table.notes, *detected(table, config.slide, "slide", place, f"{setting}.slide", first[1]))
    if rule == "label table" and config.slide is None:
        notes = (*table.notes, *detected(table, None, "slide", place, f"{setting}.slide", ""))
    if twice:
        notes += (f"{table.path}: {len(twice)} slide(s) are listed again and count once: {listed(twice)}.",)
    owner = {slide: next(iter(found)) for slide, found in owners.items()}
    rows = {slide: next(iter(found.values())) for slide, found in sorted(owners.items())}
    return SlideLinks(_grouped(owner), rule, rows, notes)


def _from_ids(patients: Collection[str], slides: Collection[str], notes: tuple[str, ...]) -> SlideLinks:
    known = set(patients)
    owner: dict[str, str] = {}
    ambiguous: list[str] = []
    for slide in slides:
        cuts = [place for place, letter in enumerate(slide) if letter in _SEPARATORS]
        found = [start for start in (*(slide[:cut] for cut in cuts), slide) if start in known]
        if len(found) > 1:
            ambiguous.append(f"slide '{slide}' to patient '{found[0]}' or '{found[1]}'")
        elif found:
            owner[slide] = found[0]
    if ambiguous:
        raise UserError(
            "slide-ambiguous",
            f"{len(ambiguous)} slide(s) could belong to two patients: {listed(ambiguous)}. Say which in a slide table "
            "(data.slides) or in the label table's slide column (data.labels.slide).",
        )
    by_start = sorted((slide, patient) for slide, patient in owner.items() if slide != patient)
    if by_start:
        slide, patient = by_start[0]
        notes += (
            f"{len(by_start)} slides were matched to patients by the start of their id (first: '{slide}' -> "
            f"'{patient}').",
        )
    return SlideLinks(_grouped(owner), "slide ids", {}, notes)


def _grouped(owner: dict[str, str]) -> dict[str, tuple[str, ...]]:
    grouped: dict[str, list[str]] = {}
    for slide, patient in sorted(owner.items()):
        grouped.setdefault(patient, []).append(slide)
    return {patient: tuple(slides) for patient, slides in sorted(grouped.items())}
