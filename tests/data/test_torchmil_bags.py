from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bag_writers import TOOLS
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.data.bags import find_bags, read_bag, read_header
from momkd_fl.data.torchmil_bags import coords_file, in_features_folder, unit_of_steps
from momkd_fl.errors import UserError


def _refused(path, code):
    with pytest.raises(UserError) as error:
        read_header(path)
    assert error.value.code == code
    assert str(path) in error.value.sentence


def test_coordinates_lie_beside_the_features_folder(tmp_path, bag_values):
    features, coords = bag_values(5)
    path = TOOLS["torchmil-npy"].write(tmp_path, "S", features, coords)
    assert coords_file(path) == tmp_path / "coords" / "S.npy"
    (tmp_path / "coords" / "S.npy").unlink()
    _refused(path, "bag-coords-missing")


def test_coordinates_of_another_length(tmp_path, bag_values):
    path = TOOLS["torchmil-npy"].write(tmp_path, "S", *bag_values(5))
    np.save(tmp_path / "coords" / "S.npy", np.zeros((6, 2)))
    _refused(path, "bag-coords-length")


def test_whole_numbers_are_no_features(tmp_path, bag_values):
    path = TOOLS["torchmil-npy"].write(tmp_path, "S", *bag_values(5))
    np.save(path, np.ones((5, 8), dtype=np.int64))
    _refused(path, "bag-no-features")


def test_arrays_elsewhere_are_no_bags(tmp_path, bag_values):
    path = TOOLS["torchmil-npy"].write(tmp_path / "bags", "S", *bag_values(5))
    np.save(tmp_path / "expression.npy", np.ones(3))
    assert find_bags([tmp_path]) == {"S": path}
    assert in_features_folder(path)
    assert not in_features_folder(tmp_path / "expression.npy")


def test_what_was_read_does_not_change_with_the_file(tmp_path, bag_values):
    features, coords = bag_values(5)
    path = TOOLS["torchmil-npy"].write(tmp_path, "S", features, coords)
    bag = read_bag(path)
    with path.open("r+b") as file:
        file.seek(-20, 2)
        file.write(bytes(20))
    np.testing.assert_array_equal(bag.features, features)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=50), st.integers(2, 2048))
def test_steps_of_one_are_a_grid_and_larger_ones_pixels(places, edge):
    grid = np.array([*places, (600, 600), (601, 601)])
    assert unit_of_steps(grid) == "grid"
    assert unit_of_steps(grid * edge) == "px"


def test_one_patch_or_fractions_say_nothing():
    assert unit_of_steps(np.array([[3, 4]])) is None
    assert unit_of_steps(np.array([[0.25, 0], [0.5, 0]])) is None
    assert unit_of_steps(np.array([[np.nan, 0], [0.5, 0]])) is None


def test_folders_are_recognised_by_name():
    assert in_features_folder(Path("/d/features/uni/S.npy"))
    assert in_features_folder(Path("/d/features_uni/S.npy"))
    assert not in_features_folder(Path("/d/features/a/b/S.npy"))
