"""Whole runs in one process with a poisoned site: bounded, logged, refused by name; the run goes on."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from momkd_fl.errors import UserError
from momkd_fl.federation.aggregation import clip_bound
from momkd_fl.federation.coordinator import Coordinator, Outcome
from momkd_fl.federation.rounds import INFLUENCE
from momkd_fl.federation.student import initial_weights, shape_of
from momkd_fl.federation.watch import unwatched

MEMBERS = {"ash": "train", "birch": "train", "cedar": "train"}
ROUNDS = {"count": 1, "quorum": 2, "deadline_s": 5.0, "gather_s": 0.01}
Change = Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]


def poisoned_run(in_process: Any, changes: dict[str, Change], **sections: Any) -> tuple[Any, Outcome | None]:
    """A run in which cedar's answers of some kinds are changed."""
    run = in_process(MEMBERS, rounds=ROUNDS, **sections)
    participant = run.participants["cedar"]
    for kind, change in changes.items():
        setattr(participant, kind, changed(getattr(participant, kind), change))
    return run, Coordinator(run.config, run.grid(), unwatched(run.config), threading.Event(), lambda: {}).run()


def changed(honest: Callable[[Any], Any], change: Change) -> Callable[[Any], Any]:
    return lambda request: change(*honest(request))


def turned(reply: Any, arrays: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """-100 times the update, and every sum of a slot as a million patients would have it."""
    update = {name: np.float32(-100) * value for name, value in arrays["update"].items()}
    statistics = {name: np.float32(-1e3 if "sums" in name else 1e3) * v for name, v in arrays["statistics"].items()}
    return reply, {**arrays, "update": update, "statistics": statistics}


def lines(run: Any) -> dict[str, dict[str, Any]]:
    found = map(json.loads, (run.config.output_dir / INFLUENCE).read_text("utf-8").splitlines())
    return {line["site"]: line for line in found}


@pytest.mark.parametrize("kind", ["plain", "robust"])
def test_an_attacker_is_bounded_and_stands_in_the_log(in_process: Any, kind: str) -> None:
    run, attacked = poisoned_run(in_process, {"train": turned}, aggregation=kind)
    assert attacked is not None
    start = initial_weights(run.config, shape_of(run.config, attacked.state.panel))
    bound = clip_bound(run.config, sum(value.size for value in start.values()))
    for branch, value in attacked.state.weights.items():
        assert 0 < np.linalg.norm(value - start[branch]) <= bound * (1 + 1e-4)
    seen = lines(run)
    assert set(seen) == set(MEMBERS)
    assert seen["cedar"]["norm"] > 10 * seen["ash"]["norm"]
    assert seen["cedar"]["clip_factor"] == pytest.approx(bound / seen["cedar"]["norm"])
    assert sum(line["share"] for line in seen.values()) == pytest.approx(1.0)
    assert {(line["run"], line["round"]) for line in seen.values()} == {(attacked.state.run, 1)}


def test_without_an_attacker_nothing_is_clipped(in_process: Any) -> None:
    run, _ = poisoned_run(in_process, {})
    assert [line["clip_factor"] for line in lines(run).values()] == [1.0] * len(MEMBERS)


def spoilt(group: str, name: str, value: float) -> Change:
    def change(reply: Any, arrays: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        spoilt_array = arrays[group][name].copy()
        spoilt_array.reshape(-1)[0] = value
        return reply, {**arrays, group: {**arrays[group], name: spoilt_array}}

    return change


def test_impossible_answers_are_refused_and_the_run_goes_on(in_process: Any) -> None:
    """Half a patient and not one less than none: that the site's own gate, which a poisoned site lacks, would stop."""
    changes = {"train": spoilt("statistics", "sums.histology", 1e6), "evaluate": spoilt("scores", "counts", 0.5)}
    _, outcome = poisoned_run(in_process, changes)
    assert outcome is not None
    states = outcome.state.history[0].states
    assert states == {"ash": "trained", "birch": "trained", "cedar": "refused:message-value"}
    assert ("cedar", "message-value") in outcome.failures
    assert set(outcome.evaluations["validation"]) == {"ash", "birch"}


def test_an_impossible_start_names_the_site(in_process: Any) -> None:
    def change(reply: Any, arrays: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        statistics = arrays.get("statistics", {})
        return reply, {"statistics": {**statistics, "n": np.float32([-3])}} if "n" in statistics else arrays

    with pytest.raises(UserError) as error:
        poisoned_run(in_process, {"initialise": change})
    assert error.value.code == "initialise-failed"
    assert "cedar" in error.value.sentence


def test_the_public_bound_follows_from_the_configuration_alone(in_process: Any) -> None:
    config = in_process(MEMBERS, rounds=ROUNDS).config  # 1e-3 a step, 13 steps of 8 for about 100 patients
    assert clip_bound(config, 10_000) == pytest.approx(2 * 1e-3 * math.sqrt(13 * 10_000))
    given = config.model_copy(update={"aggregation": config.aggregation.model_copy(update={"clip_norm": 3.0})})
    assert clip_bound(given, 10_000) == 3.0
    lone = config.model_copy(update={"members": {"ash": config.members["ash"]}})
    assert math.isinf(clip_bound(lone, 10_000))
