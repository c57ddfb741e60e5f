"""The coordinator's checkpoint: everything comes back, nothing half-written is taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from momkd_fl.errors import UserError
from momkd_fl.federation.state import Best, RoundRecord, ServerState, load, save
from momkd_fl.training import checkpoint


def record(number: int) -> RoundRecord:
    values = {
        "round": number,
        "seconds": 1.5,
        "seconds_by_phase": {"train": 1.0},
        "bytes_received": 10,
        "bytes_sent": 20,
        "states": {"ash": "trained", "birch": "missing"},
        "loss": None,
        "auroc": 0.5,
        "losses": {"classification": 0.7},
        "effective_patches": None,
    }
    floats = {field.name: 0.25 for field in dataclasses.fields(RoundRecord) if field.name not in values}
    return RoundRecord(**values, **floats)


def state(value: np.ndarray) -> ServerState:
    named = {"histology": value, "genomics": value[::-1].copy()}
    return ServerState(
        run="small-1",
        round=2,
        config_digest="d" * 64,
        architecture="a" * 64,
        panel=("ESR1", "PGR"),
        members={"ash": {"role": "train", "genomics": True, "fingerprint": {"dim": 16, "scanner": None}}},
        weights=named,
        memory={"slots": value},
        space={"mean": value},
        optimiser={"m_t.histology": value.astype(np.float64)},
        history=(record(1), record(2)),
        best=Best(1, 0.5, named, {"slots": value}, {"counts": value}),
    )


def assert_same(one: ServerState, other: ServerState) -> None:
    for field in dataclasses.fields(ServerState):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name == "best" and ours is not None:
            assert (ours.round, ours.loss) == (theirs.round, theirs.loss)
            pairs = [(getattr(ours, group), getattr(theirs, group)) for group in ("weights", "memory", "scores")]
        elif field.name in ("weights", "memory", "space", "optimiser"):
            pairs = [(ours, theirs)]
        else:
            assert ours == theirs, field.name
            continue
        for mine, yours in pairs:
            assert set(mine) == set(yours)
            for name in mine:
                np.testing.assert_array_equal(mine[name], yours[name])
                assert mine[name].dtype == yours[name].dtype


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=4), elements=st.floats(-1e6, 1e6, width=32))
)
def test_a_state_comes_back_whole(tmp_path: Path, value: np.ndarray) -> None:
    one = state(value)
    save(tmp_path / "c.safetensors", one)
    assert_same(one, load(tmp_path / "c.safetensors"))


def test_a_state_without_a_best_round_comes_back_without(tmp_path: Path) -> None:
    one = state(np.ones(3, np.float32)).after(best=None, history=())
    save(tmp_path / "c.safetensors", one)
    assert_same(one, load(tmp_path / "c.safetensors"))


def test_a_save_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save(path, state(np.ones(3, np.float32)))
    save(path, state(np.zeros(3, np.float32)))
    assert not load(path).weights["histology"].any()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_half_a_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "c.safetensors"
    save(path, state(np.ones(300, np.float32)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="--fresh") as caught:
        load(path)
    assert caught.value.code == "checkpoint-corrupt"


def test_another_version_s_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save(path, state(np.ones(3, np.float32)))
    tensors, meta = checkpoint.load(path)
    checkpoint.save(path, tensors, {**meta, "format": 99})
    with pytest.raises(UserError, match="99") as caught:
        load(path)
    assert caught.value.code == "checkpoint-format"
