"""Which counts of a hospital's cohort may be in shared results: none from 1 to 10, nor what lets one be derived.

In a live federation every cohort passes :func:`publishable` at its site; results that hold a count which would not
have passed are neither written nor read nor shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from momkd_fl.errors import UserError
from momkd_fl.evaluation.results import MINIMUM_CELL, Cohort, Count, Results, TaskCohort


def publishable(cohort: Cohort) -> Cohort:
    """The cohort as it may leave its site.

    Counts from 1 to 10 become ``"<11"``. The prevalence is withheld where positives or negatives are that few. The
    number of patients is withheld where subtracting another count from it would give so few patients: without a
    label, without genomics, or excluded for a reason.
    """
    tasks = {name: _publishable_task(task) for name, task in cohort.tasks.items()}
    patients = _cell(cohort.patients)
    exposed = any(_is_small(left) for left in _left_over(patients, cohort, tasks))
    return replace(
        cohort,
        patients=None if exposed else patients,
        slides=_cell(cohort.slides),
        with_genomics=_cell(cohort.with_genomics),
        tasks=tasks,
    )


def must_be_publishable(results: Results) -> None:
    """Refuse a federation's results that disclose a small count.

    Raises
    ------
    UserError
        ``results-small-count``, naming the site.
    """
    if results.origin != "federation":
        return
    for cohort in results.cohorts:
        if publishable(cohort) != cohort:
            raise UserError(
                "results-small-count",
                f"Site {cohort.site}: its cohort discloses a count from 1 to {MINIMUM_CELL - 1}, directly or by "
                "subtraction. Nothing was written. Update momkd-fl at that site: the site must withhold such counts.",
            )


def _publishable_task(task: TaskCohort) -> TaskCohort:
    prevalence = task.prevalence
    if prevalence is not None and task.labelled is not None:
        labelled = task.labelled if isinstance(task.labelled, int) else 0
        positives = round(prevalence * labelled)
        if labelled < MINIMUM_CELL or _is_small(positives) or _is_small(labelled - positives):
            prevalence = None
    excluded = {reason: _cell(count) for reason, count in task.excluded.items()}
    return TaskCohort(_cell(task.labelled), prevalence, excluded)


def _left_over(patients: Count, cohort: Cohort, tasks: dict[str, TaskCohort]) -> Iterator[int]:
    """Numbers of patients that a reader could get by subtracting from ``patients``."""
    if not isinstance(patients, int):
        return
    if isinstance(cohort.with_genomics, int):
        yield patients - cohort.with_genomics
    for task in tasks.values():
        if not isinstance(task.labelled, int):
            continue
        yield patients - task.labelled
        if any(not isinstance(count, int) for count in task.excluded.values()):
            yield 1  # with all but the small reasons known, their sum is too


def _cell(count: Count) -> Count:
    return "<11" if isinstance(count, int) and _is_small(count) else count


def _is_small(count: int) -> bool:
    return 0 < count < MINIMUM_CELL
