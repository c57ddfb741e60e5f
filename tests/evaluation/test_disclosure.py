from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.errors import UserError
from momkd_fl.evaluation.disclosure import must_be_publishable, publishable
from momkd_fl.evaluation.report import write_report
from momkd_fl.evaluation.results import Cohort, Results, TaskCohort
from momkd_fl.evaluation.results_file import to_json


@st.composite
def _cohorts(draw: st.DrawFn) -> Cohort:
    """A consistent cohort with exact counts, small ones included."""
    excluded = draw(st.dictionaries(st.sampled_from(["equivocal", "missing", "unknown"]), st.integers(0, 25)))
    labelled = draw(st.integers(0, 60))
    positives = draw(st.integers(0, labelled))
    patients = labelled + sum(excluded.values())
    task = TaskCohort(labelled, positives / labelled if labelled else None, dict(excluded))
    genomic = draw(st.integers(0, patients))
    return Cohort("a", "train", patients, patients + draw(st.integers(0, 30)), genomic, {"PR": task})


def _derivable(cohort: Cohort) -> list[float]:
    """Every number of patients that follows from the cohort by arithmetic."""
    task = cohort.tasks["PR"]
    found: list[float] = [c for c in (cohort.patients, cohort.with_genomics, task.labelled) if isinstance(c, int)]
    found += [count for count in task.excluded.values() if isinstance(count, int)]
    if isinstance(cohort.patients, int):
        found += [cohort.patients - c for c in (cohort.with_genomics, task.labelled) if isinstance(c, int)]
    if isinstance(task.labelled, int) and task.prevalence is not None:
        found += [task.labelled * task.prevalence, task.labelled * (1 - task.prevalence)]
    if isinstance(task.labelled, int) and isinstance(cohort.patients, int):
        hidden = [count for count in task.excluded.values() if not isinstance(count, int)]
        known = sum(count for count in task.excluded.values() if isinstance(count, int))
        if hidden:
            found.append((cohort.patients - task.labelled - known) / len(hidden))
    return found


@given(_cohorts())
def test_no_count_from_1_to_10_follows_from_what_is_published(cohort: Cohort) -> None:
    assert not [number for number in _derivable(publishable(cohort)) if 0.5 < number < 10.5]


@given(_cohorts())
def test_publishing_twice_changes_nothing_and_large_counts_stay(cohort: Cohort) -> None:
    once = publishable(cohort)
    assert publishable(once) == once
    if not [number for number in _derivable(cohort) if 0.5 < number < 10.5] and cohort.slides not in range(1, 11):
        assert once == cohort


def test_each_way_to_derive_a_small_count_is_closed() -> None:
    whole = Cohort("a", "train", 100, 120, 100, {"PR": TaskCohort(80, 0.5, {"missing": 20})})
    assert publishable(whole) == whole
    assert publishable(replace(whole, with_genomics=95)).patients is None
    assert publishable(replace(whole, tasks={"PR": TaskCohort(95, 0.5)})).patients is None
    several = replace(whole, tasks={"PR": TaskCohort(80, 0.5, {"missing": 15, "equivocal": 5})})
    assert publishable(several).patients is None
    assert publishable(several).tasks["PR"].excluded == {"missing": 15, "equivocal": "<11"}
    assert publishable(replace(whole, tasks={"PR": TaskCohort(80, 0.05)})).tasks["PR"].prevalence is None
    assert publishable(replace(whole, tasks={"PR": TaskCohort(80, 0.95)})).tasks["PR"].prevalence is None


def test_a_federation_that_discloses_is_neither_written_nor_shown(
    results: Results, federation_results: Results, tmp_path: Path
) -> None:
    must_be_publishable(results)  # a simulation may hold exact counts
    must_be_publishable(federation_results)
    leaking = replace(results, origin="federation")
    with pytest.raises(UserError, match="results-small-count") as caught:
        to_json(leaking)
    assert "ashford" in caught.value.sentence
    with pytest.raises(UserError, match="results-small-count"):
        write_report(leaking, {}, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
