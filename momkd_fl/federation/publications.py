"""The gate's memory of which counts left: over all runs, so that no difference between two of them tells a few."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from momkd_fl.errors import UserError
from momkd_fl.evaluation.disclosure import publishable
from momkd_fl.evaluation.results import Cohort, Count, TaskCohort
from momkd_fl.federation.vault import CLEAR, Vault
from momkd_fl.privacy.suppression import NODES_MAX, Publication, publish
from momkd_fl.security.seal import Sealed

_COLUMNS_MAX = NODES_MAX - 3
KIND, RUN = "publications", "all"


class Publications:
    """Every table of counts that left, exact, with what was withheld of it; a file of the site's own.

    Parameters
    ----------
    path : Path or None
        None keeps them in memory only (a simulation).
    vault : Vault
        How the file lies on disk.

    Raises
    ------
    UserError
        ``publications-unreadable``, and as :class:`Vault`.
    """

    def __init__(self, path: Path | None, vault: Vault = CLEAR) -> None:
        self._path, self._vault = path, vault
        self._tables: dict[str, list[Publication]] = {}
        if path is not None:
            self._tables = _read(path, vault)

    @classmethod
    def create(cls, path: Path, vault: Vault = CLEAR) -> Publications:
        """Begin with none, where there is no file yet."""
        if not vault.holds(path):
            vault.write(path, b"{}\n", Sealed(KIND, RUN, 0))
        return cls(path, vault)

    def publish(self, table: str, counts: Sequence[int], minimum: int) -> Publication:
        """One row of counts and their total, as they may leave beside all earlier ones; durable when it returns."""
        key = f"{table}/{len(counts)}"
        earlier = self._tables.get(key, [])
        found = publish(np.array([counts], np.int64), earlier, minimum, column_totals=False)
        if not any(_same(found, each) for each in earlier):
            self._tables[key] = [*earlier, found]
            if self._path is not None:
                number = sum(len(each) for each in self._tables.values())
                content = json.dumps(_plain(self._tables), indent=1).encode()
                self._vault.write(self._path, content, Sealed(KIND, RUN, number))
        return found


def published_cohort(cohort: Cohort, minimum: int, publications: Publications) -> Cohort:
    """An exact cohort as it may leave: small counts, their complements, and small differences to earlier ones go.

    Three tables share counts: patients by label or reason of exclusion, labelled ones by class, patients by genomics.
    A count leaves where all of them let it, and a total that one table withholds has no complete parts in another.
    """
    if minimum <= 1 or _without_counts(cohort):
        return cohort
    patients, slides, genomics = (_exact(n) for n in (cohort.patients, cohort.slides, cohort.with_genomics))
    by_genomics = publications.publish("genomics", [genomics, patients - genomics], minimum).cells()[0]
    total = cohort.patients if by_genomics[2] is not None else None
    tasks = {}
    for name, task in cohort.tasks.items():
        tasks[name], kept = _published_task(name, task, patients, minimum, publications)
        total = total if kept else None
    all_slides = publications.publish("slides", [slides], minimum).cells()[0][0]
    if total is None:  # its parts must not give it away
        tasks = {name: replace(task, labelled=None, prevalence=None) for name, task in tasks.items()}
    done = replace(cohort, patients=total, slides=all_slides, with_genomics=by_genomics[0], tasks=tasks)
    return publishable(done)


def _without_counts(cohort: Cohort) -> bool:
    """Whether nothing is told, as in runs in which no count may leave."""
    return {cohort.patients, cohort.slides, cohort.with_genomics} == {None} and not cohort.tasks


def _published_task(
    name: str, task: TaskCohort, patients: int, minimum: int, publications: Publications
) -> tuple[TaskCohort, bool]:
    """The task's counts as they may leave, and whether the number of all patients may."""
    labelled, reasons = _exact(task.labelled), sorted(task.excluded)
    if len(reasons) + 1 > _COLUMNS_MAX:
        return TaskCohort(None, None, dict.fromkeys(reasons)), False
    excluded = [_exact(task.excluded[reason]) for reason in reasons]
    rest = patients - labelled - sum(excluded)
    table = [labelled, *excluded] if rest == 0 else [labelled, *excluded, rest]
    row = publications.publish(f"labels/{name}/{'/'.join(reasons)}", table, minimum).cells()[0]
    positive = round((task.prevalence or 0.0) * labelled)
    classes = publications.publish(f"classes/{name}", [positive, labelled - positive], minimum).cells()[0]
    kept = row[0] if classes[2] is not None else None
    shown = task.prevalence if kept is not None and None not in classes[:2] else None
    hidden: dict[str, Count] = dict(zip(reasons, row[1:], strict=False))
    return TaskCohort(kept, shown, hidden), row[-1] is not None and (kept is not None or row[0] is None)


def _exact(count: Count) -> int:
    if not isinstance(count, int):
        raise UserError(
            "cohort-not-exact", "The cohort came to the gate with counts withheld already, so they cannot be checked."
        )
    return count


def _same(one: Publication, other: Publication) -> bool:
    return np.array_equal(one.counts, other.counts) and np.array_equal(one.withheld, other.withheld)


def _plain(tables: dict[str, list[Publication]]) -> dict[str, Any]:
    return {
        name: [{"counts": each.counts.tolist(), "withheld": each.withheld.tolist()} for each in published]
        for name, published in tables.items()
    }


def _read(path: Path, vault: Vault) -> dict[str, list[Publication]]:
    try:
        raw = json.loads(vault.read(path, KIND) or b"")
        return {
            name: [Publication(np.array(o["counts"], np.int64), np.array(o["withheld"], bool)) for o in published]
            for name, published in raw.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            "publications-unreadable",
            f"{path}: which counts have left before cannot be read, so that no count may leave beside them. Put the "
            "newest copy of the file back.",
        ) from None
