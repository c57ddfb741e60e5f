"""Weights and memory belong together: every checkpoint and every exported model holds a pair that was used together."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.federation import state as states
from momkd_fl.federation.coordinator import Coordinator, Outcome
from momkd_fl.federation.messages import Evaluate, Parcel
from momkd_fl.federation.watch import unwatched
from momkd_fl.training import checkpoint

MEMBERS = {"ash": "train", "birch": "train", "holly": "evaluate"}
TRAINERS = ("ash", "birch")
Pair = dict[str, dict[str, np.ndarray]]


class Run:
    """A finished run, the pair that each round was sent, and every checkpoint that was on disk while it ran."""

    def __init__(self, consortium: Any) -> None:
        self.consortium, self.saved = consortium, dict[int, states.ServerState]()
        grid = consortium.grid()
        path = consortium.config.output_dir / "checkpoint.safetensors"

        def keep(kind: str, number: int, site: str) -> bool:
            if kind == "train":
                self.saved[number - 1] = states.load(path)
            return True

        grid.answers = keep
        outcome = Coordinator(
            consortium.config, grid, unwatched(consortium.config), threading.Event(), lambda: {}
        ).run()
        assert outcome is not None
        self.outcome: Outcome = outcome
        self.sent: dict[int, Pair] = {
            number - 1: as_pair(content)
            for (kind, number, _), content in zip(grid.delivered, grid.contents, strict=True)
            if kind == "train"
        }

    def histogram(self, pair: Pair) -> ScoreHistogram:
        """Scores that the training sites give their validation patients with a pair, summed."""
        parts = []
        for site in TRAINERS:
            body = Evaluate(split="validation", threshold=None, calibration=None, final=False)
            request = Parcel("evaluate", self.outcome.state.run, 0, body, pair)
            _, arrays = self.consortium.participants[site].evaluate(request)
            parts.append(ScoreHistogram.from_arrays(arrays["scores"]))
        return parts[0] + parts[1]


def as_pair(content: Any) -> Pair:
    return {group: {name: v.numpy() for name, v in content[group].items()} for group in ("weights", "memory")}


def same(one: Pair, other: Pair) -> bool:
    return all(
        set(one[group]) == set(other[group])
        and all(np.array_equal(one[group][name], value) for name, value in other[group].items())
        for group in ("weights", "memory")
    )


@pytest.fixture(scope="module", params=["fedavg", "fedadam"])
def run(request: pytest.FixtureRequest, in_process: Any) -> Run:
    """Rounds too long for their number, so that an early one is the best; the memory moves far."""
    return Run(
        in_process(
            MEMBERS,
            rounds={"count": 5, "quorum": 2, "deadline_s": 5.0, "gather_s": 0.01},
            strategy={"name": request.param, "server_learning_rate": 0.05},
            memory={"slots": 2, "init_iterations": 2, "anchor_iterations": 2, "momentum": 0.2},
            training={"learning_rate": 0.02, "local_epochs": 2, "patients_per_step": 8, "precision": "fp32"},
        )
    )


def test_the_best_round_is_neither_the_first_state_nor_the_last(run: Run) -> None:
    """Else the tests below would compare a pair with itself."""
    assert 0 < run.outcome.chosen.best.round < run.outcome.state.round
    assert len(run.sent) == 5
    assert not any(same(run.sent[one], run.sent[one - 1]) for one in range(1, 5))


def test_every_checkpoint_holds_the_pair_that_is_trained_from_and_the_best_pair_that_was(run: Run) -> None:
    assert set(run.saved) == set(range(5))
    for number, saved in run.saved.items():
        assert saved.round == number
        assert same({"weights": saved.weights, "memory": saved.memory}, run.sent[number])
        if saved.best is not None:
            assert same({"weights": saved.best.weights, "memory": saved.best.memory}, run.sent[saved.best.round])
    assert run.saved[4].best is not None


def exported(run: Run) -> dict[str, Pair]:
    """Every model file of the run: the coordinator's and each site's."""
    paths = {"coordinator": run.consortium.config.output_dir / "model.safetensors"}
    paths |= {site: one.state_dir / "model.safetensors" for site, one in run.consortium.participants.items()}
    pairs = {}
    for name, path in paths.items():
        tensors, _ = checkpoint.load(path)
        pairs[name] = {
            group: {key.removeprefix(f"{group}/"): v for key, v in tensors.items() if key.startswith(f"{group}/")}
            for group in ("weights", "memory")
        }
    return pairs


def test_the_exported_model_is_the_pair_of_the_best_round_and_of_no_other(run: Run) -> None:
    best = run.outcome.chosen.best.round
    pairs = exported(run)
    assert set(pairs) == {"coordinator", *MEMBERS}
    for name, pair in pairs.items():
        assert [number for number, sent in run.sent.items() if same(pair, sent)] == [best], name
        others = [sent["memory"] for number, sent in run.sent.items() if number != best]
        assert not any(same(pair, {"weights": pair["weights"], "memory": memory}) for memory in others), name


def test_the_exported_model_scores_as_was_recorded_in_its_round(run: Run) -> None:
    best = run.outcome.chosen.best
    pair = exported(run)["coordinator"]
    scored = run.histogram(pair)
    np.testing.assert_array_equal(scored.counts, ScoreHistogram.from_arrays(best.scores).counts)
    recorded = run.outcome.state.history[best.round]  # the round that started from this state validated it
    assert scored.auroc(minimum=1) == recorded.auroc
    moved = [run.histogram({**pair, "memory": run.sent[n]["memory"]}) for n in run.sent if n != best.round]
    assert all((one.counts != scored.counts).any() for one in moved), "with another round's memory scores differ"
