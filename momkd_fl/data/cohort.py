"""One site's patients: slides, label, genes and split of each, and their bags on demand."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from momkd_fl.config.site import Scale
from momkd_fl.data.bags import Format, read_bag, read_header
from momkd_fl.data.cache import BagCache, PatientBag
from momkd_fl.data.genomics import canonical_gene, panel_columns
from momkd_fl.data.graph import neighbours
from momkd_fl.data.splits import Split
from momkd_fl.data.standardise import FeatureScaling, fit_scaling, slide_moments, widen
from momkd_fl.data.store import Entry, Store, morton_order
from momkd_fl.errors import UserError

Standardise = Literal["none", "site", "slide"]
_COLUMNS = 256
"""Columns put in another order at once: what is copied meanwhile is this share of the features."""


@dataclass(frozen=True)
class Patient:
    """One patient.

    Attributes
    ----------
    label : int or None
        Class; None where the patient has no label for the task.
    genes : ndarray (G,), float32, or None
        On the cohort's panel (before a panel is agreed: on ``Cohort.genes_available``), on the
        table's log-like scale; None where the patient has no expression.
    site : str
        The site whose scaling the features take; matters in a pooled cohort only.
    """

    id: str
    slides: tuple[Path, ...]
    label: int | None
    genes: npt.NDArray[np.float32] | None = field(compare=False)
    split: Split
    site: str = ""

    @property
    def key(self) -> Hashable:
        """What the bag of a patient is kept under."""
        return self.site, self.slides


@dataclass(frozen=True, eq=False)
class Cohort:
    """The patients of one site, or of several pooled ones (:func:`merge`).

    Attributes
    ----------
    patients : tuple of Patient
        Everyone with at least one slide, by id; those without a label have ``label=None``.
    exclusions : dict
        Patients of the label table without a class, by the value found.
    dropped : dict
        What was left out, by reason: ``patients_without_slides``, ``slides_without_file``,
        ``slides_without_patient``, ``expression_without_patient``.
    panel : tuple of str
        The agreed genes; empty until :meth:`with_panel`.
    genes_available : tuple of str
        The genes that patients' vectors have now; empty where the site has no genomics.
    scaling : mapping
        By site; empty unless ``standardise`` is 'site'.
    format : str or None
        Overrides the detection of the files' format.
    stores : tuple of Store
        Ingested slides; a slide that is not there unchanged is read from its file.
    """

    site: str
    role: Literal["train", "evaluate"]
    task: str
    classes: int
    patients: tuple[Patient, ...]
    exclusions: dict[str, int]
    dropped: dict[str, int]
    encoder: str
    dim: int
    patch_um: float | None
    panel: tuple[str, ...]
    genes_available: tuple[str, ...]
    gene_scale: Scale | None
    neighbours: int
    standardise: Standardise
    scaling: Mapping[str, FeatureScaling]
    cache: BagCache[PatientBag] = field(repr=False)
    format: Format | None = None
    stores: tuple[Store, ...] = field(default=(), repr=False)

    def labelled(self, split: Split) -> list[Patient]:
        """Patients of a split who have a label, by id."""
        return [patient for patient in self.patients if patient.split == split and patient.label is not None]

    def bag(self, patient: Patient) -> PatientBag:
        """All slides of a patient as one bag, from memory or from disk; patches of a slide in spatial order.

        A slide from a store is read into the result tile by tile; one from a file is held beside it, unless it is the
        patient's only one.

        Raises
        ------
        UserError
            As :func:`momkd_fl.data.bags.read_bag`; ``bag-too-few`` (see :func:`standardise_slide`).
        """
        kept = self.cache.get(patient.key)
        if kept is not None:
            return kept
        slides = [self._slide(path) for path in patient.slides]
        only = slides[0].values if len(slides) == 1 else None
        patches = sum(len(slide.neighbours) for slide in slides)
        features = np.empty((patches, slides[0].dim), np.float32) if only is None else only
        index, start = np.empty((patches, self.neighbours + 1), np.int32), 0
        for path in patient.slides:
            slide = slides.pop(0)  # memory of a slide is free as soon as it is written
            rows = slice(start, start + len(slide.neighbours))
            slide.write(features[rows])
            standardise_slide(path, features[rows], self.standardise, self.scaling.get(patient.site))
            near = slide.neighbours
            index[rows] = np.where(near >= 0, near + np.int32(start), np.int32(-1))  # no edge crosses slides
            start = rows.stop
        bag = PatientBag(features, index)
        self.cache.put(patient.key, bag)
        return bag

    def patches(self, patient: Patient) -> int:
        """Patches of all slides of a patient, from memory, the store's index or the files' headers.

        Raises
        ------
        UserError
            As :func:`momkd_fl.data.bags.read_header`.
        """
        kept = self.cache.get(patient.key)
        if kept is not None:
            return len(kept.features)
        stored = [(path, self._stored(path)) for path in patient.slides]
        return sum(found[1].patches if found else read_header(path, self.format).patches for path, found in stored)

    def _stored(self, path: Path) -> tuple[Store, Entry] | None:
        for store in self.stores:
            entry = store.find(path)
            if entry is not None and entry.k >= self.neighbours:
                return store, entry
        return None

    def _slide(self, path: Path) -> _Slide:
        """One slide, from a store that has it unchanged, else from its file.

        In spatial order where there is a graph: neighbours lie near one another in memory.
        """
        found = self._stored(path)
        if found is not None:
            store, entry = found
            near = store.graph(entry)[1][:, : self.neighbours + 1]
            return _Slide(entry.dim, near, stored=partial(store.features, entry))
        bag = read_bag(path, self.format)
        if self.neighbours == 0:
            return _Slide(bag.header.dim, neighbours(bag.coords, 0), bag.features)
        order = morton_order(bag.coords)
        near = neighbours(bag.coords[order], self.neighbours)
        return _Slide(bag.header.dim, near, _in_order(bag.features, order))

    def with_panel(self, panel: Sequence[str], minimum: int) -> Cohort:
        """The same cohort with every gene vector on the agreed panel, in its order.

        The panel is what all genomic sites share, so a gene that this site lacks is an error, never
        a zero. A site without genomics only takes note of the panel.

        Raises
        ------
        UserError
            ``genes-no-overlap``, ``genes-missing`` or ``genes-too-few``.
        """
        agreed = tuple(map(canonical_gene, panel))
        if not self.genes_available:
            return replace(self, panel=agreed)
        columns, missing = panel_columns(self.genes_available, agreed)
        if missing:
            raise UserError(
                "genes-missing",
                f"Site '{self.site}': the expression table lacks {len(missing)} gene(s) of the agreed panel: "
                f"{', '.join(missing[:8])}. Agree on a panel that every genomic site has.",
            )
        if len(columns) < minimum:
            raise UserError(
                "genes-too-few",
                f"Site '{self.site}': the agreed panel has {len(columns)} genes, fewer than the {minimum} asked for "
                "(genes.minimum). Choose a larger panel.",
            )
        patients = tuple(
            patient if patient.genes is None else replace(patient, genes=patient.genes[columns])
            for patient in self.patients
        )
        return replace(self, patients=patients, panel=agreed, genes_available=agreed)


@dataclass(frozen=True)
class _Slide:
    """Neighbours (P, k + 1), and the features: float32 values (P, D) that may be written to, or a way to read them."""

    dim: int
    neighbours: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32] | None = None
    stored: Callable[[], Iterator[tuple[slice, npt.NDArray[Any]]]] | None = None

    def write(self, out: npt.NDArray[np.float32]) -> None:
        """Features as float32 into ``out`` (P, D), which may be ``values``."""
        if self.stored is not None:
            for rows, tile in self.stored():
                widen(tile, out[rows])
        elif self.values is not None and not np.may_share_memory(self.values, out):
            out[...] = self.values


def standardise_slide(
    path: Path, features: npt.NDArray[np.float32], mode: Standardise, scaling: FeatureScaling | None
) -> None:
    """Standardise one slide's features (P, D) in place, as the student takes them.

    Raises
    ------
    UserError
        ``bag-too-few``: one patch cannot be standardised by its own slide; it would become zero.
    """
    if mode == "slide":
        if len(features) < 2:
            raise UserError(
                "bag-too-few",
                f"{path}: a slide of one patch cannot be standardised by itself. Remove the slide, or have the "
                "federation use training.standardise: site.",
            )
        scaling = fit_scaling([slide_moments(features)])
    if scaling is not None:
        scaling.apply(features, features)


def _in_order(features: npt.NDArray[np.float32], order: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Rows of features (P, D) in the order given, in place where they may be written to."""
    if not features.flags.writeable:
        return features[order]
    if not np.array_equal(order, np.arange(len(order))):
        for start in range(0, features.shape[1], _COLUMNS):
            columns = features[:, start : start + _COLUMNS]
            columns[...] = columns[order]
    return features


def merge(cohorts: Sequence[Cohort]) -> Cohort:
    """Pool several sites' cohorts, for comparison where one machine holds all data.

    Each patient keeps the split and the feature scaling of its site. Ids that stand in two sites
    become 'site/id'.

    Raises
    ------
    UserError
        ``merge-mismatch``: the cohorts differ in a field that must be one.
    """
    first = cohorts[0]
    for other in cohorts[1:]:
        for name in ("task", "classes", "encoder", "dim", "panel", "neighbours", "standardise"):
            if getattr(other, name) != getattr(first, name):
                raise UserError(
                    "merge-mismatch",
                    f"Sites '{first.site}' and '{other.site}' cannot be pooled: '{name}' is "
                    f"{getattr(first, name)!r} at one and {getattr(other, name)!r} at the other.",
                )
    genomic = [cohort for cohort in cohorts if cohort.genes_available]
    if len({(cohort.genes_available, cohort.gene_scale) for cohort in genomic}) > 1:
        raise UserError("merge-mismatch", "The sites' genes or their scales differ. Agree on a panel before pooling.")
    seen: dict[str, int] = {}
    for cohort in cohorts:
        for patient in cohort.patients:
            seen[patient.id] = seen.get(patient.id, 0) + 1
    patients = [
        patient if seen[patient.id] == 1 else replace(patient, id=f"{patient.site}/{patient.id}")
        for cohort in cohorts
        for patient in cohort.patients
    ]
    return replace(
        first,
        site="pooled",
        patients=tuple(sorted(patients, key=lambda patient: patient.id)),
        exclusions=_summed([cohort.exclusions for cohort in cohorts]),
        dropped=_summed([cohort.dropped for cohort in cohorts]),
        genes_available=genomic[0].genes_available if genomic else (),
        gene_scale=genomic[0].gene_scale if genomic else None,
        scaling={site: scaling for cohort in cohorts for site, scaling in cohort.scaling.items()},
        stores=tuple(store for cohort in cohorts for store in cohort.stores),
        cache=BagCache(sum(cohort.cache.capacity_bytes for cohort in cohorts)),
    )


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    keys = sorted({key for count in counts for key in count})
    return {key: sum(count.get(key, 0) for count in counts) for key in keys}
