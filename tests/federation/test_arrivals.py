"""What arrives at the coordinator: every value that patients cannot have given is refused, and nothing they could."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.config.base import parse
from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.evaluation.results import Cohort, TaskCohort
from momkd_fl.federation.arrivals import (
    check_evaluation,
    check_histogram,
    check_selection,
    check_start,
    check_sums,
    check_train,
)
from momkd_fl.federation.messages import EvaluateReply, Parcel, TrainReply
from momkd_fl.federation.private_plan import private_plan, slots_release
from momkd_fl.privacy.mechanism import Release, contribution, noisy_sum
from momkd_fl.privacy.statistics import MemoryStatistics, moment_sums, scaling_sums, selection_sums

CLASSES, SLOTS, WIDTH = 2, 2, 3
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, CLASSES, 30)
PROBABILITIES = RANDOM.dirichlet([1, 1], 30)


def config(**sections: Any) -> FederationConfig:
    raw = {
        "name": "trial",
        "task": "PR",
        "encoder": {"name": "synthetic-16", "dim": 16},
        "output_dir": "out",
        "members": {"north": {"role": "train"}},
        "rounds": {"quorum": 1},
    }
    return parse({**raw, **sections}, FederationConfig, Path("trial.yaml"))


PRIVATE = config(
    privacy={"memory": "local", "epsilon": 8.0},
    training={"standardise": "none"},
    memory={"assignment": "hard", "slots": SLOTS, "genomics": False},
    model={"memory_dim": 8},
)


@contextmanager
def refused(*words: str, code: str = "message-value") -> Iterator[None]:
    with pytest.raises(UserError) as caught:
        yield
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.sentence


def memory_sums(count: float = 5.0) -> dict[str, np.ndarray]:
    directions = np.random.default_rng(1).normal(size=(CLASSES, SLOTS, WIDTH))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return {
        "sums.histology": (count * directions).astype(np.float32),
        "counts.histology": np.full((CLASSES, SLOTS), count, np.float32),
    }


def trained(arrays: dict[str, Any] | None = None, **body: Any) -> Parcel[TrainReply]:
    said = {
        "seconds": {"train": 1.0},
        "losses": {"classification": 0.4},
        "loss_sum": [3.0, 4.0],
        "monitors": {"effective_patches": 9.0},
    }
    held = {"scores": ScoreHistogram.of(LABELS, PROBABILITIES).to_arrays(), "statistics": memory_sums()}
    return Parcel("train", "run-1", 3, TrainReply(**(said | body)), {**held, **(arrays or {})})


def evaluated(arrays: dict[str, Any] | None = None, **body: Any) -> Parcel[EvaluateReply]:
    cohort = Cohort("north", "train", 30, 31, None, {"PR": TaskCohort(30, 0.5, {})})
    said = {"loss_sum": [3.0, 4.0], "cohort": cohort}
    held = {"scores": ScoreHistogram.of(LABELS, PROBABILITIES).to_arrays()}
    return Parcel("evaluate", "run-1", 3, EvaluateReply(**(said | body)), held if arrays is None else arrays)


def test_an_honest_answer_passes() -> None:
    check_train("north", trained(), config(), None)
    check_evaluation("north", evaluated(), config(), "train")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss_sum", [1.0]),
        ("loss_sum", [1.0, 2.0, 3.0]),
        ("loss_sum", [-1.0, 2.0]),
        ("loss_sum", [1e300, 2.0]),
        ("losses", {"classification": 1e300}),
        ("losses", {f"x{'y' * n}": 0.0 for n in range(40)}),
        ("losses", {"patient p17": 0.0}),
        ("monitors", {"Effective": 1.0}),
        ("monitors", {"effective_patches": -1e9}),
        ("seconds", {"train": -1.0}),
        ("seconds", {"train": 1e9}),
    ],
)
def test_a_body_that_no_site_says(field: str, value: Any) -> None:
    with refused("north", field):
        check_train("north", trained(**{field: value}), config(), None)


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "seconds"), ({"seconds": {}}, "losses"), ({"seconds": {}, "losses": {}}, "loss_sum")],
)
def test_measurements_in_a_run_that_makes_none(body: dict[str, Any], field: str) -> None:
    with refused("north", field, "no measurement"):
        check_train("north", trained(**body), PRIVATE, None)
    with refused("loss_sum", "no measurement"):
        check_evaluation("north", evaluated({}), PRIVATE, "train")


def scores(change: Any) -> dict[str, np.ndarray]:
    counts = ScoreHistogram.of(LABELS, PROBABILITIES).to_arrays()["counts"].copy()
    change(counts)
    return {"counts": counts}


@pytest.mark.parametrize("value", [-1.0, 0.5, 1e7, 1e38])
def test_scores_that_count_no_patients(value: float) -> None:
    def change(counts: np.ndarray) -> None:
        counts[0, 1, 7] = value

    with refused("north", "scores.counts"):
        check_train("north", trained({"scores": scores(change)}), config(), None)
    with refused("north", "scores.counts"):
        check_evaluation("north", evaluated({"scores": scores(change)}), config(), "train")


def test_score_columns_that_hold_other_patients() -> None:
    probabilities = RANDOM.dirichlet([1, 1, 1], 30)
    counts = ScoreHistogram.of(RANDOM.integers(0, 3, 30), probabilities).to_arrays()
    check_histogram(counts, "site north: scores")
    counts["counts"][1, 2, 0] += 1
    with refused("one score column"):
        check_histogram(counts, "site north: scores")


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({}, "message-shape"),
        ({"scores": {"counts": np.zeros((1, 2, 7), np.float32)}}, "message-shape"),
        ({"scores": {"counts": np.zeros((1, 2, 100), np.float32), "more": np.zeros(1, np.float32)}}, "message-shape"),
    ],
)
def test_scores_of_another_shape(arrays: dict[str, Any], code: str) -> None:
    with refused("site north", code=code):
        check_evaluation("north", evaluated(arrays), config(), "train")


@pytest.mark.parametrize(("site", "role"), [("south", "train"), ("north", "evaluate")])
def test_a_cohort_of_somebody_else(site: str, role: str) -> None:
    with refused(f"site {site}: cohort", "north"):
        check_evaluation(site, evaluated(), config(), role)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("counts.histology", (0, 0), -1.0),
        ("counts.histology", (0, 0), 2e6),
        ("counts.histology", (1, 1), 4.5),
        ("sums.histology", (1, 1, 0), 6.0),
        ("sums.histology", (0, 0, 2), -3e38),
    ],
)
def test_memory_sums_that_no_patients_add_up_to(name: str, place: tuple[int, ...], value: float) -> None:
    sums = memory_sums()
    check_sums(sums, "site north: statistics", None)
    sums[name][place] = value
    with refused("site north", name.split(".")[1]):
        check_sums(sums, "site north: statistics", None)
    with refused("site north"):
        check_train("north", trained({"statistics": sums}), config(), None)


@given(seed=st.integers(0, 2**32 - 1), patients=st.integers(0, 60))
def test_no_honest_noisy_release_is_refused(seed: int, patients: int) -> None:
    sigma = private_plan(PRIVATE).sigma
    assert sigma is not None
    release, random = slots_release(PRIVATE, sigma, genomic=False), np.random.default_rng(seed)
    classes, slots, dim = release.parts["histology"]

    def patient() -> MemoryStatistics:
        sums, counts = np.zeros((classes, slots, dim)), np.zeros((classes, slots))
        place, direction = (random.integers(classes), random.integers(slots)), random.normal(size=dim)
        sums[place], counts[place] = direction / np.linalg.norm(direction), 1.0
        return MemoryStatistics({"histology": sums}, {"histology": counts})

    vectors = (contribution([patient()], release) for _ in range(patients))
    noisy = noisy_sum(vectors, release, lambda n: random.bytes(n)).to_arrays()
    check_sums(noisy, "site north: statistics", release)


@pytest.mark.parametrize("change", [("sums.histology", 1e4), ("counts.histology", -1e4), ("counts.histology", 3e6)])
def test_noise_excuses_no_impossible_sum(change: tuple[str, float]) -> None:
    release = Release({"histology": (CLASSES, SLOTS, WIDTH)}, 3.0)
    sums = memory_sums()
    sums[change[0]].reshape(-1)[0] = change[1]
    with refused("site north"):
        check_sums(sums, "site north: statistics", release)


@given(seed=st.integers(0, 2**32 - 1), patients=st.integers(1, 40), scale=st.floats(0.01, 30))
def test_honest_sums_of_genes_pass(seed: int, patients: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    values = scale * random.normal(size=(patients, 6)) + random.normal(size=6)
    labels = random.integers(0, CLASSES, patients)
    check_start("north", "scaling", scaling_sums(values), None)
    check_start("north", "moments", moment_sums(values), None)
    check_selection("north", selection_sums(values, labels, np.array(["north"] * patients), CLASSES))


@pytest.mark.parametrize(
    ("step", "name", "value"),
    [
        ("scaling", "n", -1.0),
        ("scaling", "n", 2.5),
        ("scaling", "n", 1e9),
        ("scaling", "sum", 1e6),
        ("scaling", "sum", -3e38),
        ("scaling", "sum_sq", -1e6),
        ("scaling", "sum_sq", 1e30),
        ("moments", "sum", 1e6),
        ("moments", "outer", 1e30),
        ("moments", "outer", -1e5),
        ("select", "sum", 1e9),
        ("select", "sum_sq", -1.0),
        ("select", "balance", 1e9),
        ("select", "balance", -50.0),
    ],
)
def test_sums_of_genes_that_no_patients_have(step: str, name: str, value: float) -> None:
    values = np.random.default_rng(2).normal(size=(12, 4))
    hospitals = np.array(["north"] * 12)
    sums = {
        "scaling": scaling_sums(values),
        "moments": moment_sums(values),
        "select": selection_sums(values, np.arange(12) % CLASSES, hospitals, CLASSES),
    }[step]
    sums[name].reshape(-1)[0] = value
    with refused("site north", name):
        if step == "select":
            check_selection("north", sums)
        else:
            check_start("north", step, sums, None)
