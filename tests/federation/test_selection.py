"""A learnt panel: what pooled patients would give, from training patients alone."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from momkd_fl.config.base import load
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.cohort import Patient
from momkd_fl.errors import UserError
from momkd_fl.federation.answering import answer
from momkd_fl.federation.client import payload_bytes
from momkd_fl.federation.comparators import Shelf, comparator_arms, run_arm
from momkd_fl.federation.coordinator import Coordinator, Outcome
from momkd_fl.federation.messages import SELECT, Parcel, Select, SelectReply, ask, open_request
from momkd_fl.federation.selection import strength, strongest
from momkd_fl.federation.watch import unwatched
from momkd_fl.privacy.statistics import selection_sums

MEMBERS = {"ash": "train", "birch": "train", "cedar": "train", "holly": "evaluate"}
REAL_DATA = Path(os.environ.get("MOMKD_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
LEARNT = {"genes": {"panel": "learnt", "count": 8}}
ROUNDS = {"count": 1, "quorum": 2, "deadline_s": 5.0, "gather_s": 0.01}

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def consortium_of(
    seed: int, counts: Sequence[int], genes: int, classes: int, batch: float = 3.0
) -> tuple[Floats, Ints, Ints]:
    """Values, labels and hospital of patients; hospitals differ in level and in prevalence."""
    rng = np.random.default_rng(seed)
    hospital = np.repeat(np.arange(len(counts)), counts)
    prevalence = rng.dirichlet(np.ones(classes), len(counts))
    labels = np.array([rng.choice(classes, p=prevalence[site]) for site in hospital], np.int64)
    values = rng.standard_normal((len(labels), genes)) + batch * rng.standard_normal((len(counts), genes))[hospital]
    return values, labels, hospital


def added(values: Floats, labels: Ints, hospital: Ints, classes: int) -> dict[str, Floats]:
    """The sites' answers, summed."""
    parts = [
        selection_sums(values[hospital == one], labels[hospital == one], hospital[hospital == one], classes)
        for one in np.unique(hospital)
    ]
    return {name: np.sum([part[name].astype(np.float64) for part in parts], axis=0) for name in parts[0]}


def residual(design: Floats, values: Floats) -> Floats:
    return np.asarray(np.square(values - design @ np.linalg.lstsq(design, values, rcond=None)[0]).sum(axis=0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(4, 25), min_size=1, max_size=5), st.integers(2, 4))
def test_the_strength_is_that_of_least_squares_over_all_patients_put_together(
    seed: int, counts: list[int], classes: int
) -> None:
    values, labels, hospital = consortium_of(seed, counts, genes=7, classes=classes)
    total = added(values, labels, hospital, classes)
    level, group = np.eye(len(counts))[hospital], np.eye(classes)[labels]
    without, full = residual(level, values), residual(np.hstack([level, group]), values)
    floor = max(0.1 * float(np.median(full)), 1e-4 * float(np.median(without)))
    np.testing.assert_allclose(strength(total), (without - full) / np.maximum(full, floor), rtol=2e-2, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 20), min_size=2, max_size=5))
def test_sites_one_by_one_or_pooled_on_one_machine_give_the_same_sums(seed: int, counts: list[int]) -> None:
    values, labels, hospital = consortium_of(seed, counts, genes=5, classes=2)
    pooled = selection_sums(values, labels, hospital.astype(np.str_), 2)
    for name, value in added(values, labels, hospital, 2).items():
        np.testing.assert_allclose(pooled[name], value, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_a_level_that_only_one_hospital_has_changes_nothing(seed: int, shift: float) -> None:
    values, labels, hospital = consortium_of(seed, (20, 30), genes=6, classes=2)
    moved = values + shift * (hospital == 1)[:, None]
    np.testing.assert_allclose(
        strength(added(moved, labels, hospital, 2)), strength(added(values, labels, hospital, 2)), rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize("seed", range(5))
def test_planted_genes_are_found_and_a_batch_shifted_gene_is_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hospital = np.repeat([0, 1, 2], 60)
    labels = (rng.random(180) < np.array([0.2, 0.5, 0.8])[hospital]).astype(np.int64)
    values = rng.standard_normal((180, 300))
    values[:, :10] += 1.2 * labels[:, None]
    values[:, 10] += 10.0 * hospital  # high where positives are frequent, and in no other way
    values[:, 11] = 4.0  # never varies
    values[:, 12] = 1e-6 * rng.standard_normal(180)  # hardly varies
    names = [f"G{gene:03d}" for gene in range(300)]
    assert strongest(names, strength(added(values, labels, hospital, 2)), 10) == tuple(names[:10])
    uncentred = strength(added(values, labels, np.zeros_like(hospital), 2))
    assert names[10] in strongest(names, uncentred, 11), "without centring the shifted gene would be taken"


def test_equals_are_taken_by_symbol_and_the_candidates_order_is_kept() -> None:
    assert strongest(["D", "B", "A", "C"], np.array([1.0, 2.0, 1.0, 1.0]), 3) == ("B", "A", "C")
    assert (strength({"sum": np.zeros((2, 3)), "sum_sq": np.zeros(3), "balance": np.eye(2)}) == 0).all()


def test_a_hospital_of_one_class_tells_how_genes_vary_and_nothing_of_classes() -> None:
    values, labels, hospital = consortium_of(3, (12,), genes=4, classes=2)
    sums = selection_sums(values, np.zeros_like(labels), hospital, 2)
    assert (sums["balance"] == 0).all()
    np.testing.assert_allclose(sums["sum"], 0, atol=1e-5)
    assert (sums["sum_sq"] > 0).all()
    nobody = selection_sums(values[:0], labels[:0], hospital[:0], 2)
    assert [nobody[name].shape for name in ("sum", "sum_sq", "balance")] == [(2, 4), (4,), (2, 2)]
    assert not any(value.any() for value in nobody.values())


def run(consortium: Any, grid: Any = None) -> Outcome:
    grid = grid or consortium.grid()
    outcome = Coordinator(consortium.config, grid, unwatched(consortium.config), threading.Event(), lambda: {}).run()
    assert outcome is not None
    return outcome


def altered(consortium: Any, site: str, change: Callable[[Patient], Patient]) -> None:
    """Change what a site's files say of each patient."""
    participant = consortium.participants[site]
    read = participant.load

    def load(federation: Any) -> Any:
        cohort, fingerprint = read(federation)
        return dataclasses.replace(cohort, patients=tuple(map(change, cohort.patients))), fingerprint

    participant.load = load


def scrambled(splits: set[str]) -> Callable[[Patient], Patient]:
    """Patients of some splits with the other label and another expression."""

    def change(patient: Patient) -> Patient:
        if patient.split not in splits or patient.label is None:
            return patient
        genes = None if patient.genes is None else patient.genes[::-1] * np.float32(1 - 2 * patient.label)
        return dataclasses.replace(patient, label=1 - patient.label, genes=genes)

    return change


@pytest.fixture(scope="module")
def learnt(in_process) -> tuple[Outcome, Any]:
    consortium = in_process(MEMBERS, rounds=ROUNDS, **LEARNT)
    grid = consortium.grid()
    return run(consortium, grid), grid


def test_training_sites_with_genomics_are_asked_once_and_no_one_else(learnt) -> None:
    outcome, grid = learnt
    assert len(outcome.state.panel) == 8
    assert [site for kind, _, site in grid.delivered if kind == "select"] == ["ash", "cedar"]
    order = [kind for kind, _, site in grid.delivered if site == "ash"]
    assert order[:3] == ["hello", "select", "plan"]


def test_labels_and_genes_of_validation_and_test_patients_leave_the_panel_as_it_is(learnt, in_process) -> None:
    outcome, _ = learnt
    consortium = in_process(MEMBERS, rounds=ROUNDS, **LEARNT)
    for site in MEMBERS:
        altered(consortium, site, scrambled({"validation", "test"}))
    assert run(consortium).state.panel == outcome.state.panel


def test_training_labels_do_have_a_say_so_the_test_above_can_fail(learnt, in_process) -> None:
    outcome, _ = learnt
    consortium = in_process(MEMBERS, rounds=ROUNDS, **LEARNT)
    for site in MEMBERS:
        altered(consortium, site, scrambled({"train"}))
    assert run(consortium).state.panel != outcome.state.panel


def test_a_held_out_site_s_genes_have_no_say_even_where_it_has_them(in_process) -> None:
    members = {"ash": "train", "birch": "train", "cedar": "evaluate"}
    one, other = (in_process(members, rounds=ROUNDS, **LEARNT) for _ in range(2))
    altered(other, "cedar", scrambled({"train", "validation", "test"}))
    grid = one.grid()
    assert run(one, grid).state.panel == run(other).state.panel
    assert ("select", 0, "cedar") not in grid.delivered
    cedar = one.participants["cedar"]
    with pytest.raises(UserError) as caught:
        cedar.select(Parcel("select", cedar._plan.run, 0, Select(candidates=["ESR1"]), {}))
    assert caught.value.code == "role-mismatch"


def test_what_a_site_answers_are_its_sums_and_nothing_of_one_patient(learnt, in_process) -> None:
    consortium = in_process(MEMBERS, rounds=ROUNDS, **LEARNT)
    run(consortium)
    ash = consortium.participants["ash"]
    cohort, _ = ash.load(consortium.config)
    body = Select(candidates=list(cohort.genes_available))
    reply, arrays = ash.select(Parcel("select", ash._plan.run, 0, body, {}))
    genes = len(cohort.genes_available)
    assert reply.model_dump() == {}
    assert {name: value.shape for name, value in arrays["statistics"].items()} == {
        "sum": (2, genes),
        "sum_sq": (genes,),
        "balance": (2, 2),
    }
    train = [patient for patient in cohort.labelled("train") if patient.genes is not None]
    values = np.stack([patient.genes for patient in train]).astype(np.float64)
    centred = values - values.mean(axis=0)
    positive = np.array([patient.label == 1 for patient in train])
    np.testing.assert_allclose(arrays["statistics"]["sum"][1], centred[positive].sum(axis=0), atol=1e-3)
    with pytest.raises(UserError, match="NOGENE") as caught:
        ash.select(Parcel("select", ash._plan.run, 0, Select(candidates=["ESR1", "NOGENE"]), {}))
    assert caught.value.code == "genes-missing"


def test_a_site_that_was_not_greeted_tells_nothing(in_process) -> None:
    ash = in_process(MEMBERS, rounds=ROUNDS, **LEARNT).participants["ash"]
    with pytest.raises(UserError) as caught:
        ash.select(Parcel("select", "unheard-of", 0, Select(candidates=["ESR1"]), {}))
    assert caught.value.code == "plan-missing"


def test_the_candidates_may_be_a_named_panel(in_process) -> None:
    genes = {"panel": "learnt", "count": 6, "candidates": "odx21"}
    panel = run(in_process(MEMBERS, rounds=ROUNDS, genes=genes)).state.panel
    assert len(panel) == 6
    everyone = run(in_process(MEMBERS, rounds=ROUNDS, genes={**genes, "count": 500})).state.panel
    assert set(panel) < set(everyone)


def test_a_site_that_does_not_answer_stops_the_start_with_its_name(in_process) -> None:
    consortium = in_process(MEMBERS, rounds=ROUNDS, **LEARNT)
    grid = consortium.grid()
    grid.answers = lambda kind, number, site: (kind, site) != ("select", "cedar")
    with pytest.raises(UserError, match="site cedar") as caught:
        run(consortium, grid)
    assert caught.value.code == "selection-failed"


def test_one_class_in_all_training_patients_with_genes_is_said(in_process) -> None:
    consortium = in_process(MEMBERS, rounds=ROUNDS, **LEARNT)
    for site in ("ash", "cedar"):
        altered(
            consortium,
            site,
            lambda patient: dataclasses.replace(patient, label=0 if patient.split == "train" else patient.label),
        )
    with pytest.raises(UserError, match=r"genes\.panel") as caught:
        run(consortium)
    assert caught.value.code == "selection-one-class"


def test_the_panel_survives_a_restart_without_being_asked_for_again(in_process, tmp_path) -> None:
    consortium = in_process(MEMBERS, root=tmp_path, rounds={**ROUNDS, "count": 2}, **LEARNT)
    stop, grid = threading.Event(), consortium.grid()

    def answers(kind: str, number: int, site: str) -> bool:
        if kind == "train" and number == 2:
            stop.set()
        return True

    grid.answers = answers
    watch = unwatched(consortium.config)
    assert Coordinator(consortium.config, grid, watch, stop, lambda: {}).run() is None
    again = consortium.grid()
    assert len(run(consortium, again).state.panel) == 8
    assert "select" not in {kind for kind, _, _ in again.delivered}


@pytest.mark.usefixtures("task")
def test_the_reply_costs_four_bytes_a_gene_and_class_and_four_a_gene() -> None:
    sums = selection_sums(np.ones((4, 1000)), np.array([0, 1, 0, 1]), np.zeros(4), 2)
    request = ask(SELECT, Select(candidates=[f"GENE{n}" for n in range(1000)]), 1, run="r", round=0, arrays={})
    reply = answer(SELECT, request, open_request(request, SELECT), SelectReply(), {"statistics": sums})
    assert 12_000 < payload_bytes(reply) < 12_600


def test_data_pooled_on_one_machine_give_the_federation_s_panel_and_a_site_alone_its_own(
    learnt, in_process, hospitals, tmp_path
) -> None:
    outcome, _ = learnt
    base = in_process(MEMBERS, rounds=ROUNDS, **LEARNT).config
    sites = {site: load(hospitals / site / "site.yaml", SiteConfig) for site in MEMBERS}
    shelf = Shelf(sites, torch.device("cpu"))
    arms = {arm.name: arm for arm in comparator_arms(base)}
    panels = {}
    for name in ("pooled", "local-ash", "local-birch"):
        config = arms[name].config(base, tmp_path / name)
        trained = run_arm(arms[name], base, shelf, tmp_path / name, unwatched(config), threading.Event())
        assert trained is not None
        panels[name] = trained.state.panel
    assert panels["pooled"] == outcome.state.panel
    assert len(panels["local-ash"]) == 8
    assert panels["local-ash"] != outcome.state.panel
    assert panels["local-birch"] == ()  # it has no genomics


@pytest.mark.real
@pytest.mark.parametrize(("task", "known"), [("HER2", {"ERBB2", "GRB7"}), ("PR", {"PGR", "ESR1"})])
def test_the_genes_that_pathology_measures_come_first_over_six_real_hospitals(task: str, known: set[str]) -> None:
    folder = REAL_DATA / "tcga-brca"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    labels = pd.read_csv(folder / "labels.csv", dtype={"patient": str, "tss": str}, index_col="patient")
    genes = pd.read_csv(folder / "pam50_log2rsem.csv.gz", index_col=0)
    rows = labels.loc[labels.index.intersection(genes.index)].dropna(subset=[task])
    rows = rows[rows["tss"].isin(rows["tss"].value_counts().index[:6])]
    values = genes.loc[rows.index].to_numpy(np.float64)
    total = added(values, rows[task].to_numpy(np.int64), rows["tss"].to_numpy(np.str_), 2)
    assert set(strongest(list(genes.columns), strength(total), 2)) == known
