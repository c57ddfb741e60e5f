"""The benchmark of the memory's staleness: its stale run is the product's, its renewed run moves by renewed sums."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.staleness import Trained, figures_of, train
from momkd_fl.config.base import load
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.federation import state as states
from momkd_fl.federation.comparators import Shelf
from momkd_fl.federation.simulate import simulate
from momkd_fl.federation.watch import unwatched

MEMBERS = {"ash": "train", "birch": "train", "holly": "evaluate"}
ROUNDS = {"count": 3, "quorum": 2, "deadline_s": 5.0}


@pytest.fixture(scope="module")
def runs(in_process: Any, hospitals: Path) -> dict[str, tuple[Trained | None, states.ServerState]]:
    """The product's run, and the benchmark's two; each with the state it ended in."""
    shelf = Shelf({site: load(hospitals / site / "site.yaml", SiteConfig) for site in MEMBERS}, torch.device("cpu"))

    def ended(config: FederationConfig, trained: Trained | None) -> tuple[Trained | None, states.ServerState]:
        return trained, states.load(config.output_dir / "checkpoint.safetensors")

    usual = in_process(MEMBERS, rounds=ROUNDS)
    simulate(usual.config, usual.participants, unwatched(usual.config), threading.Event())
    found = {"product": ended(usual.config, None)}
    for renew in (False, True):
        config = in_process(MEMBERS, rounds=ROUNDS).config
        found["renewed" if renew else "stale"] = ended(config, train(config, shelf, renew))
    return found


def test_measuring_twice_changes_nothing_of_the_product_s_run(runs: Any) -> None:
    _, product = runs["product"]
    _, stale = runs["stale"]
    for group in ("weights", "memory"):
        for name, value in getattr(product, group).items():
            np.testing.assert_array_equal(getattr(stale, group)[name], value)


def test_each_run_ends_with_the_memory_of_its_own_kind_of_sums(runs: Any) -> None:
    for kind in ("stale", "renewed"):
        trained, state = runs[kind]
        assert len(trained.rounds) == 3
        np.testing.assert_array_equal(state.memory["slots"], getattr(trained.rounds[-1], kind))
        assert not np.array_equal(trained.rounds[-1].stale, trained.rounds[-1].renewed)


def test_both_runs_share_their_first_round_s_weights_and_part_after_it(runs: Any) -> None:
    stale, renewed = runs["stale"][0].rounds, runs["renewed"][0].rounds
    for name in ("old", "new", "stale", "renewed"):
        np.testing.assert_array_equal(getattr(stale[0], name), getattr(renewed[0], name))
    assert not np.array_equal(stale[1].new, renewed[1].new)


def test_the_figures_compare_the_same_patients(runs: Any) -> None:
    pair = runs["stale"][0], runs["renewed"][0]
    figures = {figure.figure: figure for figure in figures_of([pair, pair])}
    assert set(pair[0].held_out.site_names) == {"holly"}
    assert set(pair[0].validation.site_names) == {"ash", "birch"}
    assert 0.0 < figures["staleness.slot_cosine"].value <= 1.0
    assert 0.0 <= figures["staleness.slots_beyond_15_deg"].value <= 1.0
    assert figures["staleness.memory_angle"].value > 0.0
    low, high = figures["staleness.auroc_cost"].interval
    assert low <= figures["staleness.auroc_cost"].value <= high
    assert figures["staleness.seconds_saved"].value > 0.0
