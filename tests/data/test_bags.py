from __future__ import annotations

import time

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.data.bags import find_bags, read_bag, read_header, slide_id
from momkd_fl.errors import UserError


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_trident_file_is_read_as_written(tmp_path, write_trident, bag_values, dtype):
    path = write_trident(tmp_path / "S1.h5", 12, dtype=dtype, encoder="uni_v2")
    bag = read_bag(path)
    features, coords = bag_values(12)
    assert bag.features.dtype == bag.coords.dtype == np.float32
    np.testing.assert_array_equal(bag.features, features.astype(dtype).astype(np.float32))
    np.testing.assert_array_equal(bag.coords, coords)
    header = bag.header
    assert (header.slide, header.format, header.patches, header.dim) == ("S1", "trident", 12, 8)
    assert (header.encoder, header.patch_um) == ("uni_v2", 128.0)
    assert header == read_header(path)


def test_clam_file_is_read_as_written(tmp_path, write_clam, bag_values):
    bag = read_bag(write_clam(tmp_path / "S2.h5", 40))
    features, coords = bag_values(40)
    np.testing.assert_array_equal(bag.features, features)
    np.testing.assert_array_equal(bag.coords, coords)
    assert (bag.header.format, bag.header.encoder, bag.header.patch_um) == ("clam", None, None)


def test_leading_axis_of_one_is_squeezed(tmp_path, write_trident, bag_values):
    features, coords = bag_values(9)
    path = write_trident(tmp_path / "S.h5", features=features[None], coords=coords[None], dtype="float32")
    np.testing.assert_array_equal(read_bag(path).features, features)
    np.testing.assert_array_equal(read_bag(path).coords, coords)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b/S1.svs", "S1"),
        ("C:\\scans\\S1.NDPI", "S1"),
        ("S1.ome.tif", "S1"),
        ("S1.svs.h5", "S1"),
        ("TCGA-A6-2671-01Z-00-DX1.13d1a0d9-78cd.h5", "TCGA-A6-2671-01Z-00-DX1.13d1a0d9-78cd"),
        ("0012", "0012"),
        (" S1 ", "S1"),
        (".h5", ".h5"),
    ],
)
def test_slide_id(name, expected):
    assert slide_id(name) == expected


@given(st.text(max_size=30))
def test_slide_id_is_stable(name):
    assert slide_id(slide_id(name)) == slide_id(name)


def test_bags_are_found_in_all_folders(tmp_path, write_trident):
    one = write_trident(tmp_path / "a" / "20x" / "features_uni_v2" / "S1.h5")
    two = write_trident(tmp_path / "b" / "S2.svs.h5")
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert find_bags([tmp_path / "a", tmp_path / "b"]) == {"S1": one, "S2": two}
    assert set(find_bags([tmp_path, tmp_path / "a"])) == {"S1", "S2"}  # overlapping roots are no duplicates


def test_a_slide_in_two_files_names_both(tmp_path, write_trident):
    one, two = write_trident(tmp_path / "uni" / "S1.h5"), write_trident(tmp_path / "conch" / "S1.h5")
    with pytest.raises(UserError, match="S1") as error:
        find_bags([tmp_path])
    assert error.value.code == "bag-duplicate"
    assert str(one) in error.value.sentence
    assert str(two) in error.value.sentence


def test_folders_without_bags(tmp_path):
    for root, code in ((tmp_path / "none", "features-missing"), (tmp_path, "features-empty")):
        with pytest.raises(UserError) as error:
            find_bags([root])
        assert error.value.code == code
        assert str(root) in error.value.sentence


def _refused(path, code):
    with pytest.raises(UserError) as error:
        read_bag(path)
    assert error.value.code == code
    assert str(path) in error.value.sentence
    return error.value.sentence


def test_missing_and_foreign_files(tmp_path):
    _refused(tmp_path / "none.h5", "bag-missing")
    _refused(tmp_path, "bag-missing")
    text = tmp_path / "text.h5"
    text.write_text("not features")
    _refused(text, "bag-not-hdf5")
    (tmp_path / "void.h5").touch()
    _refused(tmp_path / "void.h5", "bag-not-hdf5")


def test_truncated_file(tmp_path, write_trident):
    path = write_trident(tmp_path / "S.h5", 200)
    path.write_bytes(path.read_bytes()[:3000])
    _refused(path, "bag-unreadable")


@pytest.mark.parametrize("shape", [(0, 8), (0,)])
def test_empty_slide(tmp_path, write_trident, shape):
    path = write_trident(tmp_path / "S.h5", features=np.zeros(shape), coords=np.zeros((0, 2), dtype=np.int64))
    assert "no patches" in _refused(path, "bag-empty")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number(tmp_path, write_trident, bag_values, value):
    features, coords = bag_values(5)
    features[3, 2] = value
    assert "patch 3" in _refused(write_trident(tmp_path / "S.h5", features=features), "bag-nan")
    places = coords.astype(np.float64)
    places[1, 0] = value
    assert "'coords'" in _refused(write_trident(tmp_path / "T.h5", 5, coords=places), "bag-nan")


def test_all_zero(tmp_path, write_trident):
    _refused(write_trident(tmp_path / "S.h5", features=np.zeros((5, 8))), "bag-all-zero")


@pytest.mark.parametrize("shape", [(4, 2), (6, 2), (5, 3), (5,), (0, 2)])
def test_coordinates_of_another_length(tmp_path, write_trident, shape):
    path = write_trident(tmp_path / "S.h5", 5, coords=np.zeros(shape, dtype=np.int64))
    assert "5 patches" in _refused(path, "bag-coords-length")


def test_missing_datasets(tmp_path):
    path = tmp_path / "coords_only.h5"
    with h5py.File(path, "w") as file:
        file["coords"] = np.zeros((5, 2), dtype=np.int32)
    assert "found: coords" in _refused(path, "bag-no-features")
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((5, 8), dtype=np.float32)
    _refused(path, "bag-coords-missing")
    with h5py.File(path, "w") as file:
        file.create_group("features")
        file["coords"] = np.zeros((5, 2))
    _refused(path, "bag-no-features")


@pytest.mark.parametrize("features", [np.ones((5, 8), dtype=np.int32), np.full((5, 8), b"x"), np.ones((2, 5, 8))])
def test_features_of_another_kind(tmp_path, features):
    path = tmp_path / "S.h5"
    with h5py.File(path, "w") as file:
        file["features"] = features
        file["coords"] = np.zeros((5, 2), dtype=np.int32)
    _refused(path, "bag-no-features")


def test_reading_changes_nothing(tmp_path, write_trident):
    path = write_trident(tmp_path / "S.h5")
    path.chmod(0o444)
    before = path.read_bytes(), path.stat().st_mtime_ns
    read_bag(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_float16_costs_no_more_than_reading_and_converting(tmp_path, write_trident):
    """HDF5's own conversion is several times slower; the bound is loose, for a busy machine."""
    path = write_trident(tmp_path / "S.h5", 2000, 512)

    def seconds(read):
        best = min(_timed(read) for _ in range(3))
        return best

    def _timed(read):
        start = time.process_time()
        read()
        return time.process_time() - start

    def plainly():
        with h5py.File(path, "r") as file:
            return file["features"][()].astype(np.float32)

    assert seconds(lambda: read_bag(path)) < 3 * seconds(plainly) + 0.02
