"""The hospitals of a study: their files, written where they are synthetic, and their cohorts, read once a process."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from momkd_fl.config.base import load
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.config.study import Genomics, StudyCohort, StudyPlan
from momkd_fl.data.cache import BagCache, PatientBag
from momkd_fl.data.cohort import Cohort
from momkd_fl.data.fingerprint import Fingerprint
from momkd_fl.errors import UserError
from momkd_fl.federation.comparators import Arm, Shelf
from momkd_fl.federation.participant import Participant
from momkd_fl.federation.study_cells import Cell, Hospitals
from momkd_fl.synth.cohort import (
    DEMO_SITES,
    SEMI_REAL_TRAINING,
    SEMI_REAL_WITHOUT_GENOMICS,
    TASKS,
    SynthSite,
    write_consortium,
    write_semi_real,
)

SUBGROUPS = {"ODX": ("ODX_HR", "HR+/HER2-")}
"""Tasks that are also reported within the patients who have a label of another column: task -> (task, its name)."""
_KEPT_DATA = 2
"""Generated cohorts that a process holds at once; a study goes from seed to seed."""

Read = tuple[Cohort, Fingerprint]


def hospitals_of(plan: StudyPlan, path: Path) -> Hospitals:
    """Who takes part, as the plan's cohort has it.

    Raises
    ------
    UserError
        ``study-cohort`` for an unknown task of a synthetic cohort; what sites' own files give rise to.
    """
    cohort = plan.cohort
    if cohort.kind == "sites":
        files = {site: load(file, SiteConfig) for site, file in cohort.sites.items()}
        training = tuple(site for site, file in files.items() if file.role == "train")
        external = tuple(site for site, file in files.items() if file.role == "evaluate")
        without = tuple(site for site in training if files[site].data.genomics is None)
        assert cohort.encoder is not None  # the plan's model asks for it
        return _several(
            plan, Hospitals(training, external, without, cohort.encoder.model_dump(exclude_none=True)), path
        )
    for task in plan.tasks:
        if task not in TASKS:
            raise UserError("study-cohort", f"{path}: the cohort has no task '{task}'; choose from {', '.join(TASKS)}.")
    encoder = {"name": f"synthetic-{cohort.dim}", "dim": cohort.dim}
    if cohort.kind == "semi_real":
        return Hospitals(SEMI_REAL_TRAINING, ("external",), SEMI_REAL_WITHOUT_GENOMICS, encoder)
    training = tuple(site.name for site in DEMO_SITES if site.role == "train")
    external = tuple(site.name for site in DEMO_SITES if site.role == "evaluate")
    without = tuple(site.name for site in DEMO_SITES if site.role == "train" and not site.genomics)
    return Hospitals(training, external, without, encoder)


def _several(plan: StudyPlan, hospitals: Hospitals, path: Path) -> Hospitals:
    if "leave_one_site_out" in plan.split_kinds and len(hospitals.training) < 2:
        raise UserError("study-cohort", f"{path}: leaving one site out needs two training sites or more.")
    return hospitals


def site_digests(plan: StudyPlan) -> dict[str, str]:
    """SHA-256 of each site's own file, where the study takes sites that are there already."""
    return {site: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for site, file in plan.cohort.sites.items()}


def site_files(plan: StudyPlan, cell: Cell, out: Path) -> dict[str, Path]:
    """Each site's own file; those of a synthetic cohort are under ``out`` once :func:`write_data` has been."""
    if plan.cohort.kind == "sites":
        return dict(plan.cohort.sites)
    folder = out / "data" / cell.data_key
    return {path.parent.name: path for path in sorted(folder.glob("*/site.yaml"))}


def write_data(plan: StudyPlan, cells: Sequence[Cell], out: Path, say: Callable[[str], None]) -> None:
    """Write the slides that these cells need and that are not there; a folder is there whole or not at all."""
    if plan.cohort.kind == "sites":
        return
    for key, cell in {cell.data_key: cell for cell in cells}.items():
        folder = out / "data" / key
        if folder.exists():
            continue
        say(f"Writing the slides of {key}.")
        half = folder.with_name(f".{key}")
        shutil.rmtree(half, ignore_errors=True)
        _write(plan, cell.method.cohort, cell.seed, half)
        half.rename(folder)


def _write(plan: StudyPlan, cohort: StudyCohort, seed: int, folder: Path) -> None:
    settings = cohort.model_dump(include={"gain", "stain", "warp", "mean_patches", "dim"})
    tasks = list(plan.tasks)
    if cohort.kind == "demo":
        sites = [_demo_site(site, cohort.patients) for site in DEMO_SITES]
        write_consortium(folder, sites, seed=seed, tasks=tasks, **settings)
        return
    tasks += [other for task, (other, _) in SUBGROUPS.items() if task in tasks and other not in tasks]
    write_semi_real(folder, real_tables(cohort), seed=seed, tasks=tasks, without_genomics=(), **settings)


def _demo_site(site: SynthSite, patients: int | None) -> SynthSite:
    return replace(site, genomics=site.role == "train", patients=patients or site.patients)


def real_tables(cohort: StudyCohort) -> Path:
    """The folder of the real tables (raises UserError ``study-tables``)."""
    if cohort.brca is not None:
        return cohort.brca
    if "MOMKD_REAL_DATA" not in os.environ:
        raise UserError(
            "study-tables",
            "The study needs the folder of the real tables: name it as cohort.brca in the plan, or set the environment "
            "variable MOMKD_REAL_DATA to the folder that holds tcga-brca.",
        )
    return Path(os.environ["MOMKD_REAL_DATA"]) / "tcga-brca"


def subgroup(plan: StudyPlan, task: str, files: Mapping[str, Path]) -> tuple[str, set[str]] | None:
    """Name and patients (``site/id``) of the subgroup a task is also reported in; None where there is none."""
    if plan.cohort.kind != "semi_real" or task not in SUBGROUPS or not files:
        return None
    other, name = SUBGROUPS[task]
    labels = TASKS[other]
    inside = set()
    for site, path in files.items():
        with (path.parent / "labels.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row[labels["column"]] in (*labels["positive"], *labels["negative"]):
                    inside.add(f"{site}/{row['patient']}")
    return name, inside


class _BySite(BagCache[PatientBag]):
    """The bags of pooled patients, kept by their own sites' caches."""

    def __init__(self, caches: Mapping[str, BagCache[PatientBag]]) -> None:
        super().__init__(0)
        self._caches = dict(caches)

    def get(self, key: Hashable) -> PatientBag | None:
        """As :meth:`BagCache.get`; the key begins with the patient's site."""
        return self._of(key).get(key)

    def put(self, key: Hashable, bag: PatientBag) -> None:
        """As :meth:`BagCache.put`."""
        self._of(key).put(key, bag)

    def _of(self, key: Hashable) -> BagCache[PatientBag]:
        assert isinstance(key, tuple)
        return self._caches[key[0]]


@dataclass
class Library:
    """What one process has read: cohorts and their bags, of the few data sets used last.

    A cohort is read once for each task, role, split seed and standardisation; bags, which depend on the latter alone,
    are kept once for all of them.
    """

    _data: OrderedDict[str, tuple[dict[Hashable, Read], dict[Hashable, BagCache[PatientBag]]]] = field(
        default_factory=OrderedDict
    )

    def shelf(self, cell: Cell, files: Mapping[str, Path]) -> CellShelf:
        """The shelf a cell's participants read from."""
        cohorts, bags = self._data.setdefault(cell.data_key, ({}, {}))
        self._data.move_to_end(cell.data_key)
        while len(self._data) > _KEPT_DATA:
            self._data.popitem(last=False)
        sites = {site: load(path, SiteConfig) for site, path in files.items()}
        for site in cell.method.without_genomics:
            data = sites[site].data.model_copy(update={"genomics": None})
            sites[site] = sites[site].model_copy(update={"data": data})
        return CellShelf(sites, torch.device("cpu"), genomics=cell.method.genomics, cohorts=cohorts, bags=bags)


@dataclass
class CellShelf(Shelf):
    """A shelf whose cohorts outlive it, with the expression that the method is to have."""

    genomics: Genomics = "real"
    cohorts: dict[Hashable, Read] = field(default_factory=dict)
    bags: dict[Hashable, BagCache[PatientBag]] = field(default_factory=dict)
    participants: dict[str, Participant] = field(default_factory=dict)

    def participant(self, name: str, arm: Arm, role: Literal["train", "evaluate"], folder: Path) -> Participant:
        """As :meth:`Shelf.participant`; the last one of each name is kept, for what it was charged."""
        self.participants[name] = super().participant(name, arm, role, folder)
        return self.participants[name]

    def cohort(self, site: str, role: Literal["train", "evaluate"], federation: FederationConfig) -> Read:
        """The site's cohort in a role."""
        wanted = (
            federation.task,
            federation.seed,
            federation.classes,
            federation.model.graph_neighbours,
            federation.training.standardise,
            federation.training.validation_fraction,
            federation.encoder,
            federation.privacy.active,
        )
        expression = self.sites[site].data.genomics is not None
        key = (site, role, expression, *wanted)
        if key not in self.cohorts:
            self.cohorts[key] = self._with_shared_bags(super().cohort(site, role, federation))
        cohort, fingerprint = self.cohorts[key]
        return (shuffled(cohort, self.genomics, federation.seed) if role == "train" else cohort), fingerprint

    def _pool(self, arm: Arm, federation: FederationConfig) -> Read:
        cohort, fingerprint = super()._pool(arm, federation)
        caches = {site: self.cohort(site, "train", federation)[0].cache for site in arm.sites}
        return replace(cohort, cache=_BySite(caches)), fingerprint

    def _with_shared_bags(self, read: Read) -> Read:
        cohort, fingerprint = read
        scaling = cohort.scaling.get(cohort.site)
        fitted = b"" if scaling is None else scaling.mean.tobytes() + scaling.sd.tobytes()
        key = (cohort.site, cohort.neighbours, cohort.standardise, hashlib.sha256(fitted).digest())
        return replace(cohort, cache=self.bags.setdefault(key, cohort.cache)), fingerprint


def shuffled(cohort: Cohort, how: Genomics, seed: int) -> Cohort:
    """The cohort with every patient's expression handed on to another one of the same split (and class).

    A ring over the patients in random order: nobody keeps their own, unless there is nobody to hand it to. The
    training patients' expression as a whole stays what it was, so the fixed genomic space does too.
    """
    if how == "real" or not cohort.genes_available:
        return cohort
    rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(cohort.site.encode()).digest()[:4], "little")])
    groups: dict[Hashable, list[int]] = {}
    for row, patient in enumerate(cohort.patients):
        if patient.genes is not None:
            within = patient.label if how == "shuffled_within_class" else patient.label is None
            groups.setdefault((patient.split, within), []).append(row)
    patients = list(cohort.patients)
    for _, rows in sorted(groups.items(), key=str):
        ring = rng.permutation(rows)
        for row, giver in zip(ring, np.roll(ring, 1), strict=True):
            patients[row] = replace(cohort.patients[row], genes=cohort.patients[giver].genes)
    return replace(cohort, patients=tuple(patients))
