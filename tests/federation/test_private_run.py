"""Whole private runs in one process: what leaves a site, what it is charged, what the coordinator does with noise."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from momkd_fl.errors import UserError
from momkd_fl.evaluation.calibration_choice import choose_calibration
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.federation.artefacts import account
from momkd_fl.federation.coordinator import Coordinator, Outcome
from momkd_fl.federation.messages import Initialise, Parcel, Select, Train
from momkd_fl.federation.outcome import Circumstances, results_of
from momkd_fl.federation.private_plan import private_plan
from momkd_fl.federation.watch import unwatched
from momkd_fl.privacy.accountant import joint_epsilon
from momkd_fl.training import checkpoint

MEMBERS = {"ash": "train", "birch": "train", "holly": "evaluate"}
MEMORY = {"slots": 1, "assignment": "hard", "anchor_iterations": 2, "anchor_dim": 8, "momentum": 0.5}
TRAINING = {"patients_per_step": 8, "learning_rate": 1e-3, "precision": "fp32", "standardise": "none"}
ROUNDS = {"count": 3, "quorum": 2, "deadline_s": 5.0, "gather_s": 0.01}
PRIVACY = {"memory": "local", "epsilon": 8.0, "releases": 2, "release_every": 2, "site_patients": 500}


def sections(**privacy: Any) -> dict[str, Any]:
    return {"memory": MEMORY, "training": TRAINING, "rounds": ROUNDS, "privacy": {**PRIVACY, **privacy}}


class Recorded:
    """A run, with the charges of every message of every site and the arrays it sent."""

    def __init__(self, consortium: Any) -> None:
        self.consortium = consortium
        self.charges: dict[str, list[Any]] = {site: [] for site in consortium.participants}
        self.sent: list[tuple[str, str, Any, Any]] = []
        for site, participant in consortium.participants.items():
            for kind in ("initialise", "train", "evaluate"):
                self._watch(site, participant, kind)
        watch = unwatched(consortium.config)
        outcome = Coordinator(consortium.config, consortium.grid(), watch, threading.Event(), lambda: {}).run()
        assert outcome is not None
        self.outcome: Outcome = outcome

    def _watch(self, site: str, participant: Any, kind: str) -> None:
        inner = getattr(participant, kind)

        def watched(request: Any) -> Any:
            reply, arrays = inner(request)
            self.charges[site] += participant.take_charges()
            self.sent.append((site, kind, reply, arrays))
            return reply, arrays

        setattr(participant, kind, watched)


@pytest.fixture(scope="module")
def memory_run(in_process: Any, task: None) -> Recorded:
    return Recorded(in_process(MEMBERS, **sections()))


@pytest.fixture(scope="module")
def alone_run(in_process: Any, task: None) -> Recorded:
    return Recorded(in_process(MEMBERS, **sections(share="memory")))


def test_a_site_is_charged_exactly_what_was_planned(memory_run: Recorded) -> None:
    config = memory_run.consortium.config
    planned = joint_epsilon(private_plan(config).charges, 1e-5)
    assert planned == pytest.approx(8.0)
    assert joint_epsilon(memory_run.charges["ash"], 1e-5) == pytest.approx(planned)
    assert memory_run.charges["holly"] == []


def test_a_site_without_genomics_is_charged_for_its_slots_only(memory_run: Recorded) -> None:
    assert len(memory_run.charges["birch"]) == PRIVACY["releases"]
    assert len(memory_run.charges["ash"]) == 1 + MEMORY["anchor_iterations"] + PRIVACY["releases"]


def test_nothing_measured_leaves(memory_run: Recorded) -> None:
    for _, kind, reply, arrays in memory_run.sent:
        assert "scores" not in arrays
        if kind == "train":
            assert (reply.seconds, reply.losses, reply.loss_sum, reply.monitors) == ({}, {}, [], {})
        if kind == "evaluate":
            assert reply.loss_sum == []
            assert (reply.cohort.patients, reply.cohort.tasks) == (None, {})
    rounds = [
        bool(arrays["statistics"]) for site, kind, _, arrays in memory_run.sent if (site, kind) == ("ash", "train")
    ]
    assert rounds == [True, False, True]
    assert memory_run.outcome.chosen.best.round == 3
    assert memory_run.outcome.chosen.threshold is None


@pytest.mark.parametrize("which", ["memory_run", "alone_run"])
def test_threshold_and_calibration_are_made_at_the_site_and_stay_there(
    which: str, request: pytest.FixtureRequest
) -> None:
    """Of the site's own validation patients under the model it keeps; what only evaluates has none."""
    run: Recorded = request.getfixturevalue(which)
    for site, role in MEMBERS.items():
        participant = run.consortium.participants[site]
        path = participant.state_dir / "model.safetensors"
        if role == "evaluate":
            assert not path.exists() or checkpoint.load(path)[1]["threshold"] is None
            continue
        arrays, meta = checkpoint.load(path)
        kept = {group: {} for group in ("weights", "memory")}
        for name, value in arrays.items():
            group, _, rest = name.partition("/")
            if group in kept:
                kept[group][rest] = value
        if which == "alone_run":
            kept["weights"] = {}
        work = participant._work
        scored = work.score(work.receive(kept), "validation")
        histogram = ScoreHistogram.of(scored.labels, scored.probabilities)
        assert meta["threshold"] == histogram.youden_threshold()
        assert meta["calibration"] == choose_calibration(histogram).to_list()
        assert any("this site's own" in said for said in run.consortium.said[site])
    assert run.outcome.chosen.threshold is None


def test_no_count_that_leaves_is_a_whole_number_of_patients(memory_run: Recorded) -> None:
    counts = [
        value
        for _, _, _, arrays in memory_run.sent
        for name, value in arrays.get("statistics", {}).items()
        if name.startswith("counts")
    ]
    assert counts
    found = np.concatenate([value.ravel() for value in counts])
    assert np.abs(found - np.rint(found)).max() > 0.01


def test_the_run_card_says_what_is_conditional_and_how_much_moved(memory_run: Recorded) -> None:
    results = results_of(memory_run.consortium.config, memory_run.outcome, Circumstances("simulation", 1.0, 1.0))
    given = results.protection
    assert given.epsilon == {"ash": None, "birch": None, "holly": 0.0}
    assert given.memory_conditional
    assert given.anchors_epsilon is not None
    assert given.memory_epsilon == pytest.approx(8.0)
    assert given.anchors_epsilon < 8.0
    assert given.artefacts["train"]["weights"] == "without noise"
    assert set(given.slots_released) == {"anchors", "slots"}


def test_without_shared_weights_all_of_a_run_is_bounded(alone_run: Recorded) -> None:
    assert account(alone_run.consortium.config).epsilon == pytest.approx(8.0)
    assert account(alone_run.consortium.config, "evaluate").epsilon == 0.0
    for _, kind, _, arrays in alone_run.sent:
        assert "update" not in arrays
        if kind == "train":
            assert not [name for name in arrays["statistics"] if "genomics" in name]
    assert alone_run.outcome.state.weights == {}
    assert not [site for site, kind, _, _ in alone_run.sent if (site, kind) == ("holly", "evaluate")]


def test_each_site_keeps_a_student_of_its_own(alone_run: Recorded) -> None:
    students = {}
    for site in ("ash", "birch"):
        participant = alone_run.consortium.participants[site]
        assert (participant.state_dir / "predictions_validation.csv").exists()
        assert participant._work is not None
        students[site] = next(participant._work.model.parameters()).detach().clone()
    assert not np.allclose(students["ash"], students["birch"])


def test_a_site_refuses_steps_that_were_not_agreed(memory_run: Recorded) -> None:
    state, site = memory_run.outcome.state, memory_run.consortium.participants["ash"]
    for step in ("moments", "slots"):
        arrays = {"weights": state.weights, "memory": state.memory, "space": state.space}
        with pytest.raises(UserError) as caught:
            site.initialise(Parcel("initialise", state.run, 0, Initialise(step=step, iteration=0), arrays))
        assert caught.value.code == "privacy-not-agreed"
    with pytest.raises(UserError) as caught:
        site.select(Parcel("select", state.run, 0, Select(candidates=["ESR1"]), {}))
    assert caught.value.code == "privacy-not-agreed"


def test_a_site_smaller_than_planned_is_told_so_and_nobody_else(memory_run: Recorded) -> None:
    for site in ("ash", "birch"):
        assert any("planned for about 500" in sentence for sentence in memory_run.consortium.said[site])
    assert not any("planned for" in sentence for sentence in memory_run.consortium.said["holly"])


def test_a_repeated_round_is_charged_again_and_has_new_noise(memory_run: Recorded) -> None:
    state, site = memory_run.outcome.state, memory_run.consortium.participants["ash"]
    before = len(memory_run.charges["ash"])
    sums = []
    for _ in range(2):
        body = Train(proximal_mu=0.0, learning_rate_share=1.0)
        sent = {"weights": state.weights, "memory": state.memory}
        _, arrays = site.train(Parcel("train", state.run, 1, body, sent))
        sums.append(arrays["statistics"]["sums.histology"])
    assert len(memory_run.charges["ash"]) == before + 2
    assert not np.array_equal(*sums)
    del memory_run.charges["ash"][before:]
