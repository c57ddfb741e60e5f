"""torchmil's folders: ``features/{slide}.npy`` (or ``.h5``) with the coordinates in a parallel ``coords/``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from momkd_fl.data.arrays import map_npy
from momkd_fl.data.header import BagHeader, Format, OpenBag, Unit, bag_shape, coords_missing, slide_id, wrong_format
from momkd_fl.errors import UserError


def in_features_folder(path: Path) -> bool:
    """Whether the file lies in a folder ``features…``, or in a folder of an encoder within one."""
    return any(folder.name.lower().startswith("features") for folder in list(path.parents)[:2])


def coords_file(path: Path) -> Path | None:
    """The file of the same name in the folder ``coords`` that is parallel to the features' folder, or None."""
    for folder in list(path.parents)[:2]:
        beside = folder.parent / "coords" / path.name
        if folder.name.lower().startswith("features") and beside.is_file():
            return beside
    return None


@contextmanager
def open_npy(path: Path, wanted: Format | None) -> Iterator[OpenBag]:
    """Open and describe one ``.npy`` feature file and its coordinates.

    Raises
    ------
    UserError
        As :func:`momkd_fl.data.arrays.map_npy` and ``bag_shape``; ``bag-no-features``,
        ``bag-coords-missing``, ``bag-format``.
    """
    if wanted not in (None, "torchmil"):
        raise wrong_format(path, wanted, "a .npy file is read as torchmil writes it")
    features = map_npy(path)
    if features.dtype.kind != "f":
        raise UserError(
            "bag-no-features",
            f"{path}: the file holds whole numbers, not features. Point data.features at the folder of features, "
            "not of labels or coordinates.",
        )
    place = coords_file(path)
    if place is None:
        raise coords_missing(
            path, f"There is no 'coords/{path.name}' beside its folder. Write the coordinates there (patches × 2)."
        )
    coords = map_npy(place)
    patches, dim = bag_shape(path, features.shape, coords.shape)
    header = BagHeader(
        path=path,
        slide=slide_id(path),
        format="torchmil",
        patches=patches,
        dim=dim,
        encoder=None,
        patch_um=None,
        unit=unit_of_steps(coords.reshape(patches, 2)),
        dtype=features.dtype.name,
    )
    yield OpenBag(header, lambda: np.array(features), lambda: np.array(coords))


def unit_of_steps(coords: npt.NDArray[np.generic]) -> Unit | None:
    """``grid`` where the closest different values (P, 2) of both axes are 1 apart, ``px`` where farther.

    torchmil takes either and no file says which; patches of one pixel do not exist.
    """
    steps = [np.diff(np.unique(axis)) for axis in coords.reshape(-1, 2).T.astype(np.float64)]
    smallest = [float(step.min()) for step in steps if step.size and np.isfinite(step).all()]
    if not smallest or min(smallest) < 1:
        return None
    return "grid" if min(smallest) == 1 else "px"
