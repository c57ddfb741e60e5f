"""The federation in one process: the same messages, every site's file, a run that repeats itself exactly."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from momkd_fl.config.base import load
from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.federation.simulate import member_sites, simulate
from momkd_fl.federation.watch import unwatched

MEMBERS = {"ash": "train", "birch": "train", "holly": "evaluate"}
ROUNDS = {"count": 2, "quorum": 2, "deadline_s": 5.0}


def run(consortium):
    return simulate(consortium.config, consortium.participants, unwatched(consortium.config), threading.Event())


def test_the_same_seed_gives_the_same_model_to_the_last_bit_and_another_does_not(in_process) -> None:
    first, again, other = (run(in_process(MEMBERS, rounds=ROUNDS, seed=seed)) for seed in (5, 5, 6))
    for group in ("weights", "memory", "space"):
        for name, value in getattr(first.state, group).items():
            np.testing.assert_array_equal(getattr(again.state, group)[name], value)
    assert (first.state.weights["histology"] != other.state.weights["histology"]).any()


@pytest.mark.parametrize(
    "sections",
    [
        {"strategy": {"name": "fedadam"}},
        {"strategy": {"name": "fedprox", "proximal_mu": 0.1}},
        {"memory": {"mode": "momentum", "slots": 2}},
        {"memory": {"mode": "gradient", "slots": 2}},
        {"memory": {"mode": "frozen", "slots": 2, "genomics": False}},
        {"model": {"architecture": "gated_attention", "hidden_dim": 16, "memory_dim": 8}},
        {"genes": {"panel": "odx21"}},
        {"genes": {"panel": "learnt", "count": 8}},
    ],
    ids=["fedadam", "fedprox", "momentum", "gradient", "frozen", "gated_attention", "odx21", "learnt"],
)
def test_every_method_that_can_be_asked_for_runs_to_its_end(in_process, sections) -> None:
    outcome = run(in_process(MEMBERS, rounds=ROUNDS, **sections))
    assert [set(record.states.values()) for record in outcome.state.history] == [{"trained"}, {"trained"}]
    assert set(outcome.evaluations["test"]) == {"holly"}
    for value in outcome.state.weights.values():
        assert np.isfinite(value).all()
    moved = [record.slot_movement_rad for record in outcome.state.history]
    still = sections.get("memory", {}).get("mode") in ("gradient", "frozen") or "model" in sections
    assert all(angle < 1e-3 for angle in moved) if still else all(angle > 1e-3 for angle in moved), moved


def test_a_stop_before_the_start_ends_it_without_an_outcome(in_process) -> None:
    consortium, stop = in_process(MEMBERS, rounds=ROUNDS), threading.Event()
    stop.set()
    assert simulate(consortium.config, consortium.participants, unwatched(consortium.config), stop) is None
    assert not (consortium.config.output_dir / "results.json").exists()


def test_the_federation_s_file_decides_a_member_s_role(new_consortium, tmp_path) -> None:
    consortium = new_consortium(tmp_path, {"ash": "train", "birch": "evaluate"}, rounds={"quorum": 1})
    sites = member_sites(load(consortium.federation, FederationConfig))
    assert {name: site.role for name, site in sites.items()} == {"ash": "train", "birch": "evaluate"}


def test_a_member_without_a_file_and_a_file_of_another_site_are_named(new_consortium, tmp_path) -> None:
    consortium = new_consortium(tmp_path, {"ash": "train", "birch": "train"}, rounds={"quorum": 1})
    config = load(consortium.federation, FederationConfig)
    for value, code in ((None, "member-config-missing"), (consortium.site_file("birch"), "site-name-mismatch")):
        members = config.members | {"ash": config.members["ash"].model_copy(update={"config": value})}
        with pytest.raises(UserError, match="ash") as caught:
            member_sites(config.model_copy(update={"members": members}))
        assert caught.value.code == code
