"""The release's logits, attention, losses and gradients of one case, held as numbers (benchmarks/parity_release)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.parity_release import TOLERANCE, edges, ours, read_fixture, relative, turned_round

CASE, RELEASED = read_fixture()


@pytest.mark.parametrize("label", [0, 1])
def test_every_tensor_is_the_release_s(label: int) -> None:
    got = ours(CASE, label)
    assert got.keys() == RELEASED[label].keys()
    far = {name: relative(got[name], want) for name, want in RELEASED[label].items()}
    assert {name: value for name, value in far.items() if value > TOLERANCE} == {}


def test_every_weight_has_a_gradient_in_the_fixture() -> None:
    for values in RELEASED.values():
        for name in CASE.weights:
            assert np.any(values[f"gradient.{name}"]), name


@pytest.mark.parametrize("name", ["tau", "slots", "encoder.second.attention", "genomics.projection.bias"])
def test_a_weight_moved_by_a_hundredth_is_seen(name: str) -> None:
    moved = replace(CASE, weights={**CASE.weights, name: CASE.weights[name] * 1.01})
    got = ours(moved, 1)
    assert max(relative(got[key], want) for key, want in RELEASED[1].items()) > TOLERANCE


def test_the_release_hears_those_that_list_a_patch() -> None:
    """With the edges as they are in this product, the logits are others: the direction is part of the parity."""
    own_nearest = replace(CASE, neighbours=turned_round(CASE.neighbours))
    assert relative(ours(own_nearest, 1)["logits"], RELEASED[1]["logits"]) > 10 * TOLERANCE


def test_turning_edges_round_twice_gives_them_back() -> None:
    again = turned_round(turned_round(CASE.neighbours))
    assert set(map(tuple, edges(again).T)) == set(map(tuple, edges(CASE.neighbours).T))
    assert set(map(tuple, edges(turned_round(CASE.neighbours))[::-1].T)) == set(map(tuple, edges(CASE.neighbours).T))
    assert len(edges(CASE.neighbours).T) == 8 * len(CASE.neighbours)
