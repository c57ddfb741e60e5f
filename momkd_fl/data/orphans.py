"""Patients without slides, slides without a file, files without a patient: listed for the site's own screen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from momkd_fl.data.listing import listed
from momkd_fl.data.slides import SlideLinks
from momkd_fl.data.tables import Labels


@dataclass(frozen=True)
class Orphans:
    """What has no partner. It names patients, so it never leaves the site.

    Attributes
    ----------
    patients_without_slides : tuple of (str, int)
        Patients of the label table without a feature file, and their first row there.
    slides_without_file : tuple of (str, int)
        Slides that a table gives to a labelled patient but no feature file has, and their row.
    slides_without_patient : tuple of str
        Feature files that belong to no patient of the label table.
    hints : tuple of str
        Ids that nearly match. They are never matched: two patients may differ in just that.
    """

    patients_without_slides: tuple[tuple[str, int], ...]
    slides_without_file: tuple[tuple[str, int], ...]
    slides_without_patient: tuple[str, ...]
    hints: tuple[str, ...] = ()

    def lines(self, limit: int = 10) -> list[str]:
        """One sentence for each kind of orphan there is, then the hints, each with at most ``limit`` names."""
        said = []
        for rows, what in (
            (self.patients_without_slides, "patient(s) of the label table have no feature file"),
            (self.slides_without_file, "slide(s) of the table have no feature file"),
        ):
            if rows:
                named = listed([f"'{name}' (row {row})" for name, row in rows], limit, ", ")
                said.append(f"{len(rows)} {what}: {named}.")
        if self.slides_without_patient:
            named = listed([f"'{name}'" for name in self.slides_without_patient], limit, ", ")
            said.append(f"{len(self.slides_without_patient)} feature file(s) belong to no patient: {named}.")
        if self.hints:
            said.append(f"Nearly the same, and not matched: {listed(self.hints, limit)}.")
        return said


def find_orphans(labels: Labels, links: SlideLinks, bags: Mapping[str, Path]) -> Orphans:
    """Compare the label table's patients, the linked slides and the feature files.

    Parameters
    ----------
    bags : mapping
        Feature file of each slide (:func:`momkd_fl.data.bags.find_bags`).
    """
    linked = {patient: links.by_patient.get(patient, ()) for patient in labels.patients}
    named = {slide for slides in linked.values() for slide in slides}
    without_file = sorted(named - set(bags))
    without_patient = tuple(sorted(set(bags) - named))
    hints = (
        *_near(without_patient, without_file),
        *_near(sorted(set(links.by_patient) - set(linked)), labels.patients),
        *(_near_starts(without_patient, labels.patients) if links.rule == "slide ids" else ()),
    )
    return Orphans(
        tuple(
            (patient, labels.rows[patient][0])
            for patient, slides in linked.items()
            if not any(slide in bags for slide in slides)
        ),
        tuple((slide, links.rows[slide]) for slide in without_file),
        without_patient,
        hints,
    )


_FOLDS = (
    ("in case", str.casefold),
    ("in blanks", lambda text: re.sub(r"\s+", "", text)),
    ("in a decimal '.0'", lambda text: re.sub(r"\.0+$", "", text)),
    ("in leading zeros", lambda text: text.lstrip("0")),
)


def _near(unmatched: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Pairs of ids that are the same but for one kind of difference."""
    wanted = list(wanted)
    found = []
    for difference, fold in _FOLDS:
        by_fold = {fold(name): name for name in wanted}
        for name in unmatched:
            other = by_fold.get(fold(name))
            if other is not None and other != name:
                found.append(f"'{name}' differs from '{other}' only {difference}")
    return found


def _near_starts(unmatched: Iterable[str], patients: Iterable[str]) -> list[str]:
    """Slides whose start is a patient's id but for one kind of difference ('p1-DX1' beside 'P1')."""
    patients = list(patients)
    starts = (slide[: cut.start()] for slide in unmatched for cut in re.finditer(r"[-_. ]|$", slide))
    return _near(sorted(set(starts)), patients)
