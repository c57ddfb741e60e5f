"""Checkpoints: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from momkd_fl.errors import UserError
from momkd_fl.training import checkpoint

TENSORS = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "n": np.array([3], np.int64), "e": np.zeros((0, 2))}
META = {"round": 3, "members": {"north": {"role": "train"}}, "note": "ü"}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.safetensors"
    checkpoint.save(path, TENSORS, META)
    tensors, meta = checkpoint.load(path)
    assert meta == META
    assert set(tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], value)
        assert tensors[name].dtype == value.dtype
    assert [each.name for each in path.parent.iterdir()] == ["state.safetensors"]
    assert path.stat().st_mode & 0o077 == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 0.999))
def test_a_cut_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut"
    checkpoint.save(path, TENSORS, META)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError) as problem:
        checkpoint.load(path)
    assert problem.value.code == "checkpoint-corrupt"
    assert str(path) in problem.value.sentence


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 0.999), st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_harmless(tmp_path: Path, share: float, bit: int) -> None:
    path = tmp_path / "flipped"
    checkpoint.save(path, TENSORS, META)
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        tensors, meta = checkpoint.load(path)
    except UserError as problem:
        code = problem.code
    else:  # white space between the header's fields means nothing
        code = "checkpoint-corrupt"
        assert meta == META
        assert all(np.array_equal(tensors[name], value) for name, value in TENSORS.items())
    assert code == "checkpoint-corrupt"


def test_a_flipped_bit_of_a_tensor_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "flipped"
    checkpoint.save(path, {"a": TENSORS["a"]}, META)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="checkpoint-corrupt"):
        checkpoint.load(path)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="checkpoint-missing"):
        checkpoint.load(tmp_path / "none")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    checkpoint.save(path, TENSORS, META)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, TENSORS, {"round": 4})
    monkeypatch.undo()
    assert checkpoint.load(path)[1] == META
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
