"""The spatial graph: which patches a patch hears from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

_SPARE = 8
"""Neighbours asked for beyond k, so that ties at the k-th are settled by row: a grid has at most this many."""


def neighbours(coords: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int32]:
    """Each patch and its k nearest patches on the same slide (METHOD section 2).

    A patch hears from *its own* nearest, so every row of a large slide has k neighbours; the
    released code turns the edges round. The same coordinates always give the same neighbours: equally near
    patches are taken in the order of their rows (among the nearest k + 9 where more than that are tied).

    Parameters
    ----------
    coords : ndarray (P, 2)
        Of one slide, in any unit.
    k : int
        Neighbours of a patch; 0 for a student that looks at no graph.

    Returns
    -------
    ndarray (P, k + 1), int32
        Column 0 is the patch itself, columns 1 to k its neighbours, nearest first; -1 where the
        slide has fewer than k + 1 patches.
    """
    if k < 0:
        raise ValueError("k must not be negative")
    index = np.full((len(coords), k + 1), -1, dtype=np.int32)
    index[:, 0] = np.arange(len(coords), dtype=np.int32)
    width = min(k, len(coords) - 1)
    if width > 0:
        index[:, 1 : width + 1] = _nearest(coords, width)
    return index


def _nearest(coords: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.int64]:
    """Rows of the ``width`` nearest other patches, (P, width), by distance and then by row."""
    points = np.asarray(coords, dtype=np.float64)
    asked = min(len(points), width + 1 + _SPARE)
    distance, row = cKDTree(points).query(points, k=asked)
    own = np.arange(len(points))[:, None]
    # The patch itself first, whatever else lies on the same spot; it may not be among those found there.
    distance = np.where(row == own, -1.0, distance)
    order = np.lexsort((row, distance), axis=1)
    row = np.take_along_axis(row, order, axis=1)
    found_itself = row[:, :1] == own
    return np.where(found_itself, row[:, 1 : width + 1], row[:, :width])
