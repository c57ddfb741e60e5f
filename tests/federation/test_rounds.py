"""The rounds' own arithmetic: when to stop early, the loss that selects, who counts as ready."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.rounds import balanced_loss, better, exhausted, wait_for_quorum
from momkd_fl.federation.state import Best, ServerState
from momkd_fl.federation.watch import unwatched

EMPTY = ServerState("run", 0, "", "", (), {}, {}, {})
PAIR = {"ash": "train", "birch": "train"}


def at(round: int, best: int | None) -> ServerState:
    return EMPTY.after(round=round, best=None if best is None else Best(best, 0.5, {}, {}, {}))


@pytest.mark.parametrize(
    ("round", "best", "patience", "expected"),
    [
        (5, 2, 3, False),  # states 3 and 4 have been validated, and were no better
        (6, 2, 3, True),  # states 3, 4 and 5
        (6, 5, 3, False),
        (9, None, 1, False),
        (9, 0, None, False),
    ],
)
def test_patience_counts_validated_states(round: int, best: int | None, patience: int | None, expected: bool) -> None:
    assert exhausted(at(round, best), patience) is expected


def test_the_selecting_loss_weighs_classes_alike_whatever_their_numbers() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    scores = ScoreHistogram.of(labels, np.full((100, 2), 0.5)).to_arrays()
    assert balanced_loss(np.array([90 * 0.2, 10 * 0.6]), scores) == pytest.approx(0.4)


def test_there_is_no_selecting_loss_where_a_class_has_no_patient() -> None:
    scores = ScoreHistogram.of(np.zeros(9, np.int64), np.full((9, 2), 0.5)).to_arrays()
    assert balanced_loss(np.array([3.0, 0.0]), scores) is None


def test_a_stop_ends_the_wait_for_a_quorum(in_process) -> None:
    consortium = in_process(PAIR, rounds={"count": 1, "quorum": 2})
    grid, stop = consortium.grid(), threading.Event()
    grid.present = lambda round, site: site == "ash"
    coordinator = Coordinator(consortium.config, grid, unwatched(consortium.config), stop, lambda: {})
    course = coordinator._course(EMPTY, coordinator._layout(EMPTY), {"ash", "birch"})
    threading.Timer(0.2, stop.set).start()
    assert wait_for_quorum(course, 1) == set()
    grid.present = lambda round, site: True
    stop.clear()
    assert wait_for_quorum(course, 1) == {"ash", "birch"}


def histogram(positives: list[int], negatives: list[int]) -> dict[str, Any]:
    """Scores of one run's validation patients: counts of the two classes by bin."""
    return {"counts": np.array([[negatives, positives]], np.float32)}


def test_the_better_state_ranks_better_and_of_equals_has_the_lower_loss() -> None:
    poor = Best(1, 0.2, {}, {}, histogram([1, 1], [1, 1]))
    good = Best(2, 0.9, {}, {}, histogram([0, 2], [2, 0]))
    same = Best(3, 0.5, {}, {}, histogram([0, 2], [2, 0]))
    assert better(None, poor) is poor
    assert better(poor, good) is good  # although its loss is higher
    assert better(good, poor) is good
    assert better(good, same) is same
    assert better(same, good) is same


def test_a_run_stops_early_when_validation_no_longer_improves(in_process) -> None:
    consortium = in_process(
        PAIR,
        rounds={"count": 9, "quorum": 2, "patience": 1, "gather_s": 0.01},
        training={"learning_rate": 0.3, "local_steps": 2, "patients_per_step": 8, "precision": "fp32"},
    )
    watch = unwatched(consortium.config)
    outcome = Coordinator(consortium.config, consortium.grid(), watch, threading.Event(), lambda: {}).run()
    assert outcome is not None
    assert outcome.state.round < 9
    history = outcome.state.history
    best = max(range(len(history)), key=lambda number: (history[number].auroc or 0.0, -(history[number].loss or 0.0)))
    assert len(history) == best + 2  # one round more, and it was not better
