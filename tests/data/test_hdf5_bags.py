from __future__ import annotations

import h5py
import numpy as np
import pytest
from bag_writers import TOOLS

from momkd_fl.data.bags import read_bag, read_header
from momkd_fl.data.hdf5 import hard_dataset, open_readonly
from momkd_fl.errors import UserError


def _refused(path, code, read=read_header):
    with pytest.raises(UserError) as error:
        read(path)
    assert error.value.code == code
    assert str(path) in error.value.sentence
    return error.value.sentence


def test_keys_are_taken_in_order(tmp_path):
    path = tmp_path / "S.h5"
    with h5py.File(path, "w") as file:
        file["coords"] = np.zeros((3, 2))
        for number, name in enumerate(("patch_embeddings", "feats", "features"), start=1):
            file[name] = np.full((3, 4), number, dtype=np.float32)
    assert read_bag(path).features[0, 0] == 3
    assert read_bag(path, "stamp").features[0, 0] == 2


@pytest.mark.parametrize("name", ["stamp", "stamp-1", "stamp-2.0"])
@pytest.mark.parametrize(
    ("extractor", "expected"), [("uni2-1a2b3c4d", "uni2"), ("virchow-full", "virchow-full"), ("house-8", "house-8")]
)
def test_a_hash_behind_a_published_encoder_is_dropped(tmp_path, bag_values, name, extractor, expected):
    path = TOOLS[name].write(tmp_path, "S", *bag_values(5))
    with h5py.File(path, "a") as file:
        file.attrs["extractor"] = extractor
    assert read_header(path).encoder == expected


def test_an_encoder_trident_does_not_know_is_none(tmp_path, write_trident):
    assert read_header(write_trident(tmp_path / "S.h5", encoder="None")).encoder is None


def test_stamp_coordinates_in_pixels_say_so(tmp_path, bag_values):
    path = TOOLS["stamp-2.0"].write(tmp_path, "S", *bag_values(5))
    with h5py.File(path, "a") as file:
        file.attrs["unit"] = "px"
    header = read_header(path)
    assert (header.unit, header.patch_um) == ("px", None)


@pytest.mark.parametrize("level", ["slide", "patient"])
def test_features_of_a_whole_slide_are_no_bag(tmp_path, bag_values, level):
    path = TOOLS["stamp"].write(tmp_path, "S", *bag_values(1))
    with h5py.File(path, "a") as file:
        file.attrs["feat_type"] = level
    assert f"whole '{level}'" in _refused(path, "bag-slide-level")


def test_augmented_rows_are_no_tissue(tmp_path, bag_values):
    path = TOOLS["stamp-1"].write(tmp_path, "S", *bag_values(5))
    assert read_header(path).patches == 5
    with h5py.File(path, "a") as file:
        file["augmented"][4] = True
    _refused(path, "bag-augmented")


def test_old_features_without_coordinates(tmp_path, bag_values):
    path = TOOLS["stamp-embeddings"].write(tmp_path, "S", *bag_values(5))
    with h5py.File(path, "a") as file:
        del file["coords"]
    _refused(path, "bag-coords-missing")


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_compressed_files_are_read_and_missing_chunks_refused(tmp_path, bag_values, compression):
    features, coords = bag_values(50)
    path = tmp_path / "S.h5"
    with h5py.File(path, "w") as file:
        file["coords"] = coords
        made = file.create_dataset("features", (50, 8), "f4", chunks=(16, 8), compression=compression, shuffle=True)
        made[:33] = features[:33]
    _refused(path, "bag-partly-written", read_bag)
    with h5py.File(path, "a") as file:
        file["features"][33:] = features[33:]
    np.testing.assert_array_equal(read_bag(path).features, features)


def test_filters_of_plugins_are_not_loaded(tmp_path):
    path = tmp_path / "S.h5"
    space, plan = h5py.h5s.create_simple((5, 8)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((5, 8))
    plan.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())  # blosc
    with h5py.File(path, "w") as file:
        file["coords"] = np.zeros((5, 2))
        h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, plan)
    assert "32001" in _refused(path, "bag-filter")


def test_no_more_is_taken_than_the_file_can_hold(tmp_path):
    """One chunk of a gigabyte is written, so the rest would be invented."""
    path = tmp_path / "S.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (400_000, 1024), "f4", chunks=(1, 1024))[0] = 1
        file.create_dataset("coords", (400_000, 2), "i4", chunks=(1, 2))[0] = 1
    assert path.stat().st_size < 20_000
    _refused(path, "bag-too-large")


def test_groups_are_followed_by_hard_links_only(tmp_path):
    path, other = tmp_path / "S.h5", tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["a/values"] = np.ones(3)
    with h5py.File(path, "w") as file:
        file["a/b/values"] = np.ones(3)
        file["plain"] = np.ones(3)
        file["soft"] = h5py.SoftLink("/a")
        file["a/soft"] = h5py.SoftLink("/a/b")
        file["far"] = h5py.ExternalLink("other.h5", "/a")
    with open_readonly(path) as file:
        assert hard_dataset(path, file, "a/b/values").shape == (3,)
        for absent in ("a/c/values", "a/b", "plain/values", "c"):
            assert hard_dataset(path, file, absent) is None
        for linked in ("soft/b/values", "a/soft/values", "far/values"):
            with pytest.raises(UserError) as error:
                hard_dataset(path, file, linked)
            assert error.value.code == "bag-link"
            assert linked in error.value.sentence
