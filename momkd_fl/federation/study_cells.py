"""A study's grid: one cell is one model to train, and its key says what was computed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from momkd_fl.config.base import parse
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.study import LOCAL, RELEASED, Genomics, SplitKind, StudyCohort, StudyMethod, StudyPlan
from momkd_fl.errors import UserError
from momkd_fl.federation.comparators import Arm, Kind

SET_BY_STUDY = ("name", "task", "encoder", "output_dir", "members", "seed", "listen", "tls", "telemetry")
"""Keys of a federation's file that a study fills in itself."""


@dataclass(frozen=True)
class Hospitals:
    """Who there is: training sites, those that never train, and the training sites without expression."""

    training: tuple[str, ...]
    external: tuple[str, ...]
    without_genomics: tuple[str, ...]
    encoder: Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """A method with all its lists resolved: one point of the grid."""

    name: str
    pooled: bool
    genomics: Genomics
    without_genomics: tuple[str, ...]
    random_memory: bool
    sections: Mapping[str, Any]
    cohort: StudyCohort


@dataclass(frozen=True)
class Cell:
    """One model to train: the method, the task, the seed, the sites that train and those it is tested on."""

    method: Method
    task: str
    seed: int
    split: SplitKind | None
    trained: tuple[str, ...]
    tested: tuple[str, ...]
    encoder: Mapping[str, Any]
    version: int
    sites: Mapping[str, str]

    @property
    def label(self) -> str:
        """Task, method, what is left out and seed, as ``--only`` and the progress lines know it."""
        what = "at-" + self.trained[0] if self.split is None else "without-" + "-".join(self.tested)
        return f"{self.task}/{self.method.name}/{what}/seed{self.seed}"

    @property
    def arm(self) -> Arm:
        """The comparator's arm that trains it."""
        kind: Kind = "pooled" if self.method.pooled else "federated"
        return Arm(self.label, kind, self.trained)

    @property
    def data_key(self) -> str:
        """Names the files this cell's sites are read from."""
        if self.method.cohort.kind == "sites":
            return "sites"
        cohort = self.method.cohort.model_dump(mode="json", exclude={"brca", "sites", "encoder"})
        return f"seed{self.seed}-{_digest(cohort)[:12]}"

    @cached_property
    def key(self) -> str:
        """SHA-256 over what is computed: configuration, data, sites, version; nothing of names or folders.

        Of the configuration only what differs from the defaults: a key that a later version adds leaves finished
        cells what they are.
        """
        method = self.method
        federation = self.config(Path("cell")).model_dump(
            mode="json", exclude_defaults=True, exclude={"name", "output_dir", "members"}
        )
        said = {
            "federation": {section: values for section, values in federation.items() if values != {}},
            "method": (method.pooled, method.genomics, method.without_genomics, method.random_memory),
            "cohort": self.data_key,
            "sites": dict(self.sites),
            "trained": self.trained,
            "tested": self.tested,
            "version": self.version,
        }
        return _digest(said)[:24]

    def config(self, folder: Path) -> FederationConfig:
        """The federation of this cell, with its results under ``folder``."""
        members = {site: {"role": "train"} for site in self.trained} | {
            site: {"role": "evaluate"} for site in self.tested
        }
        raw = {
            "name": "study",
            "task": self.task,
            "encoder": dict(self.encoder),
            "output_dir": str(folder),
            "members": members,
            "seed": self.seed,
            **self.method.sections,
        }
        raw["rounds"] = {**self.method.sections.get("rounds", {}), "quorum": 1}
        return parse(raw, FederationConfig, folder / "federation.yaml")


def methods_of(plan: StudyPlan, hospitals: Hospitals, path: Path) -> list[Method]:
    """Every method of a plan, one for each value of a list.

    Raises
    ------
    UserError
        ``study-method`` for a key that no federation has, or that a study sets itself, and for an unknown site;
        ``study-reference`` where a comparison names no method.
    """
    if any(_lists(plan.base, ())):
        raise UserError("study-method", f"{path}: 'base' holds a list. Lists of values belong to a method.")
    found = [each for name, method in plan.methods.items() for each in _resolved(plan, name, method, hospitals, path)]
    names = {method.name for method in found}
    names |= {f"{method.name}.random_memory" for method in found if method.random_memory}
    if len({method.name for method in found}) < len(found):
        raise UserError("study-method", f"{path}: two methods come to the same name. Rename one of them.")
    asked = [*plan.references, *(name for target in plan.targets for name in (target.method, target.reference))]
    local = {"every_local", "median_local"} if plan.local_sites else set()
    if RELEASED in plan.references:
        raise UserError(
            "study-reference", f"{path}: '{RELEASED}' belongs to 'targets': it is no method to compare with."
        )
    for name in asked:
        if name not in names | local | {RELEASED}:
            raise UserError(
                "study-reference",
                f"{path}: '{name}' stands in 'references' or 'targets' but is no method of the study; there are "
                f"{', '.join(sorted(names | local))}.",
            )
    return found


def cells_of(plan: StudyPlan, hospitals: Hospitals, path: Path, sites: Mapping[str, str]) -> list[Cell]:
    """All models of a study; ``sites``: a digest of each site's own file, where there are such files."""
    methods = methods_of(plan, hospitals, path)
    shared = (dict(hospitals.encoder), plan.version, dict(sites))
    cells: list[Cell] = []
    for seed, task in itertools.product(plan.seeds, plan.tasks):
        for method in methods:
            for split, trained, tested in _folds(plan, hospitals):
                cells.append(Cell(method, task, seed, split, trained, tested, *shared))
        if plan.local_sites:
            (local,) = _resolved(plan, LOCAL, StudyMethod(**plan.local), hospitals, path)
            for site in hospitals.training:
                others = tuple(one for one in hospitals.training if one != site)
                cells.append(Cell(local, task, seed, None, (site,), (*others, *hospitals.external), *shared))
    return cells


def _folds(plan: StudyPlan, hospitals: Hospitals) -> Iterator[tuple[SplitKind, tuple[str, ...], tuple[str, ...]]]:
    if "leave_one_site_out" in plan.split_kinds:
        for left in hospitals.training:
            yield "leave_one_site_out", tuple(site for site in hospitals.training if site != left), (left,)
    if "external" in plan.split_kinds and hospitals.external:
        yield "external", hospitals.training, hospitals.external


def _resolved(plan: StudyPlan, name: str, method: StudyMethod, hospitals: Hospitals, path: Path) -> list[Method]:
    without = hospitals.without_genomics if method.without_genomics is None else tuple(method.without_genomics)
    for site in without:
        if site not in hospitals.training:
            raise UserError(
                "study-method",
                f"{path}: methods.{name}.without_genomics names '{site}', which is no training site; they are "
                f"{', '.join(hospitals.training)}.",
            )
    raw = {"sections": _merged(plan.base, method.overrides), "cohort": dict(method.cohort)}
    found = []
    for suffix, point in _points(raw):
        full = f"{name}{suffix}"
        cohort = _cohort(plan.cohort, point["cohort"], full, path)
        one = Method(
            full,
            method.pooled,
            method.genomics,
            tuple(sorted(without)),
            method.random_memory,
            point["sections"],
            cohort,
        )
        _check(one, plan, hospitals, path)
        found.append(one)
    return found


def _cohort(base: StudyCohort, changes: Mapping[str, Any], name: str, path: Path) -> StudyCohort:
    known = {"gain", "stain", "warp", "mean_patches"}
    stray = sorted(set(changes) - known)
    if stray:
        raise UserError(
            "study-method",
            f"{path}: methods.{name}.cohort: '{stray[0]}' cannot differ between methods; "
            f"{', '.join(sorted(known))} can.",
        )
    raw = base.model_dump() | dict(changes)
    return _parsed(raw, StudyCohort, path, f"methods.{name}.cohort")


def _check(method: Method, plan: StudyPlan, hospitals: Hospitals, path: Path) -> None:
    """Whether the federation of this method can be."""
    for key in SET_BY_STUDY:
        if key in method.sections:
            raise UserError(
                "study-method",
                f"{path}: methods.{method.name}: the study sets '{key}' itself. Remove it there or in 'base'.",
            )
    probe = Cell(
        method,
        plan.tasks[0],
        plan.seeds[0],
        "external",
        hospitals.training,
        hospitals.external,
        hospitals.encoder,
        1,
        {},
    )
    try:
        privacy = probe.config(path.parent).privacy
    except UserError as mistake:
        sentence = mistake.sentence.replace(f"{path.parent / 'federation.yaml'}: ", "")
        raise UserError("study-method", f"{path}: methods.{method.name}: {sentence}") from None
    if privacy.share == "memory" and method.random_memory:
        raise UserError(
            "study-method",
            f"{path}: methods.{method.name}: random_memory scores the shared weights again, and privacy.share: memory "
            "shares none. Remove one of the two.",
        )


def _parsed(raw: dict[str, Any], model: type[StudyCohort], path: Path, where: str) -> StudyCohort:
    try:
        return parse(raw, model, path)
    except UserError as mistake:
        raise UserError("study-method", mistake.sentence.replace(f"{path}: ", f"{path}: {where}: ")) from None


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The second over the first, section by section to the bottom."""
    both = dict(first)
    for key, value in second.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def _points(raw: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every choice of one value from each list, with what it adds to the name."""
    places = list(_lists(raw, ()))
    for values in itertools.product(*(place[1] for place in places)):
        point = json.loads(json.dumps(raw))
        for (keys, _), value in zip(places, values, strict=True):
            inner = point
            for key in keys[:-1]:
                inner = inner[key]
            inner[keys[-1]] = value
        yield "".join(f"_{value}" for value in values), point


def _lists(raw: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Sequence[Any]]]:
    for key, value in raw.items():
        if isinstance(value, Mapping):
            yield from _lists(value, (*above, key))
        elif isinstance(value, list):
            yield (*above, key), value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
