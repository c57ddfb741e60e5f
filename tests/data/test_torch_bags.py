from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from bag_writers import TOOLS

from momkd_fl.data.bags import read_bag, read_header
from momkd_fl.data.encoders import resolve_encoder
from momkd_fl.data.torch_bags import index_file
from momkd_fl.errors import UserError


def _refused(path, code, named=None):
    for read in (read_header, read_bag):
        with pytest.raises(UserError) as error:
            read(path)
        assert error.value.code == code
        assert str(named or path) in error.value.sentence
    return error.value.sentence


@pytest.fixture
def beside(tmp_path, bag_values):
    """Write any object as ``S.pt`` beside slideflow's coordinates of five patches."""

    def write(thing, **options):
        path = TOOLS["slideflow"].write(tmp_path, "S", *bag_values(5))
        torch.save(thing, path, **options)
        return path

    return write


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_number_formats(beside, bag_values, dtype):
    tensor = torch.from_numpy(bag_values(5)[0]).to(dtype)
    bag = read_bag(beside(tensor))
    np.testing.assert_array_equal(bag.features, tensor.float().numpy())
    assert f"torch.{bag.header.dtype}" == str(dtype)


def test_a_leading_axis_of_one(beside, bag_values):
    features = bag_values(5)[0]
    np.testing.assert_array_equal(read_bag(beside(torch.from_numpy(features)[None])).features, features)


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("/tmp/momkd-fl-was-unpickled",)


@pytest.mark.parametrize(
    "thing",
    [
        _Evil(),
        {"features": torch.ones(5, 8)},
        [torch.ones(5, 8)],
        np.ones((5, 8)),
        torch.ones(5, 8, dtype=torch.int64),
        torch.nn.Parameter(torch.ones(5, 8)),
        torch.ones(5, 8).to_sparse(),
        torch.ones(5, 8, device="meta"),
        OrderedDict(),
        "features",
        bytearray(10),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_anything_but_one_plain_tensor_is_refused_and_never_run(beside, thing):
    _refused(beside(thing), "bag-not-tensor")
    assert not os.path.exists("/tmp/momkd-fl-was-unpickled")


def test_bare_pickles_and_other_files_are_refused(beside, tmp_path):
    path = beside(torch.ones(5, 8))
    whole = path.read_bytes()
    for content in (pickle.dumps(_Evil()), b"", b"PK\x05\x06" + bytes(18), b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        _refused(path, "bag-not-tensor")
    assert not os.path.exists("/tmp/momkd-fl-was-unpickled")
    torch.save(torch.ones(5, 8), path, _use_new_zipfile_serialization=False)
    assert "1.6" in _refused(path, "bag-not-tensor")


def test_a_tensor_that_repeats_one_number_declares_no_terabytes(beside):
    _refused(beside(torch.ones(1).expand(10**9, 1000)), "bag-too-large")


def test_archives_that_grow_on_unpacking_are_refused(beside, tmp_path):
    path = beside(torch.zeros(5, 10**6))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert path.stat().st_size < 10**5
    assert "compressed" in _refused(path, "bag-not-tensor")


def test_a_storage_larger_than_its_bytes_is_refused(beside):
    path = beside(torch.ones(5, 8))
    content = path.read_bytes()
    assert content.count(b"K\x05K\x08\x86") == 1  # the shape, as the pickle writes it
    path.write_bytes(content.replace(b"K\x05K\x08\x86", b"K\xffK\x08\x86"))
    with pytest.raises(UserError) as error:
        read_bag(path)
    assert error.value.code in ("bag-not-tensor", "bag-coords-length")


def test_clam_without_coordinates_says_where_to_put_them(tmp_path, bag_values):
    path = TOOLS["clam-pt"].write(tmp_path, "S", *bag_values(5))
    (tmp_path / "patches" / "S.h5").unlink()
    sentence = _refused(path, "bag-coords-missing")
    assert "'S.h5'" in sentence
    assert "h5_files" in sentence


@pytest.mark.parametrize("place", ["patches/S.h5", "patches/S_patches.h5", "../patches/S.h5", "pt_files/patches/S.h5"])
def test_clam_coordinates_lie_where_its_tools_put_them(tmp_path, bag_values, place):
    root = tmp_path / "root"
    features, coords = bag_values(5)
    path = TOOLS["clam-pt"].write(root, "S", features, coords)
    target = root / place
    target.parent.mkdir(exist_ok=True)
    (root / "patches" / "S.h5").rename(target)
    np.testing.assert_array_equal(read_bag(path).coords, coords)


def test_clam_coordinates_of_another_slide_are_refused(tmp_path, bag_values):
    path = TOOLS["clam-pt"].write(tmp_path, "S", *bag_values(5))
    other = TOOLS["clam-pt"].write(tmp_path / "other", "S", *bag_values(6))
    (other.parent.parent / "patches" / "S.h5").rename(tmp_path / "patches" / "S.h5")
    _refused(path, "bag-coords-length")


@pytest.mark.parametrize(
    ("config", "encoder", "patch_um"),
    [
        ({"extractor": {"class": "slideflow.model.extractors.uni.UNIFeatures"}, "tile_um": 302}, "uni", 302),
        ({"extractor": {"class": "x.GigapathTileFeatures"}, "tile_um": "20x", "tile_px": 256}, "gigapath", 128),
        ({"extractor": {"class": "x.Virchow2Features"}, "tile_um": "40x", "tile_px": 224}, "virchow2", 56),
        ({"extractor": "uni", "tile_um": "large", "tile_px": 224}, None, None),
        ({"tile_um": -3}, None, None),
        ({"tile_um": "0x", "tile_px": 224}, None, None),
        ([], None, None),
    ],
)
def test_slideflow_names_extractor_and_tile(tmp_path, bag_values, config, encoder, patch_um):
    path = TOOLS["slideflow"].write(tmp_path / "bags", "S", *bag_values(5))
    (tmp_path / "bags" / "bags_config.json").unlink()
    (tmp_path / "bags_config.json").write_text(json.dumps(config))
    header = read_header(path)
    assert (resolve_encoder(path, header.encoder, None), header.patch_um) == (encoder, patch_um)


def test_a_broken_bags_config_is_named(tmp_path, bag_values):
    path = TOOLS["slideflow"].write(tmp_path, "S", *bag_values(5))
    for content in (b"{", b"\xff\xfe", b"[" * 10**5):
        (tmp_path / "bags_config.json").write_bytes(content)
        _refused(path, "bags-config", tmp_path / "bags_config.json")


def test_slideflow_without_zips_writes_npy(tmp_path, bag_values):
    features, coords = bag_values(5)
    path = TOOLS["slideflow"].write(tmp_path, "S", features, coords)
    index_file(path).unlink()
    np.save(tmp_path / "S.index.npy", coords)
    bag = read_bag(path)
    assert bag.header.format == "slideflow"
    np.testing.assert_array_equal(bag.coords, coords)
