from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from momkd_fl.data.arrays import map_npy, read_npz_member
from momkd_fl.errors import UserError


def _refused(code, read, *arguments):
    with pytest.raises(UserError) as error:
        read(*arguments)
    assert error.value.code == code
    assert str(arguments[0]) in error.value.sentence


@given(arrays.arrays(st.sampled_from(["f2", "f4", "i4", "i8", ">f8"]), arrays.array_shapes(max_dims=3)), st.booleans())
def test_numbers_come_back_as_written(tmp_path_factory, values, by_columns):
    folder = tmp_path_factory.mktemp("arrays")
    values = np.asfortranarray(values) if by_columns else values
    np.save(folder / "a.npy", values)
    np.savez(folder / "a.npz", arr_0=values)
    np.savez_compressed(folder / "b.npz", arr_0=values)
    for read in (map_npy(folder / "a.npy"), *(read_npz_member(folder / f"{name}.npz", "arr_0") for name in "ab")):
        assert read.dtype == values.dtype
        np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize(
    "values", [np.array([{"a": 1}], dtype=object), np.array(["a"]), np.array([1j]), np.array([b"x"])]
)
def test_objects_and_texts_are_refused(tmp_path, values):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    np.savez(tmp_path / "a.npz", arr_0=values)
    _refused("bag-not-npy", map_npy, tmp_path / "a.npy")
    _refused("bag-not-npy", read_npz_member, tmp_path / "a.npz", "arr_0")


def _declared(shape: str) -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros((1111, 2)))
    return content.getvalue().replace(b"(1111, 2)", shape.encode())


@pytest.mark.parametrize(
    "shape", ["(9**9,2)", "(99999,2)", "(-111, 2)", "(1111,-2)", "((1,), 2)", "'aaaaaaa'", "(" * 9]
)
def test_shapes_that_lie_are_refused(tmp_path, shape):
    content = _declared(shape[:9].ljust(9))
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", content)
    _refused("bag-not-npy", map_npy, tmp_path / "a.npy")
    _refused("bag-not-npy", read_npz_member, tmp_path / "a.npz", "arr_0")


def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("arr_0.npy", bytes(2 * 10**7))
    assert path.stat().st_size < 10_000
    _refused("bag-too-large", read_npz_member, path, "arr_0")


def test_missing_and_damaged(tmp_path):
    _refused("bag-missing", map_npy, tmp_path / "none.npy")
    _refused("bag-missing", read_npz_member, tmp_path / "none.npz", "arr_0")
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    _refused("bag-not-npy", read_npz_member, tmp_path / "a.npz", "arr_0")
    for name, read in (("a.npy", map_npy), ("b.npz", lambda path: read_npz_member(path, "arr_0"))):
        for content in (b"", b"text", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x09\x00\x10\x00{}"):
            (tmp_path / name).write_bytes(content)
            _refused("bag-not-npy", read, tmp_path / name)
