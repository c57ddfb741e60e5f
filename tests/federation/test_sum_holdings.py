"""A holder adds something: what a site declares for secure sums is what its gate lets through, or it says so."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.policy import SmallNumbers
from momkd_fl.data.cache import BagCache
from momkd_fl.data.cohort import Cohort, Patient
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.federation.contract import Outgoing
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.egress import Gate, simulation_gate
from momkd_fl.federation.messages import TrainReply
from momkd_fl.federation.publications import Publications
from momkd_fl.federation.simulate import COORDINATOR
from momkd_fl.federation.small_numbers import suppressed
from momkd_fl.federation.sum_holdings import holdings, withheld
from momkd_fl.federation.sum_parts import METRICS, Part, flat_answer, mean_metrics, train_parts
from momkd_fl.federation.watch import unwatched
from momkd_fl.privacy.statistics import summed

CLASSES, SLOTS, DIM, GENES = 2, 3, 4, 5
CONFIG = FederationConfig.model_validate(
    {
        "name": "r",
        "task": "PR",
        "encoder": {"name": "e", "dim": 8},
        "output_dir": "o",
        "members": {"ash": {}, "birch": {}, "cedar": {}},
        "aggregation": "secagg",
    }
)
SHAPES = {
    "update": {"histology": (6,), "genomics": (3,)},
    "statistics": {
        f"{what}.{modality}": (CLASSES, SLOTS, DIM)[: 3 if what == "sums" else 2]
        for modality in ("histology", "genomics")
        for what in ("sums", "counts")
    },
}
PARTS = train_parts(CONFIG, SHAPES, released=True)
PATIENTS = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.booleans(), st.sampled_from(["train", "validation"])), max_size=60
)
RULES = st.builds(
    SmallNumbers,
    minimum_cell=st.integers(1, 8),
    minimum_per_class=st.integers(1, 8),
    minimum_per_slot=st.integers(1, 8),
    scores=st.sampled_from(["withheld", "cells", "exact"]),
)


def cohort_of(patients: list[tuple[int, bool, Any]]) -> Cohort:
    found = tuple(
        Patient(f"p{row:03d}", (), label, np.ones(GENES, np.float32) if genes else None, split)
        for row, (label, genes, split) in enumerate(patients)
    )
    genes = ("A",) if any(patient.genes is not None for patient in found) else ()
    return Cohort(
        site="ash", role="train", task="PR", classes=CLASSES, patients=found, exclusions={}, dropped={}, encoder="e",
        dim=8, patch_um=None, panel=(), genes_available=genes, gene_scale=None, neighbours=0, standardise="none",
        scaling={}, cache=BagCache(0),
    )  # fmt: skip


def answer_of(cohort: Cohort, rng: np.random.Generator, hard: bool) -> tuple[TrainReply, dict[str, Any]]:
    """What such a site would answer to ``train``: its patients' sums, counts and scores, and any weights."""

    def sums(modality: str, patients: list[Patient]) -> Any:
        weights = np.eye(SLOTS)[rng.integers(0, SLOTS, len(patients))]
        if not hard:
            weights = rng.dirichlet(np.ones(SLOTS), len(patients)).reshape(len(patients), SLOTS)
        labels = np.array([patient.label for patient in patients], np.int64)
        return summed(modality, rng.normal(size=(len(patients), DIM)), weights, labels, CLASSES)

    training, validated = cohort.labelled("train"), cohort.labelled("validation")
    statistics = sums("histology", training)
    update = {"histology": rng.normal(size=6).astype(np.float32)}
    if cohort.genes_available:
        update["genomics"] = rng.normal(size=3).astype(np.float32)
        known = [patient for patient in training if patient.genes is not None]
        if known:
            statistics += sums("genomics", known)
    labels = [patient.label for patient in validated]
    scores = ScoreHistogram.of(labels, rng.dirichlet((1.0, 1.0), len(labels)).reshape(-1, CLASSES))
    losses = [float(labels.count(c)) for c in range(CLASSES)]
    body = TrainReply(seconds={}, losses={"classification": 1.0}, loss_sum=losses, monitors={})
    return body, {"update": update, "statistics": statistics.to_arrays(), "scores": scores.to_arrays()}


def gated(
    cohort: Cohort, rules: SmallNumbers, rng: np.random.Generator, hard: bool, publications: Publications | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flat answer before and after the gate's second step."""
    body, arrays = answer_of(cohort, rng, hard)
    outgoing = Outgoing("r", 1, "train", "PR", body, arrays, ())
    kept = suppressed(outgoing, "validation", rules, publications or Publications(None))
    return flat_answer(body, arrays), flat_answer(*kept)


def listed(gates: frozenset[str]) -> list[Part]:
    return [part for part in PARTS if part.gate is not None and part.gate in gates]


@given(patients=PATIENTS, rules=RULES, hard=st.booleans(), seed=st.integers(0, 999))
def test_no_segment_that_a_joined_site_is_listed_for_is_zeros_by_suppression(
    patients: list[Any], rules: SmallNumbers, hard: bool, seed: int
) -> None:
    cohort = cohort_of(patients)
    made, kept = gated(cohort, rules, np.random.default_rng(seed), hard)
    held = holdings(cohort, CONFIG, rules)
    lacking = withheld(PARTS, [part.name for part in listed(held)], made, kept)
    for part in listed(held - lacking):
        assert np.any(part.of(kept)) or not np.any(part.of(made)), part.name
        if part.source.startswith("statistics.") or part.gate == "validation":
            assert np.any(part.of(kept)), "of enough patients, sums, counts, scores and losses are numbers"
    for gate in lacking:
        assert any(part.source not in kept or not np.any(part.of(kept)) for part in listed(frozenset({gate})))


@given(patients=PATIENTS, rules=RULES, seed=st.integers(0, 999))
def test_what_is_declared_is_let_through_but_for_small_slots(
    patients: list[Any], rules: SmallNumbers, seed: int
) -> None:
    """With no least number in a slot and no earlier tables the declaration is exact, in both directions."""
    rules = rules.model_copy(update={"minimum_per_slot": 1})
    cohort = cohort_of(patients)
    made, kept = gated(cohort, rules, np.random.default_rng(seed), hard=True)
    held = holdings(cohort, CONFIG, rules) - {"genomics", "test"}
    full = {
        part.gate
        for part in PARTS
        if part.gate not in (None, "genomics") and part.source in kept and np.any(part.of(kept))
    }
    assert full == held
    assert withheld(PARTS, [part.name for part in listed(held)], made, kept) == frozenset()


def test_scores_that_an_earlier_table_would_give_away_are_told_as_withheld() -> None:
    """One validation patient fewer than in an earlier run: the declaration cannot know, so the site says so."""
    rules = SmallNumbers(minimum_cell=5, minimum_per_class=5, minimum_per_slot=1)
    publications, rng = Publications(None), np.random.default_rng(0)
    patients = [(c, False, split) for split in ("train", "validation") for c in (0, 1) for _ in range(9)]
    made, kept = gated(cohort_of(patients), rules, rng, True, publications)
    names = [part.name for part in listed(frozenset({"validation", "class.0"}))]
    assert withheld(PARTS, names, made, kept) == frozenset()
    fewer = cohort_of(patients[:-1])
    assert "validation" in holdings(fewer, CONFIG, rules)
    made, kept = gated(fewer, rules, rng, True, publications)
    assert withheld(PARTS, names, made, kept) == {"validation"}


def test_a_private_run_tells_of_no_class() -> None:
    private = CONFIG.model_copy(update={"privacy": CONFIG.privacy.model_copy(update={"memory": "local"})})
    cohort = cohort_of([(0, True, "train")] * 30)
    assert holdings(cohort, private, SmallNumbers()) == {"genomics"}


# --- in a run --------------------------------------------------------------------------------------------------------

SITES = dict.fromkeys(("ash", "birch", "cedar"), "train")


@pytest.fixture(scope="module")
def strict(in_process: Any, tmp_path_factory: pytest.TempPathFactory, task: None) -> Any:
    """Two rounds of three sites, one of whose contracts lets no slot of fewer than 500 patients leave."""
    made = in_process(
        SITES,
        tmp_path_factory.mktemp("strict"),
        hospitals=hospitals(tmp_path_factory.mktemp("three")),
        rounds={"count": 2, "quorum": 3, "deadline_s": 5.0},
        aggregation="secagg",
        memory={"slots": 1, "source": "labels", "mode": "momentum", "genomics": False, "init_iterations": 1},
    )
    trained = dict.fromkeys(SITES, 0)
    for site, participant in made.participants.items():
        counted(participant, site, trained)
    small = simulation_gate("ash").policy.small_numbers.model_copy(update={"minimum_per_slot": 500})
    gate = Gate(simulation_gate("ash").policy.model_copy(update={"small_numbers": small}), None)
    grid = made.grid({"ash": gate})
    said: list[str] = []
    watch = unwatched(made.config)
    watch.say = lambda sentence, *_, **__: said.append(sentence)  # type: ignore[method-assign]
    keys = made.keys[COORDINATOR]
    outcome = Coordinator(made.config, grid, watch, threading.Event(), lambda: {}, keys=keys).run()
    return outcome, said, trained, grid


def hospitals(folder: Path) -> Path:
    from momkd_fl.synth.cohort import SynthSite, write_consortium

    write_consortium(
        folder, tuple(SynthSite(site, 24) for site in SITES), seed=4, dim=16, mean_patches=16, tasks=("PR",)
    )
    return folder


def counted(participant: Any, site: str, trained: dict[str, int]) -> None:
    work = participant.train

    def train(request: Any) -> Any:
        trained[site] += 1
        return work(request)

    participant.train = train


def test_a_site_that_withholds_a_class_stays_in_the_round_without_it(strict: Any) -> None:
    outcome, said, trained, grid = strict
    assert [record.states for record in outcome.state.history] == [dict.fromkeys(SITES, "trained")] * 2
    assert trained == dict.fromkeys(SITES, 2), "an answer that was not masked yet waits for the next list"
    assert sum("ash withholds class.0, class.1" in sentence for sentence in said) == 1
    told = [(kind, site, str(reply.content["envelope"]["body"])) for kind, site, reply in grid.replies]
    joins = [body for kind, site, body in told if (kind, site) == ("join", "ash")]
    assert '{"withholds":["class.0","class.1"]}' in joins
    assert [record.moved_share for record in outcome.state.history] == [0.0, 0.0], "of two holders no sum is seen"


def test_a_mean_over_fewer_than_three_sites_is_not_in_a_record() -> None:
    total = {"metrics": np.array([[6.0, 3.0], [4.0, 2.0], *([[0.0, 0.0]] * (len(METRICS) - 2))])}
    assert mean_metrics(total)["losses"] == {"classification": 2.0}
