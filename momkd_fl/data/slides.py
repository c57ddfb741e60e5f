"""Which slides belong to which patient."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from momkd_fl.config.site import Data
from momkd_fl.data.bags import slide_id
from momkd_fl.data.tables import column_index, patient_column, read_table
from momkd_fl.errors import UserError

_SEPARATORS = "-_. "


@dataclass(frozen=True)
class SlideLinks:
    """Slide ids by patient, each patient's sorted, and the rule that linked them."""

    by_patient: dict[str, tuple[str, ...]]
    rule: Literal["label table", "slide table", "slide ids"]


def read_links(data: Data, patients: Collection[str], slides: Collection[str]) -> SlideLinks:
    """Link slides to patients by the first rule that applies.

    1. the label table's slide column (``data.labels.slide``), several slides separated by ';';
    2. the slide table (``data.slides``);
    3. the ids: a slide belongs to the patient whose id it equals, or starts with up to one of
       ``- _ .`` or a blank ('P1' has 'P1-DX1', never 'P10').

    Parameters
    ----------
    patients, slides : collections of str
        Ids of the label table's patients and of the feature files.

    Raises
    ------
    UserError
        ``slide-two-patients`` naming the rows; ``slide-ambiguous`` where rule 3 finds two patients.
    """
    if data.labels.slide is not None:
        by_patient = _from_table(data.labels.path, data.labels.patient, data.labels.slide, "data.labels")
        return SlideLinks(by_patient, "label table")
    if data.slides is not None:
        by_patient = _from_table(data.slides.path, data.slides.patient, data.slides.slide, "data.slides")
        return SlideLinks(by_patient, "slide table")
    return SlideLinks(_from_ids(patients, slides), "slide ids")


def _from_table(path: Path, patient: str, slide: str, setting: str) -> dict[str, tuple[str, ...]]:
    table = read_table(path)
    patients = patient_column(table, patient, f"{setting}.patient")
    place = column_index(table.path, table.columns, slide, f"{setting}.slide")
    owner: dict[str, tuple[str, int]] = {}
    for name, (number, cells) in zip(patients, table.rows, strict=True):
        for found in filter(None, map(slide_id, cells[place].split(";"))):
            first, row = owner.setdefault(found, (name, number))
            if first != name:
                raise UserError(
                    "slide-two-patients",
                    f"{table.path}, rows {row} and {number}: slide '{found}' belongs to '{first}' and to '{name}'. "
                    "Correct one of the rows.",
                )
    return _grouped({found: name for found, (name, _) in owner.items()})


def _from_ids(patients: Collection[str], slides: Collection[str]) -> dict[str, tuple[str, ...]]:
    known = set(patients)
    owner: dict[str, str] = {}
    for slide in slides:
        cuts = [place for place, letter in enumerate(slide) if letter in _SEPARATORS]
        found = [start for start in (*(slide[:cut] for cut in cuts), slide) if start in known]
        if len(found) > 1:
            raise UserError(
                "slide-ambiguous",
                f"Slide '{slide}' could belong to patient '{found[0]}' or '{found[1]}'. Say which in a slide table "
                "(data.slides) or in the label table's slide column (data.labels.slide).",
            )
        if found:
            owner[slide] = found[0]
    return _grouped(owner)


def _grouped(owner: dict[str, str]) -> dict[str, tuple[str, ...]]:
    grouped: dict[str, list[str]] = {}
    for slide, patient in sorted(owner.items()):
        grouped.setdefault(patient, []).append(slide)
    return {patient: tuple(slides) for patient, slides in sorted(grouped.items())}
