"""A site's private releases: one patient more moves them by that patient's own vector and by nothing else."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch

from momkd_fl.errors import UserError
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.private_release import PrivateSite
from momkd_fl.federation.public_space import embed, public_statistics
from momkd_fl.federation.site_statistics import memory_statistics
from momkd_fl.federation.watch import unwatched
from momkd_fl.federation.work import Work
from momkd_fl.model.memory import Memory
from momkd_fl.privacy.accountant import PoissonSteps
from momkd_fl.privacy.statistics import MemoryStatistics

MEMBERS = {"ash": "train", "cedar": "train"}
MEMORY = {"slots": 2, "assignment": "hard", "anchor_iterations": 2, "anchor_dim": 8}
TRAINING = {"learning_rate": 1e-3, "precision": "fp32", "standardise": "none", "local_steps": 4}
ROUNDS = {"count": 2, "quorum": 2, "deadline_s": 5.0, "gather_s": 0.01}
PRIVACY = {"memory": "local", "epsilon": 8.0, "releases": 1, "site_patients": 2000}
PARTS = ("means", "anchors", "slots", "public slots")


def run_of(in_process: Callable[..., Any], **privacy: Any) -> tuple[Any, Any]:
    consortium = in_process(MEMBERS, memory=MEMORY, training=TRAINING, rounds=ROUNDS, privacy={**PRIVACY, **privacy})
    watch = unwatched(consortium.config)
    outcome = Coordinator(consortium.config, consortium.grid(), watch, threading.Event(), lambda: {}).run()
    assert outcome is not None
    return consortium, outcome


@pytest.fixture(scope="module")
def site(in_process: Callable[..., Any], task: None) -> tuple[Work, Memory]:
    """The work of a genomic site after a private run, and the last memory."""
    consortium, outcome = run_of(in_process)
    work = consortium.participants["ash"]._work
    assert isinstance(work, Work)
    return work, Memory.from_arrays(outcome.state.memory, work.space)


def released(part: str, work: Work, memory: Memory, patients: list[Any], seed: int = 3) -> MemoryStatistics:
    config = work.config
    if part == "public slots":
        config = config.model_copy(update={"privacy": config.privacy.model_copy(update={"share": "memory"})})
    private = PrivateSite(config, random.Random(seed).randbytes)
    if part == "means":
        return private.gene_means(patients, len(work.cohort.panel))
    if part == "anchors":
        assert memory.anchors is not None
        return private.anchors(memory.anchors.double().numpy(), memory, work.packer, patients)
    return private.slots(work.model, memory, work.packer, patients, torch.device("cpu"), genomic=True)


def difference(one: MemoryStatistics, other: MemoryStatistics) -> dict[str, np.ndarray]:
    return {
        f"{kind}.{name}": value - getattr(other, kind)[name]
        for kind in ("sums", "counts")
        for name, value in getattr(one, kind).items()
    }


@pytest.mark.parametrize("part", PARTS)
def test_one_patient_more_moves_a_release_by_its_own_vector_exactly(part: str, site: tuple[Work, Memory]) -> None:
    """Same noise, with and without the patient: what is left is that patient alone, to the last grid step."""
    work, memory = site
    patients = work.cohort.labelled("train")
    everyone = released(part, work, memory, patients)
    for left_out in (0, 4):
        without = released(part, work, memory, patients[:left_out] + patients[left_out + 1 :])
        alone = difference(released(part, work, memory, [patients[left_out]]), released(part, work, memory, []))
        for name, moved in difference(everyone, without).items():
            np.testing.assert_allclose(moved, alone[name], atol=1e-12, err_msg=name)
        by_part = [np.linalg.norm(value) for name, value in alone.items() if name.startswith("sums")]
        assert max(by_part) <= 1 + 1e-9


def test_control_balanced_assignment_lets_one_patient_move_the_others(site: tuple[Work, Memory]) -> None:
    work, memory = site
    memory = dataclasses.replace(memory, anchors=None)
    patients = work.cohort.labelled("train")

    def moved(how: Literal["hard", "balanced"]) -> float:
        """How far the others' sums are from themselves once the first patient is there, and its own taken out."""

        def sums(people: list[Any]) -> np.ndarray:
            found = memory_statistics(work.model, memory, work.packer, people, torch.device("cpu"), how, genomics=False)
            return found.sums["histology"]

        return float(np.linalg.norm(sums(patients) - sums(patients[1:]) - sums(patients[:1])))

    assert moved("hard") < 1e-4
    assert moved("balanced") > 0.05


def test_every_release_is_charged_and_taken_once(site: tuple[Work, Memory]) -> None:
    work, memory = site
    private = PrivateSite(work.config)
    patients = work.cohort.labelled("train")[:2]
    private.gene_means(patients, len(work.cohort.panel))
    private.slots(work.model, memory, work.packer, patients, torch.device("cpu"), genomic=True)
    assert private.take_charges() == (private.plan.charge("means"), private.plan.charge("slots"))
    assert private.take_charges() == ()


def test_noise_comes_from_the_operating_system_unless_an_audit_says_otherwise(site: tuple[Work, Memory]) -> None:
    work, _ = site
    one, other = (PrivateSite(work.config).gene_means([], len(work.cohort.panel)) for _ in range(2))
    assert not np.array_equal(one.sums["means"], other.sums["means"])


def test_the_public_space_knows_no_weight(site: tuple[Work, Memory]) -> None:
    work, memory = site
    patients = work.cohort.labelled("train")
    before = public_statistics(work.config, memory, work.packer, patients, "hard")
    kept = [each.detach().clone() for each in work.model.parameters()]
    with torch.no_grad():
        for each in work.model.parameters():
            each.mul_(-3.0)
    after = public_statistics(work.config, memory, work.packer, patients, "hard")
    with torch.no_grad():
        for each, value in zip(work.model.parameters(), kept, strict=True):
            each.copy_(value)
    np.testing.assert_array_equal(before.sums["histology"], after.sums["histology"])


def test_patches_in_the_public_space_are_unit_vectors_and_a_patch_of_zeros_is_zero() -> None:
    axes = np.eye(3, 5)
    found = embed(np.array([[3, 0, 4, 9, 9], [0, 0, 0, 0, 0]], np.float32), axes)
    np.testing.assert_allclose(found, [[0.6, 0, 0.8], [0, 0, 0]])


def test_weights_by_dpsgd_are_charged_by_the_step_and_nothing_else_is_said(
    in_process: Callable[..., Any], task: None
) -> None:
    consortium, outcome = run_of(in_process, weights="dpsgd", steps=8, epsilon=20.0)
    work = consortium.participants["ash"]._work
    assert work.private.plan.steps is not None
    work.private.trained(4)
    charge = work.private.take_charges()[-1]
    assert charge == PoissonSteps(work.private.plan.steps.sigma, 0.1, 4)
    assert outcome.state.round == 2
    assert [record.losses for record in outcome.state.history] == [{}, {}]
    assert all(np.isfinite(value).all() for value in outcome.state.weights.values())


def test_features_that_all_patients_scaled_are_refused_at_the_site(site: tuple[Work, Memory]) -> None:
    work, _ = site
    coupled = dataclasses.replace(work.cohort, standardise="site")
    plan = type("Plan", (), {"config": work.config, "panel": (), "space": {}})
    with pytest.raises(UserError) as caught:
        Work.of_plan(plan, coupled, torch.device("cpu"))  # type: ignore[arg-type]
    assert caught.value.code == "privacy-coupled"
