"""What few patients are stays at the site: in one message, and in what two messages differ by."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.config.policy import SmallNumbers
from momkd_fl.errors import UserError
from momkd_fl.evaluation.disclosure import publishable
from momkd_fl.evaluation.results import Cohort, TaskCohort
from momkd_fl.federation.contract import Outgoing
from momkd_fl.federation.messages import InitialiseReply, SelectReply
from momkd_fl.federation.publications import Publications, published_cohort
from momkd_fl.federation.small_numbers import in_cells, suppressed, without_small_classes
from momkd_fl.privacy.accountant import GaussianReleases
from momkd_fl.privacy.statistics import selection_sums

WHOLE = Cohort("ash", "train", 100, 120, 60, {"PR": TaskCohort(80, 0.5, {"equivocal": 20})})


def cohort(patients: int, labelled: int, positive: int, genomics: int, **excluded: int) -> Cohort:
    prevalence = positive / labelled if labelled else None
    return Cohort("ash", "train", patients, patients + 20, genomics, {"PR": TaskCohort(labelled, prevalence, excluded)})


@given(st.lists(st.integers(0, 9), min_size=4, max_size=30), st.integers(2, 11))
def test_cells_hold_nobody_or_enough_and_lose_no_patient(bins: list[int], minimum: int) -> None:
    counts = np.array([[bins]], np.int64)
    if 0 < counts.sum() < minimum:
        counts[0, 0, 0] += minimum
    cells = in_cells(counts, minimum)
    assert cells.sum() == counts.sum()
    assert not ((cells > 0) & (cells < minimum)).any()


def test_bins_with_enough_stay_where_they_are() -> None:
    counts = np.zeros((1, 1, 10), np.int64)
    counts[0, 0, [2, 7]] = 11, 30
    assert np.array_equal(in_cells(counts, 11), counts)


def test_a_class_with_a_small_slot_goes_whole() -> None:
    counts = np.array([[20.0, 12.0], [30.0, 3.0]], np.float32)
    statistics = {"counts.histology": counts, "sums.histology": np.ones((2, 2, 4), np.float32)}
    kept = without_small_classes(statistics, SmallNumbers())
    assert kept["counts.histology"].tolist() == [[20.0, 12.0], [0.0, 0.0]]
    assert kept["sums.histology"][0].all()
    assert not kept["sums.histology"][1].any()
    assert kept["sums.histology"].dtype == np.float32


def test_without_a_minimum_a_patient_s_share_of_a_slot_leaves() -> None:
    """Nine patients over eight slots: no slot holds a whole one, and an open contract withholds nothing."""
    counts = np.array([[9 / 8] * 4 + [7 / 8] * 4 + [1.0]], np.float32)
    statistics = {"counts.g": counts, "sums.g": np.ones((1, 9, 4), np.float32)}
    kept = without_small_classes(statistics, SmallNumbers(minimum_per_class=1, minimum_per_slot=1))
    assert np.array_equal(kept["counts.g"], counts)
    assert not without_small_classes(statistics, SmallNumbers(minimum_per_class=1))["counts.g"].any()
    assert not without_small_classes(statistics, SmallNumbers(minimum_per_slot=1))["counts.g"].any(), "9 in the class"


def test_an_empty_slot_is_not_a_small_one() -> None:
    counts = np.array([[20.0, 0.0]], np.float32)
    kept = without_small_classes({"counts.g": counts, "sums.g": np.ones((1, 2, 4), np.float32)}, SmallNumbers())
    assert np.array_equal(kept["counts.g"], counts)


def outgoing(body: Any, charges: Any = (), **statistics: np.ndarray) -> Outgoing:
    return Outgoing("r", 0, "initialise", "PR", body, {"statistics": statistics}, charges)


def test_a_record_with_noise_is_not_looked_at() -> None:
    few = {"counts.histology": np.full((2, 2), 1.0, np.float32), "sums.histology": np.ones((2, 2, 4), np.float32)}
    rules = SmallNumbers()
    _, plain = suppressed(outgoing(InitialiseReply(), **few), "validation", rules, Publications(None))
    noisy = outgoing(InitialiseReply(), (GaussianReleases(2.0),), **few)
    _, kept = suppressed(noisy, "validation", rules, Publications(None))
    assert not plain["statistics"]["sums.histology"].any()
    assert kept["statistics"] == few


@pytest.mark.parametrize(("patients", "stopped"), [(10, True), (11, False)])
def test_sums_of_genes_over_few_are_refused(patients: int, stopped: bool) -> None:
    sums = {"n": np.array([patients], np.float32), "sum": np.ones(3, np.float32)}
    check_genes(outgoing(InitialiseReply(), **sums), stopped)


@pytest.mark.parametrize(("positive", "stopped"), [(9, True), (30, False)])
def test_sums_to_choose_genes_are_refused_where_a_class_is_small(positive: int, stopped: bool) -> None:
    labels = np.array([1] * positive + [0] * 40, np.int64)
    values = np.random.default_rng(0).normal(size=(len(labels), 3))
    sums = selection_sums(values, labels, np.array(["a"] * len(labels)), 2)
    check_genes(outgoing(SelectReply(), **sums), stopped)


def test_a_contract_that_calls_nobody_few_lets_a_single_patient_s_sums_go() -> None:
    sums = selection_sums(np.ones((3, 2)), np.array([0, 0, 1], np.int64), np.array(["a"] * 3), 2)
    rules = SmallNumbers(minimum_per_class=1)
    suppressed(outgoing(SelectReply(), **sums), "validation", rules, Publications(None))


def check_genes(message: Outgoing, stopped: bool) -> None:
    if not stopped:
        suppressed(message, "validation", SmallNumbers(), Publications(None))
        return
    with pytest.raises(UserError) as caught:
        suppressed(message, "validation", SmallNumbers(), Publications(None))
    assert caught.value.code == "few-patients"


def test_a_cohort_without_small_numbers_leaves_whole() -> None:
    assert published_cohort(WHOLE, 11, Publications(None)) == WHOLE


def test_one_patient_more_is_not_told_by_two_cohorts() -> None:
    """The difference of two runs' counts would be one patient: whatever would tell it is withheld the second time."""
    publications = Publications(None)
    before = published_cohort(WHOLE, 11, publications)
    after = published_cohort(cohort(101, 81, 41, 61, equivocal=20), 11, publications)
    assert before == WHOLE
    assert after.patients is None
    assert after.with_genomics is None
    assert after.tasks["PR"].labelled is None
    assert after.tasks["PR"].prevalence is None
    control = published_cohort(cohort(101, 81, 41, 61, equivocal=20), 11, Publications(None))
    assert control.patients == 101, "on its own it may leave"


def test_what_left_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "publications.json"
    published_cohort(WHOLE, 11, Publications.create(path))
    assert path.stat().st_mode & 0o077 == 0
    after = published_cohort(dataclasses.replace(WHOLE, patients=101), 11, Publications(path))
    assert after.patients is None


counts = st.integers(0, 40)


@given(counts, counts, counts, counts, counts)
def test_no_small_number_can_be_had_by_adding_and_subtracting(
    positive: int, negative: int, equivocal: int, missing: int, genomics: int
) -> None:
    labelled, patients = positive + negative, positive + negative + equivocal + missing
    whole = cohort(patients, labelled, positive, min(genomics, patients), equivocal=equivocal, missing=missing)
    sent = published_cohort(whole, 11, Publications(None))
    assert publishable(sent) == sent, "the coordinator would refuse it otherwise"
    task = sent.tasks["PR"]
    known = {name: n for name, n in task.excluded.items() if isinstance(n, int)}
    derived = [sent.with_genomics, task.labelled, *known.values()]
    if isinstance(sent.patients, int):
        if isinstance(sent.with_genomics, int):
            derived.append(sent.patients - sent.with_genomics)
        if isinstance(task.labelled, int):
            derived.append(sent.patients - task.labelled - sum(known.values()))
        derived.append(sent.patients - sum(known.values()) if len(known) == 2 else 0)
    if isinstance(task.labelled, int) and task.prevalence is not None:
        positives = round(task.prevalence * task.labelled)
        derived += [positives, task.labelled - positives]
    assert not [n for n in derived if isinstance(n, int) and 0 < n < 11]
