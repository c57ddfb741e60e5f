"""Preflight of a site's own files: everything that would stop or spoil a run, found before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from momkd_fl.config.site import SiteConfig
from momkd_fl.data.bags import BagHeader, find_bags, read_header
from momkd_fl.data.check_values import Progress, duplicates, scan_values
from momkd_fl.data.features import agreed_features
from momkd_fl.data.genomics import Expression, read_expression, rows_by_patient
from momkd_fl.data.linkage import check_linkage
from momkd_fl.data.orphans import find_orphans
from momkd_fl.data.slides import SlideLinks, read_links
from momkd_fl.data.splits import read_splits, stratified_split
from momkd_fl.data.store import Store
from momkd_fl.data.tables import Labels, read_labels
from momkd_fl.errors import UserError

Status = Literal["PASS", "WARN", "FAIL"]

_OF_LINKAGE: dict[str, Status] = {"pass": "PASS", "warn": "WARN", "unknown": "WARN", "fail": "FAIL"}
_SHOWN = 8
_VALIDATION_FRACTION = 0.2  # the federation's default; the site's file does not know its choice


@dataclass(frozen=True)
class Finding:
    """One line of the preflight, for the site's own screen: what was looked at, how it is, and what to do.

    Attributes
    ----------
    mend : str
        What to do; empty for a PASS, and where the sentence says it already.
    code : str
        Stable code of the mistake (docs/errors.md); empty where nothing is wrong.
    """

    check: str
    status: Status
    sentence: str
    mend: str = ""
    code: str = ""


@dataclass
class _Site:
    """What the checks have read so far; each leaves what the next one needs."""

    config: SiteConfig
    progress: Progress
    values: bool
    labels: dict[str, Labels] = field(default_factory=dict)
    bags: dict[str, Path] = field(default_factory=dict)
    links: SlideLinks | None = None
    slides: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    headers: list[BagHeader] = field(default_factory=list)
    expression: Expression | None = None
    genomic: set[str] = field(default_factory=set)

    def has_classes(self, task: str) -> bool:
        """Whether two classes of the task have patients with slides: a site may train one task and lack another."""
        by_patient = self.labels[task].by_patient
        return len({by_patient[patient] for patient in self.slides if patient in by_patient}) > 1


def check_data(site: SiteConfig, progress: Progress, *, values: bool = True) -> tuple[list[Finding], list[BagHeader]]:
    """Look at everything the site's file names, and go on after what is wrong.

    Parameters
    ----------
    progress : callable
        Told (what, done, total) while files are read.
    values : bool
        Read every feature file whole once, for values that are no numbers; what was read before and has not
        changed since is remembered in ``state_dir``.

    Returns
    -------
    findings in the order of the checks, and the headers of the readable feature files
    """
    seen = _Site(site, progress, values)
    steps: list[tuple[str, Callable[[_Site], Iterator[Finding]]]] = [
        ("labels", _labels),
        ("features", _features),
        ("patients", _patients),
        ("encoder", _encoder),
        ("values", _values),
        ("store", _store),
        ("class counts", _class_counts),
        ("genomics", _genomics),
        ("linkage", _linkage),
    ]
    findings = [found for name, step in steps for found in _guarded(name, step, seen)]
    return findings, seen.headers


def _guarded(name: str, step: Callable[[_Site], Iterator[Finding]], seen: _Site) -> list[Finding]:
    found: list[Finding] = []
    try:
        found += step(seen)
    except UserError as mistake:
        found += [Finding(name, "FAIL", line, code=mistake.code) for line in mistake.sentence.splitlines()]
    return found


def _labels(seen: _Site) -> Iterator[Finding]:
    """Each task's labels by class, and what was excluded, by value."""
    data = seen.config.data
    for name, task in data.tasks.items():
        try:
            labels = read_labels(data.labels, task)
        except UserError as mistake:
            yield from (Finding("labels", "FAIL", line, code=mistake.code) for line in mistake.sentence.splitlines())
            continue
        seen.labels[name] = labels
        yield Finding(
            "labels", "PASS", f"{name}: {_by_class(labels.by_patient)}; excluded: {_counted(labels.excluded)}."
        )


def _features(seen: _Site) -> Iterator[Finding]:
    """Feature files found, and those whose header is wrong."""
    seen.bags = find_bags(seen.config.data.features)
    total = len(seen.bags)
    for number, path in enumerate(seen.bags.values(), 1):
        seen.progress("reading headers", number, total)
        try:
            seen.headers.append(read_header(path, seen.config.data.format))
        except UserError as mistake:
            yield Finding("features", "FAIL", mistake.sentence, code=mistake.code)
    if seen.headers:
        formats = Counter(header.format for header in seen.headers)
        patches = sum(header.patches for header in seen.headers)
        yield Finding(
            "features", "PASS", f"{len(seen.headers)} of {total} files read ({_counted(formats)}), {patches:,} patches."
        )


def _patients(seen: _Site) -> Iterator[Finding]:
    """Patients with and without slides, slides without patients; row by row."""
    if not seen.labels or not seen.bags:
        return
    labels = next(iter(seen.labels.values()))  # every task reads one table, so the patients are the same
    seen.links = read_links(seen.config.data, labels.patients, seen.bags)
    orphans = find_orphans(labels, seen.links, seen.bags)
    readable = {header.path for header in seen.headers}
    for patient in labels.patients:
        paths = tuple(seen.bags[slide] for slide in seen.links.by_patient.get(patient, ()) if slide in seen.bags)
        paths = tuple(path for path in paths if path in readable)
        if paths:
            seen.slides[patient] = paths
    if not seen.slides:
        yield Finding(
            "patients", "FAIL", f"No patient of {seen.config.data.labels.path} has a readable feature file.",
            "Compare the table's ids with the files' names.", "no-patients",
        )  # fmt: skip
    else:
        yield Finding(
            "patients", "PASS",
            f"{len(seen.slides)} of {len(labels.patients)} patients have slides (linked by {seen.links.rule}).",
        )  # fmt: skip
    for note in labels.notes:
        yield Finding("labels", "WARN", note, "Nothing, where this is what you meant.")
    for note in seen.links.notes:
        yield Finding("patients", "WARN", note, "Give a slide table (data.slides) where the ids do not say it.")
    for line in orphans.lines(_SHOWN):
        yield Finding("patients", "WARN", line, "Correct the ids, or leave it: what has no partner is left out.")


def _encoder(seen: _Site) -> Iterator[Finding]:
    """One encoder, dimension and patch size over all slides of the site's patients."""
    if not seen.slides:
        return
    linked = {path for paths in seen.slides.values() for path in paths}
    features = agreed_features([header for header in seen.headers if header.path in linked], seen.config.data)
    yield Finding("encoder", "PASS", f"All slides: {features.encoder}, {features.dim} dimensions.")
    if features.patch_um is None:
        yield Finding(
            "patch size", "WARN", "Neither the files nor data.patch_um say how large a patch is.",
            "Set data.patch_um (pixels times µm per pixel), so that the sites can compare it.", "patch-um-unknown",
        )  # fmt: skip
    else:
        yield Finding("patch size", "PASS", f"Patches of {features.patch_um:g} µm.")


def _values(seen: _Site) -> Iterator[Finding]:
    """Values that are no numbers, slides that are all zero, and one slide under two names."""
    if not seen.headers:
        return
    if seen.values:
        problems, fresh = scan_values(seen.headers, seen.config, seen.progress)
        yield from (Finding("values", "FAIL", problem.sentence, code=problem.code) for problem in problems)
        if not problems:
            yield Finding(
                "values", "PASS", f"All values are numbers ({fresh} files read now, the rest unchanged since)."
            )
    owner = {path: patient for patient, paths in seen.slides.items() for path in paths}
    for one, other in duplicates(sorted(owner)):
        apart = owner[one] != owner[other]
        yield Finding(
            "duplicates", "FAIL" if apart else "WARN",
            f"{one} and {other} hold the same bytes, but belong to "
            + ("two patients; a split between them would test on what was trained on." if apart else "one patient."),
            "Remove one of the files.", "bag-same-bytes",
        )  # fmt: skip


def _store(seen: _Site) -> Iterator[Finding]:
    """The ingested store, where one is named: there, and up to date."""
    if seen.config.data.store is None:
        return
    store = Store(seen.config.data.store)
    fresh = sum(store.find(path) is not None for path in seen.bags.values())
    stale = len(seen.bags) - fresh
    yield Finding(
        "store", "WARN" if stale else "PASS", f"{fresh} of {len(seen.bags)} slides are in the store, unchanged.",
        "Run 'momkd ingest' again; until then the others are read from their files." if stale else "",
    )  # fmt: skip


def _class_counts(seen: _Site) -> Iterator[Finding]:
    """Patients with slides of each class against the minimum, and by split."""
    site = seen.config
    for name, labels in seen.labels.items():
        if not seen.slides:
            return
        labelled = {patient: labels.by_patient[patient] for patient in seen.slides if patient in labels.by_patient}
        classes = len(site.data.tasks[name].values_by_class)
        counts = Counter(labelled.values())
        short = [label for label in range(classes) if counts[label] < site.data.minimum_per_class]
        sentence = f"{name}, patients with slides: {_by_class(labelled, classes)}"
        if site.role == "train" and labelled:
            fixed = site.data.splits
            split = read_splits(fixed, labelled) if fixed else stratified_split(labelled, (), _VALIDATION_FRACTION, 0)
            trained = {patient: label for patient, label in labelled.items() if split[patient] == "train"}
            sentence += f"; for training: {_by_class(trained, classes)}"
        if not short:
            yield Finding("class counts", "PASS", f"{sentence}.")
            continue
        yield Finding(
            "class counts", "FAIL" if site.role == "train" and not any(map(seen.has_classes, seen.labels)) else "WARN",
            f"{sentence}; data.minimum_per_class is {site.data.minimum_per_class}.",
            "Add patients, correct the task's values, or leave this task out at this site.", "class-too-small",
        )  # fmt: skip


def _genomics(seen: _Site) -> Iterator[Finding]:
    """Expression: layout, scale, and how many patients it covers."""
    genomics = seen.config.data.genomics
    if genomics is None:
        yield Finding("genomics", "PASS", "None: this site trains from histology and the shared memory.")
        return
    patients = {patient for labels in seen.labels.values() for patient in labels.patients}
    expression = seen.expression = read_expression(genomics, patients or None)
    seen.genomic = set(rows_by_patient(expression, seen.slides))
    sentence = (
        f"{len(expression.genes):,} genes ({expression.layout}; {genomics.scale}); "
        f"{len(seen.genomic)} of {len(seen.slides)} patients with slides have expression"
    )
    if seen.genomic:
        yield Finding("genomics", "PASS", f"{sentence}.")
    else:
        mend = "Compare the expression table's patient ids with those of the label table."
        yield Finding("genomics", "FAIL", f"{sentence}.", mend, "expression-no-patient")
    for note in expression.notes:
        if f"'{expression.layout}'" in note:
            continue  # said above
        yield Finding("genomics", "WARN", note, "Nothing, where this is what you meant.")


def _linkage(seen: _Site) -> Iterator[Finding]:
    """Whether genes agree with their own proteins' labels, as they do when ids are not scrambled."""
    if seen.expression is None or not seen.labels:
        return
    patients = sorted({patient for labels in seen.labels.values() for patient in labels.patients})
    statuses: dict[str, Mapping[str, int]] = {name: labels.by_patient for name, labels in seen.labels.items()}
    for found in check_linkage(seen.expression, patients, statuses):
        status = _OF_LINKAGE[found.status]
        mend = "" if status == "PASS" else "Compare some patients' ids in both tables with the laboratory's records."
        yield Finding("linkage", status, found.sentence, mend, "" if status == "PASS" else "expression-scrambled")


def _by_class(labelled: Mapping[str, int], classes: int | None = None) -> str:
    counts = Counter(labelled.values())
    return ", ".join(f"{counts[label]} of class {label}" for label in range(classes or max(counts, default=0) + 1))


def _counted(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} '{value}'" for value, count in sorted(counts.items())) or "none"
