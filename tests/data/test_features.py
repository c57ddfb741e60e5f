from __future__ import annotations

import numpy as np
import pytest

from momkd_fl.data.features import common_features, same_edge
from momkd_fl.errors import UserError


@pytest.fixture
def check(make_site):
    """Check files as one patient's slides."""

    def checking(*paths, **data):
        return common_features({"a": tuple(paths)}, make_site(**data).data)

    return checking


def _refused(code, call):
    with pytest.raises(UserError) as error:
        call()
    assert error.value.code == code
    return error.value.sentence


def test_clam_files_need_a_configured_encoder(tmp_path, write_clam, check):
    path = write_clam(tmp_path / "S1.h5")
    assert str(path) in _refused("encoder-unknown", lambda: check(path))
    found = check(path, encoder="House encoder", patch_um=112)
    assert (found.encoder, found.dim, found.patch_um) == ("house-encoder", 8, 112)


def test_placeholder_attribute_gives_way_to_the_configuration(tmp_path, write_trident, check):
    path = write_trident(tmp_path / "S1.h5", encoder="placeholder")
    assert check(path, encoder="house").encoder == "house"
    assert check(path).encoder == "placeholder"


def test_published_encoder_with_another_dimension(tmp_path, write_trident, check):
    assert "1536" in _refused("encoder-dim", lambda: check(write_trident(tmp_path / "S1.h5", encoder="uni_v2")))


def test_files_of_two_kinds(tmp_path, write_trident, check):
    one = write_trident(tmp_path / "S1.h5")
    for name, code, options in (
        ("S2", "dim-mixed", {"dim": 9}),
        ("S3", "encoder-mixed", {"encoder": "other"}),
        ("S4", "patch-um-mixed", {"level0": 1024}),
    ):
        two = write_trident(tmp_path / f"{name}.h5", **options)
        assert str(two) in _refused(code, lambda two=two: check(one, two))


def test_patch_edge_comes_from_the_files_that_know_it(tmp_path, write_trident, check):
    silent = write_trident(tmp_path / "S1.h5", level0=None)
    stated = write_trident(tmp_path / "S2.h5")
    assert check(silent).patch_um is None
    assert check(silent, stated).patch_um == 128
    assert check(silent, stated, patch_um=119).patch_um == 119  # measured, within 10% of the nominal 128
    assert "119" not in _refused("patch-um-conflict", lambda: check(stated, patch_um=64))


def test_up_to_five_bad_files_are_named_at_once(tmp_path, write_trident, check):
    paths = [
        write_trident(tmp_path / f"S{number}.h5", features=np.zeros((0, 8)), coords=np.zeros((0, 2)))
        for number in range(7)
    ]
    sentence = _refused("bag-empty", lambda: check(*paths))
    assert sum(str(path) in sentence for path in paths) == 5
    assert "2 more" in sentence


def test_edges_are_nominal():
    assert same_edge(128, 119)
    assert same_edge(119, 128)
    assert not same_edge(128, 112)
    assert not same_edge(float("nan"), 128)
