from __future__ import annotations

import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.data.bags import read_bag, read_header
from momkd_fl.errors import UserError


def _refused(path, code):
    for read in (read_header, read_bag):
        with pytest.raises(UserError) as error:
            read(path)
        assert error.value.code == code
        assert str(path) in error.value.sentence


def _with_coords(path, patches=5):
    file = h5py.File(path, "w")
    file["coords"] = np.zeros((patches, 2), dtype=np.int32)
    return file


def test_soft_and_external_links_are_not_followed(tmp_path, write_trident):
    other = write_trident(tmp_path / "other.h5", 5)
    path = tmp_path / "S.h5"
    for link in (h5py.SoftLink("/real"), h5py.SoftLink("/nowhere"), h5py.ExternalLink(str(other), "features")):
        with _with_coords(path) as file:
            file["real"] = np.ones((5, 8), dtype=np.float32)
            file["features"] = link
        _refused(path, "bag-link")


def test_linked_coordinates_are_not_followed(tmp_path):
    path = tmp_path / "S.h5"
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((5, 8), dtype=np.float32)
        file["coords"] = h5py.ExternalLink("/etc/passwd", "x")
    _refused(path, "bag-link")


def test_external_storage_reads_no_other_file(tmp_path):
    secret = tmp_path / "secret.bin"
    np.full((5, 8), 7, dtype=np.float32).tofile(secret)
    path = tmp_path / "S.h5"
    with _with_coords(path) as file:
        file.create_dataset("features", (5, 8), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    with h5py.File(path, "r") as file:  # what a reader that trusts the file would see
        assert file["features"][0, 0] == 7
    _refused(path, "bag-link")


def test_virtual_datasets_are_refused(tmp_path, write_trident):
    other = write_trident(tmp_path / "other.h5", 5, dtype="float32")
    path = tmp_path / "S.h5"
    layout = h5py.VirtualLayout((5, 8), "f4")
    layout[:] = h5py.VirtualSource(str(other), "features", shape=(5, 8))
    with _with_coords(path) as file:
        file.create_virtual_dataset("features", layout)
    _refused(path, "bag-link")


def test_a_small_file_cannot_declare_terabytes(tmp_path):
    path = tmp_path / "S.h5"
    rows = 10**9
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (rows, 1024), "f2", chunks=(1, 1024))
        file.create_dataset("coords", (rows, 2), "i4", chunks=(1024, 2))
    assert path.stat().st_size < 20_000
    _refused(path, "bag-too-large")


def test_declared_but_never_written_is_all_zero(tmp_path):
    path = tmp_path / "S.h5"
    with _with_coords(path) as file:
        file.create_dataset("features", (5, 8), "f4", chunks=(1, 8), fillvalue=3.0)
    with pytest.raises(UserError) as error:
        read_bag(path)
    assert error.value.code == "bag-all-zero"


def test_hostile_attributes_are_ignored(tmp_path, write_trident):
    path = write_trident(tmp_path / "S.h5")
    with h5py.File(path, "a") as file:
        file["features"].attrs["encoder"] = ["a"] * 50
        file["coords"].attrs["level0_magnification"] = "forty"
        file["coords"].attrs["target_magnification"] = -1
    header = read_header(path)
    assert (header.encoder, header.patch_um) == (None, None)


_GOOD = tempfile.TemporaryDirectory()


def _good_bytes() -> bytes:
    path = Path(_GOOD.name) / "good.h5"
    if not path.exists():
        with h5py.File(path, "w") as file:
            features = file.create_dataset("features", data=np.ones((6, 4), dtype=np.float16), chunks=(1, 4))
            features.attrs["encoder"] = "house-4"
            coords = file.create_dataset("coords", data=np.arange(12).reshape(6, 2))
            coords.attrs["patch_size_level0"] = 512
            coords.attrs["level0_magnification"] = 40
    return path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_file_is_read_or_refused_with_a_sentence(data):
    content = bytearray(_good_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    path = Path(_GOOD.name) / "mutant.h5"
    path.write_bytes(content)
    sentence, bag = "", None
    try:
        bag = read_bag(path)
    except UserError as refused:
        sentence = refused.sentence
    assert str(path) in sentence or (np.isfinite(bag.features).all() and len(bag.features) == len(bag.coords))
