"""Reading past HDF5 gives what HDF5 gives, for any layout; and damaged places never reach outside the file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.data import chunked
from momkd_fl.data.chunked import read_dataset


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 9)),
    chunk=st.one_of(st.none(), st.tuples(st.integers(1, 12), st.integers(1, 9))),
    dtype=st.sampled_from(["float16", "float32", "int32", "int64", ">f4"]),
    gzip=st.booleans(),
    growing=st.booleans(),
    seed=st.integers(0, 9),
)
def test_equals_hdf5(tmp_path_factory, shape, chunk, dtype, gzip, growing, seed) -> None:
    path = tmp_path_factory.mktemp("h5") / "a.h5"
    values = np.random.default_rng(seed).integers(-50, 50, shape).astype(dtype)
    options = {}
    if chunk is not None:
        options["chunks"] = tuple(min(one, size) for one, size in zip(chunk, shape, strict=True))
        if gzip:
            options["compression"] = "gzip"
    with h5py.File(path, "w") as file:
        if growing and chunk is not None:  # rows appended one after another, with something else in between
            data = file.create_dataset("x", (0, shape[1]), dtype, maxshape=(None, shape[1]), **options)
            for row in range(shape[0]):
                data.resize(row + 1, axis=0)
                data[row] = values[row]
                if row % 5 == 0:
                    file.create_dataset(f"other{row}", data=np.zeros(17))
        else:
            file.create_dataset("x", data=values, **options)
    with h5py.File(path) as file:
        for _ in range(2):  # found, then remembered
            got = read_dataset(path, file["x"])
            np.testing.assert_array_equal(got, values)
            assert got.dtype == np.dtype(dtype)


def test_rows_of_one_chunk_each_are_read_past_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    values = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float16)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=values, chunks=(1, 64))
    with h5py.File(path) as file:
        runs = chunked._find_runs(file["features"], path.stat().st_size)
        assert 0 < len(runs) < 60, "neighbouring chunks are joined"
        np.testing.assert_array_equal(read_dataset(path, file["features"]), values)


def test_chunks_never_written_are_hdf5_s_business(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", (10, 4), "float32", chunks=(1, 4), fillvalue=7.0)
        data[3] = 1.0
    with h5py.File(path) as file:
        got = read_dataset(path, file["x"])
    assert got[3].tolist() == [1.0] * 4
    assert got[0].tolist() == [7.0] * 4


def test_a_changed_file_is_looked_at_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for fill in (1.0, 2.0):
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=np.full((20, 4), fill, np.float32), chunks=(1, 4))
            if fill == 2.0:
                file.create_dataset("y", data=np.zeros(100))
        with h5py.File(path) as file:
            assert read_dataset(path, file["x"]).max() == fill


@pytest.mark.parametrize("place", [1 << 40, -8])
def test_places_outside_the_file_are_refused(tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    values = np.ones((3, 4), np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(1, 4))
    with h5py.File(path) as file:
        runs = chunked._find_runs(file["x"], 10)
        assert len(runs) == 0, "ends past the end of the file"
        broken = np.array([[max(place, 0), 0, 48]])
        assert not chunked._read_runs(
            path, broken if place > 0 else np.array([[path.stat().st_size - 8, 0, 48]]), values
        )
