"""The coordinator's own logic, over sites in this process: who is in, quorum, late joiners, resume, selection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from momkd_fl.errors import UserError
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.federation import state as states
from momkd_fl.federation.coordinator import Coordinator, Outcome, config_digest
from momkd_fl.federation.messages import Parcel, Plan, PlanReply
from momkd_fl.federation.outcome import Circumstances, results_of
from momkd_fl.federation.participant import Participant
from momkd_fl.federation.watch import Watch, unwatched

MEMBERS = {"ash": "train", "birch": "train", "holly": "evaluate"}
PAIR = {"ash": "train", "birch": "train"}
THREE = {**PAIR, "cedar": "train"}
ROUNDS = {"count": 3, "quorum": 1, "deadline_s": 5.0, "gather_s": 0.01}


def run(consortium: Any, grid: Any, stop: threading.Event, watch: Watch | None = None, **how: Any) -> Outcome | None:
    watch = watch or unwatched(consortium.config)
    return Coordinator(consortium.config, grid, watch, stop, lambda: {}, **how).run()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, in_process) -> tuple[Outcome, Any]:
    """A run in which nothing happens, with its grid."""
    consortium = in_process(MEMBERS, root=tmp_path_factory.mktemp("undisturbed"), rounds=ROUNDS)
    grid = consortium.grid()
    outcome = run(consortium, grid, threading.Event())
    assert outcome is not None
    return outcome, grid


def test_a_run_has_every_round_once_and_selects_and_tests_one_model(undisturbed) -> None:
    outcome, _ = undisturbed
    assert [record.round for record in outcome.state.history] == [1, 2, 3]
    assert all(record.states == {"ash": "trained", "birch": "trained"} for record in outcome.state.history)
    assert set(outcome.evaluations["validation"]) == {"ash", "birch"}
    assert set(outcome.evaluations["test"]) == {"holly"}
    assert outcome.failures == []
    chosen = ScoreHistogram.from_arrays(outcome.chosen.best.scores).auroc(minimum=1)
    assert chosen >= max(record.auroc for record in outcome.state.history)


def test_a_site_that_evaluates_is_never_asked_to_train_or_to_count(undisturbed) -> None:
    _, grid = undisturbed
    assert {kind for kind, _, site in grid.delivered if site == "holly"} <= {"hello", "plan", "evaluate", "finish"}
    assert {kind for kind, _, site in grid.delivered if site == "ash"} > {"initialise", "train"}


def test_a_site_that_left_for_good_is_in_the_results_with_nothing_but_its_name(in_process, stop) -> None:
    consortium = in_process(PAIR, rounds=ROUNDS)
    grid = consortium.grid()
    grid.present = lambda number, site: site != "birch" or number < 2
    grid.answers = lambda kind, number, site: site != "birch" or number < 2
    outcome = run(consortium, grid, stop)
    assert outcome is not None
    results = results_of(consortium.config, outcome, Circumstances("federation", 1.0, 1.0))
    assert [entry.sites for entry in results.rounds] == [
        {"trained": ["ash", "birch"]},
        {"trained": ["ash"], "missing": ["birch"]},
        {"trained": ["ash"], "missing": ["birch"]},
    ]
    birch = next(cohort for cohort in results.cohorts if cohort.site == "birch")
    assert (birch.role, birch.patients, birch.tasks) == ("train", None, {})
    assert ("birch", "no-answer") in outcome.failures


def test_a_site_that_misses_the_deadline_is_recorded_and_the_round_goes_on(in_process, stop) -> None:
    consortium = in_process(PAIR, rounds=ROUNDS)
    grid = consortium.grid()
    grid.answers = lambda kind, number, site: (kind, number, site) != ("train", 2, "birch")
    outcome = run(consortium, grid, stop)
    assert outcome is not None
    by_round = [record.states["birch"] for record in outcome.state.history]
    assert by_round == ["trained", "missing", "trained"]
    assert outcome.state.history[1].states["ash"] == "trained"


def test_a_site_that_is_offline_when_a_round_starts_is_recorded_as_missing(in_process, stop) -> None:
    consortium = in_process(PAIR, rounds=ROUNDS)
    grid = consortium.grid()
    grid.present = lambda number, site: (number, site) != (2, "birch")
    outcome = run(consortium, grid, stop)
    assert outcome is not None
    assert [record.states["birch"] for record in outcome.state.history] == ["trained", "missing", "trained"]
    assert ("train", 2, "birch") not in grid.delivered


def test_below_quorum_nothing_changes_and_the_round_is_repeated(in_process, stop) -> None:
    consortium = in_process(PAIR, rounds={**ROUNDS, "quorum": 2, "count": 2})
    grid, lost = consortium.grid(), []

    def answers(kind: str, number: int, site: str) -> bool:
        if (kind, number, site) == ("train", 2, "birch") and not lost:
            lost.append(site)
            return False
        return True

    grid.answers = answers
    outcome = run(consortium, grid, stop)
    assert outcome is not None
    assert lost == ["birch"]
    assert [record.round for record in outcome.state.history] == [1, 2]
    assert set(outcome.state.history[1].states.values()) == {"trained"}
    assert sum((kind, number) == ("train", 2) for kind, number, _ in grid.delivered) == 1 + 2

    first, second = (
        content for told, content in zip(grid.delivered, grid.contents, strict=True) if told == ("train", 2, "ash")
    )
    for group in ("weights", "memory"):
        for name, value in first[group].items():
            np.testing.assert_array_equal(second[group][name].numpy(), value.numpy())


def test_a_round_that_nobody_ever_answers_ends_the_run_and_not_in_a_loop(in_process, stop) -> None:
    """Then the same command goes on from the last round that was."""
    consortium = in_process(PAIR, rounds={**ROUNDS, "quorum": 2, "count": 2, "repeats": 2})
    grid, asked = consortium.grid(), list[tuple[str, int]]()

    def silent(kind: str, number: int, site: str) -> bool:
        asked.append((kind, number))
        return (kind, number) != ("train", 2)

    grid.answers = silent
    with pytest.raises(UserError) as caught:
        run(consortium, grid, stop)
    assert caught.value.code == "round-failed"
    assert "Round 2 was begun 3 times" in caught.value.sentence
    assert asked.count(("train", 2)) == 3 * 2
    grid.answers = lambda kind, number, site: True
    outcome = run(consortium, grid, stop)
    assert outcome is not None
    assert [record.round for record in outcome.state.history] == [1, 2]
    assert sum((kind, number) == ("train", 1) for kind, number, _ in grid.delivered) == 2, "round 1 is not repeated"


def test_a_late_joiner_is_greeted_told_the_space_and_trains(in_process, stop) -> None:
    consortium = in_process(THREE, rounds=ROUNDS)
    grid = consortium.grid()
    grid.present = lambda number, site: site != "cedar" or number >= 2
    outcome = run(consortium, grid, stop)
    assert outcome is not None
    assert [record.states["cedar"] for record in outcome.state.history] == ["missing", "trained", "trained"]
    order = [kind for kind, _, site in grid.delivered if site == "cedar"]
    assert order[:4] == ["hello", "plan", "initialise", "train"]
    assert "cedar" in outcome.state.members


def test_an_evaluating_site_that_comes_late_is_tested_all_the_same(in_process, stop) -> None:
    consortium = in_process(MEMBERS, rounds=ROUNDS)
    grid = consortium.grid()
    grid.present = lambda number, site: site != "holly" or number >= 2
    outcome = run(consortium, grid, stop)
    assert outcome is not None
    assert set(outcome.evaluations["test"]) == {"holly"}


def test_a_site_that_lost_its_state_is_greeted_again(in_process, stop) -> None:
    consortium = in_process(PAIR, rounds={**ROUNDS, "count": 4})
    grid = consortium.grid()
    participant = consortium.participants["birch"]

    def answers(kind: str, number: int, site: str) -> bool:
        if (kind, number, site) == ("train", 2, "birch"):
            for path in participant.state_dir.iterdir():
                path.unlink()
            participant._plan = participant._work = None  # as after a restart
        return True

    grid.answers = answers
    outcome = run(consortium, grid, stop)
    assert outcome is not None
    found = [record.states["birch"] for record in outcome.state.history]
    assert found == ["trained", "refused:plan-missing", "trained", "trained"]
    assert outcome.failures == []


class OtherVersion(Participant):
    """A site whose software builds another student."""

    def plan(self, request: Parcel[Plan]) -> tuple[PlanReply, Any]:
        super().plan(request)
        return PlanReply(architecture="0" * 64), {}


def test_another_architecture_stops_that_site_before_round_1_with_the_field_s_name(in_process, stop) -> None:
    consortium = in_process(THREE, rounds=ROUNDS)
    cedar = consortium.participants["cedar"]
    consortium.participants["cedar"] = OtherVersion(
        cedar.site, cedar.role, cedar.load, cedar.state_dir, cedar.device, cedar.say
    )
    grid = consortium.grid()
    outcome = run(consortium, grid, stop)
    assert outcome is not None
    assert ("cedar", "architecture-mismatch") in outcome.failures
    assert all(kind != "train" for kind, _, site in grid.delivered if site == "cedar")
    mistake = consortium.participants["cedar"].mistake
    assert mistake is not None
    assert "'architecture'" in mistake.sentence
    assert [record.states["ash"] for record in outcome.state.history] == ["trained"] * 3


def test_a_stop_while_sites_are_greeted_is_a_stop_and_no_site_s_fault(in_process, stop) -> None:
    consortium = in_process(THREE, rounds={**ROUNDS, "quorum": 3})
    grid = consortium.grid()

    def answers(kind: str, number: int, site: str) -> bool:
        stop.set()
        return False

    grid.answers = answers
    assert run(consortium, grid, stop) is None


def test_too_few_acceptable_sites_end_the_run_in_words(in_process, stop) -> None:
    consortium = in_process(THREE, rounds={**ROUNDS, "quorum": 3})
    cedar = consortium.participants["cedar"]
    consortium.participants["cedar"] = OtherVersion(
        cedar.site, cedar.role, cedar.load, cedar.state_dir, cedar.device, cedar.say
    )
    with pytest.raises(UserError, match=r"2 training sites.*quorum is 3") as caught:
        run(consortium, consortium.grid(), stop)
    assert caught.value.code == "quorum-impossible"


def test_a_stopped_run_goes_on_to_the_same_model_as_an_undisturbed_one(undisturbed, in_process, tmp_path: Path) -> None:
    expected, _ = undisturbed
    consortium = in_process(MEMBERS, root=tmp_path, rounds=ROUNDS)
    stop, grid = threading.Event(), consortium.grid()

    def present(number: int, site: str) -> bool:
        if number == 2:
            stop.set()
        return True

    grid.present = present
    assert run(consortium, grid, stop) is None
    assert states.load(consortium.config.output_dir / "checkpoint.safetensors").round == 1
    resumed = run(consortium, consortium.grid(), threading.Event())
    assert resumed is not None
    assert [record.round for record in resumed.state.history] == [1, 2, 3]
    for group in ("weights", "memory"):
        for name, value in getattr(expected.state, group).items():
            np.testing.assert_array_equal(getattr(resumed.state, group)[name], value)
    assert resumed.chosen.threshold == expected.chosen.threshold


def _interrupted(in_process: Callable[..., Any], root: Path) -> Any:
    consortium = in_process(PAIR, root=root, rounds=ROUNDS)
    stop, grid = threading.Event(), consortium.grid()

    def answers(kind: str, number: int, site: str) -> bool:
        if kind == "train" and number == 2:
            stop.set()
        return True

    grid.answers = answers
    assert run(consortium, grid, stop) is None
    return consortium


def test_resume_refuses_another_configuration(in_process, tmp_path, stop) -> None:
    _interrupted(in_process, tmp_path)
    changed = in_process(PAIR, root=tmp_path, rounds=ROUNDS, seed=6)
    with pytest.raises(UserError, match="--fresh") as caught:
        run(changed, changed.grid(), stop)
    assert caught.value.code == "resume-config-changed"


def test_fresh_starts_anew_and_keeps_the_old_checkpoint(in_process, tmp_path, stop) -> None:
    old = _interrupted(in_process, tmp_path)
    before = states.load(old.config.output_dir / "checkpoint.safetensors")
    changed = in_process(PAIR, root=tmp_path, rounds=ROUNDS, seed=6)
    outcome = run(changed, changed.grid(), stop, fresh=True)
    assert outcome is not None
    assert outcome.state.run != before.run
    kept = list(old.config.output_dir.glob("checkpoint.*.old"))
    assert len(kept) == 1
    assert states.load(kept[0]).run == before.run


@pytest.mark.parametrize(
    ("section", "value", "same"),
    [
        ("output_dir", "elsewhere", True),
        ("listen", {"host": "127.0.0.1", "port": 4001}, True),
        ("telemetry", {"metrics_port": 4002}, True),
        ("seed", 6, False),
        ("training", {"learning_rate": 0.5}, False),
        ("members", {"ash": {}, "birch": {}}, False),
    ],
)
def test_what_may_change_between_restarts(in_process, section: str, value: Any, same: bool) -> None:
    config = in_process(MEMBERS, rounds=ROUNDS).config
    raw = config.model_dump(mode="json") | {section: value}
    assert (config_digest(type(config).model_validate(raw)) == config_digest(config)) is same
