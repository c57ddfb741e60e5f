from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from momkd_fl.data.graph import neighbours


def test_a_patch_hears_from_its_own_nearest():
    """An outlier lists the cluster, and no patch of the cluster lists the outlier: the direction of edges."""
    coords = np.array([[0, 0], [1, 0], [0, 1.5], [100, 0]], dtype=np.float32)
    index = neighbours(coords, 2)
    np.testing.assert_array_equal(index, [[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 1, 0]])
    assert index.dtype == np.int32


@pytest.mark.parametrize("patches", [0, 1, 2, 5])
def test_fewer_patches_than_neighbours(patches):
    coords = np.arange(patches * 2, dtype=np.float32).reshape(patches, 2)
    index = neighbours(coords, 8)
    assert index.shape == (patches, 9)
    np.testing.assert_array_equal(index[:, 0], np.arange(patches))
    assert ((index >= 0).sum(axis=1) == patches).all()
    assert (index[:, patches:] == -1).all()


def test_ties_go_to_the_earlier_row():
    side = np.arange(5)
    coords = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2).astype(np.float32)
    index = neighbours(coords, 2)
    np.testing.assert_array_equal(index[12], [12, 7, 11])
    np.testing.assert_array_equal(index, neighbours(coords.copy(), 2))


def test_a_student_without_a_graph_hears_of_nothing_but_the_patch():
    index = neighbours(np.zeros((10, 2), dtype=np.float32), 0)
    assert index.tolist() == [[row] for row in range(10)]
    with pytest.raises(ValueError, match="k must"):
        neighbours(np.zeros((10, 2), dtype=np.float32), -1)


_POINTS = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(2)), elements=st.integers(0, 6).map(float))


@given(_POINTS, st.integers(1, 10))
def test_neighbours_are_the_nearest_by_brute_force(coords, k):
    """Small grids are full of ties and of patches on the same spot."""
    index = neighbours(coords, k)
    distance = np.linalg.norm(coords[:, None].astype(float) - coords[None].astype(float), axis=2)
    width = min(k, len(coords) - 1)
    for row, found in enumerate(index):
        assert found[0] == row
        chosen = found[1 : width + 1]
        assert row not in chosen
        assert len(set(chosen.tolist())) == width
        nearest = np.sort(np.delete(distance[row], row))[:width]
        np.testing.assert_allclose(distance[row, chosen], nearest)
    assert (index[:, width + 1 :] == -1).all()
