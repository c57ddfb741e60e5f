"""Variants of the memory for ablation: each trains a round, and moves the memory or leaves it, as its name says."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from momkd_fl.config.base import load
from momkd_fl.config.site import SiteConfig
from momkd_fl.federation import state as states
from momkd_fl.federation.comparators import Shelf
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.plan import PLAN_FILE
from momkd_fl.federation.rounds import learning_rate_share
from momkd_fl.federation.site_statistics import genomes
from momkd_fl.federation.student import layout_of, shape_of
from momkd_fl.federation.watch import unwatched
from momkd_fl.model.memory import Memory
from momkd_fl.training import checkpoint

MEMBERS = {"ash": "train", "birch": "train"}
MODES, GENOMICS, ASSIGNMENTS = (
    ("anchors", "momentum", "gradient", "frozen"),
    (True, False),
    ("balanced", "soft", "hard"),
)
VARIANTS = [
    *((mode, genomics, how, 2) for mode, genomics, how in itertools.product(MODES, GENOMICS, ASSIGNMENTS)),
    *((mode, True, "balanced", slots) for mode in MODES for slots in (1, 5)),
]


@pytest.fixture(scope="module")
def shelf(hospitals: Path) -> Shelf:
    """Cohorts that are read once for all variants."""
    return Shelf({site: load(hospitals / site / "site.yaml", SiteConfig) for site in MEMBERS}, torch.device("cpu"))


def one_round(consortium: Any, shelf: Shelf) -> tuple[states.ServerState, states.ServerState, list[Any]]:
    """State before and after a round, and what the sites were sent in it."""
    for site, participant in consortium.participants.items():
        participant.load = lambda federation, site=site: shelf.cohort(site, "train", federation)
    grid, before = consortium.grid(), list[states.ServerState]()
    path = consortium.config.output_dir / "checkpoint.safetensors"

    def answers(kind: str, number: int, site: str) -> bool:
        if kind == "train":
            before.append(states.load(path))
        return True

    grid.answers = answers
    outcome = Coordinator(consortium.config, grid, unwatched(consortium.config), threading.Event(), lambda: {}).run()
    assert outcome is not None
    told = [content for (kind, _, _), content in zip(grid.delivered, grid.contents, strict=True) if kind == "train"]
    return before[0], outcome.state, told


@pytest.mark.parametrize(("mode", "genomics", "how", "slots"), VARIANTS)
def test_a_variant_trains_a_round_and_moves_its_memory_as_it_should(
    in_process: Any, shelf: Shelf, mode: str, genomics: bool, how: str, slots: int
) -> None:
    memory = {
        "mode": mode, "genomics": genomics, "assignment": how, "slots": slots, "init_iterations": 2,
        "anchor_iterations": 2,
    }  # fmt: skip
    rounds = {"count": 1, "quorum": 2, "deadline_s": 5.0}
    consortium = in_process(MEMBERS, memory=memory, rounds=rounds)
    before, after, told = one_round(consortium, shelf)
    layout = layout_of(shape_of(consortium.config, after.panel))
    assert after.history[0].states == {"ash": "trained", "birch": "trained"}
    assert (before.weights["histology"] != after.weights["histology"]).any()
    assert all(np.isfinite(value).all() for value in (*after.weights.values(), *after.memory.values()))
    assert ("genomics" in after.weights) is genomics
    assert ("match" in after.history[0].losses) is (genomics and mode == "anchors")
    assert ("align_genomics" in after.history[0].losses) is genomics

    expected = {"anchors": {"slots"} | ({"anchors"} if genomics else set()), "gradient": set()}
    names = expected.get(mode, {"slots"})
    assert set(after.memory) == set(before.memory) == names
    assert all(set(content["memory"]) == names for content in told)
    for name, value in after.memory.items():
        assert value.shape[:2] == (2, slots)
        np.testing.assert_allclose(np.linalg.norm(value, axis=-1), 1.0, atol=1e-5)
        moves = name == "slots" and mode != "frozen"
        assert np.array_equal(value, before.memory[name]) is not moves, name
    moved = after.history[0].slot_movement_rad
    assert moved > 1e-3 if mode in ("anchors", "momentum") else moved < 1e-3
    own = [layout.unflatten(state.weights).get("slots") for state in (before, after)]
    if mode == "gradient":
        assert own[0].shape[:2] == (2, slots)
        assert (own[0] != own[1]).any(), "as released, the losses move the slots"
    else:
        assert own == [None, None], "no loss reaches a buffer"


def test_the_assignments_are_three_methods(in_process: Any, shelf: Shelf) -> None:
    ends = {}
    for how in ASSIGNMENTS:
        memory = {"slots": 3, "assignment": how, "init_iterations": 2, "anchor_iterations": 2}
        consortium = in_process(MEMBERS, memory=memory, rounds={"count": 1, "quorum": 2, "deadline_s": 5.0})
        ends[how] = one_round(consortium, shelf)[1].memory
    for one, other in itertools.combinations(ASSIGNMENTS, 2):
        for name in ("slots", "anchors"):
            assert not np.allclose(ends[one][name], ends[other][name], atol=1e-3), (one, other, name)


COMPARED = {
    "random": ({"source": "random"}, {}, "match"),
    "labels": ({"source": "labels"}, {}, "match"),
    "coupled": ({"mode": "gradient", "decoupled": False}, {}, "align_genomics"),
    "cosine": ({"match_weight": 0.0}, {"batch": 1.0}, "batch"),
    "mse": ({"match_weight": 0.0}, {"batch": 1.0, "batch_distance": "mse"}, "batch"),
    "logits": ({"match_weight": 0.0}, {"logits": 1.0}, "logits"),
}


@pytest.mark.parametrize("name", COMPARED)
def test_what_the_method_is_compared_with_trains_its_own_loss(in_process: Any, shelf: Shelf, name: str) -> None:
    memory, losses, term = COMPARED[name]
    consortium = in_process(
        MEMBERS,
        memory={"slots": 2, "init_iterations": 1, "anchor_iterations": 1, **memory},
        losses=losses,
        rounds={"count": 1, "quorum": 2, "deadline_s": 5.0},
    )
    before, after, _ = one_round(consortium, shelf)
    assert after.history[0].states == {"ash": "trained", "birch": "trained"}
    assert after.history[0].losses[term] > 0.0
    moved = {key: not np.array_equal(value, before.memory[key]) for key, value in after.memory.items()}
    assert moved == {} if name == "coupled" else moved["slots"] is (name != "random")
    if name == "random":
        every = np.concatenate([after.memory["anchors"].reshape(4, -1)])
        np.testing.assert_allclose(every @ every.T, np.eye(4), atol=1e-5)


@pytest.mark.parametrize("memory", [{}, {"genomics": False}, {"source": "random"}])
def test_soft_labels_come_of_the_sums_that_place_the_anchors(
    in_process: Any, shelf: Shelf, memory: dict[str, Any]
) -> None:
    ends = {}
    for share in (0.0, 1.0):
        consortium = in_process(
            MEMBERS,
            memory={"slots": 2, "init_iterations": 1, "anchor_iterations": 1, "anchor_dim": 2, **memory},
            losses={"soft_labels": share},
            rounds={"count": 1, "quorum": 2, "deadline_s": 5.0},
        )
        _, ends[share], told = one_round(consortium, shelf)
        assert all(set(content["memory"]) <= {"slots", "anchors"} for content in told)
    changed = not np.array_equal(ends[0.0].weights["histology"], ends[1.0].weights["histology"])
    assert changed is (memory == {}), "without anchors of genomes there is no teacher"
    assert "class_sums" not in ends[0.0].space
    if memory == {}:
        work = consortium.participants["ash"].ready(ends[1.0].run)
        patients = work.cohort.labelled("train")
        embedded, rows = genomes(Memory.from_arrays({}, ends[1.0].space), work.packer, patients)
        labels = np.array([patients[row].label for row in rows])
        for label in range(2):  # birch has no genomics
            np.testing.assert_allclose(
                ends[1.0].space["class_sums"][label], embedded[labels == label].sum(axis=0), atol=1e-4
            )
        np.testing.assert_allclose(ends[1.0].space["class_counts"], np.bincount(labels, minlength=2), atol=1e-4)
        assert work.space["class_included"].tolist() == [1.0, 1.0]
        assert work.teacher is not None
        assert len(work.teacher) == len(rows)
        elsewhere = consortium.participants["birch"].ready(ends[1.0].run).space
        assert set(elsewhere) == {"mean", "scale", "axes", "sd"}, "class sums go where genomes are trained on"
        kept, _ = checkpoint.load(consortium.config.output_dir / "model.safetensors")
        assert not [name for name in kept if "class_" in name], "counts of patients are no part of a model"


def test_no_label_is_replaced_where_a_class_has_fewer_genomes_than_the_space_has_axes(
    in_process: Any, shelf: Shelf
) -> None:
    ends = {}
    for share in (0.0, 1.0):
        consortium = in_process(
            MEMBERS,
            memory={"slots": 2, "init_iterations": 1, "anchor_iterations": 1, "anchor_dim": 28},
            losses={"soft_labels": share},
            rounds={"count": 1, "quorum": 2, "deadline_s": 5.0},
        )
        _, ends[share], _ = one_round(consortium, shelf)
    np.testing.assert_array_equal(ends[0.0].weights["histology"], ends[1.0].weights["histology"])
    assert "class_sums" not in ends[1.0].space


def test_the_learning_rate_falls_by_half_a_cosine(in_process: Any) -> None:
    config = in_process(MEMBERS, training={"learning_rate_end": 0.2}, rounds={"count": 5, "quorum": 2}).config
    shares = [learning_rate_share(number, 5, config) for number in range(1, 6)]
    np.testing.assert_allclose(shares, [1.0, 0.8828427, 0.6, 0.3171573, 0.2], atol=1e-6)


def test_a_site_that_lost_its_state_is_told_the_class_sums_again_and_no_one_else_is(in_process: Any) -> None:
    consortium = in_process(
        {**MEMBERS, "holly": "evaluate"},
        memory={"anchor_dim": 2},
        losses={"soft_labels": 1.0},
        rounds={"count": 2, "quorum": 2, "deadline_s": 5.0},
    )
    grid, ash, lost = consortium.grid(), consortium.participants["ash"], list[None]()

    def answers(kind: str, number: int, site: str) -> bool:
        if (kind, number, site) == ("train", 2, "ash") and not lost:
            ash._plan = ash._work = None
            lost.append((ash.state_dir / PLAN_FILE).unlink())
        return True

    grid.answers = answers
    run = Coordinator(consortium.config, grid, unwatched(consortium.config), threading.Event(), lambda: {}).run()
    assert run is not None
    spaces = {site: set(each.ready(run.state.run).space) for site, each in consortium.participants.items()}
    assert {site: "class_sums" in names for site, names in spaces.items()} == {
        "ash": True, "birch": False, "holly": False,
    }  # fmt: skip
    assert lost
