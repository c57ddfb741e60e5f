"""Feature bags: one file per slide, as the tool that made it wrote it, read without conversion.

One interface for all tools: :func:`find_bags`, :func:`read_header`, :func:`read_bag`. Which tool wrote a file is seen
from the file itself, so that a site may mix them; ``docs/data-formats.md`` lists the layouts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from momkd_fl.data.hdf5_bags import open_hdf5
from momkd_fl.data.header import BAG_SUFFIXES, FORMATS, Bag, BagHeader, Format, OpenBag, Unit, all_zero, slide_id
from momkd_fl.data.standardise import widen
from momkd_fl.data.torch_bags import open_pt
from momkd_fl.data.torchmil_bags import in_features_folder, open_npy
from momkd_fl.errors import UserError

__all__ = ["FORMATS", "Bag", "BagHeader", "Format", "Unit", "find_bags", "read_bag", "read_header", "slide_id"]

_NOT_FEATURES = {"coords", "labels", "inst_labels", "patch_labels", "patches"}
"""Folders in which CLAM, TRIDENT and torchmil keep what belongs to the features of the same slide."""


def find_bags(roots: Sequence[Path]) -> dict[str, Path]:
    """All feature files under the roots, by slide id.

    Links to folders are not followed, and a link to a file must stay within the roots; a root itself may be a link.
    Of CLAM's two files of one slide (``h5_files`` and ``pt_files``) the HDF5 file is taken, since only it has
    coordinates.

    Raises
    ------
    UserError
        ``features-missing``: a root is no folder. ``features-empty``: no feature file anywhere.
        ``bag-duplicate``: two files have the same slide id. ``bag-outside``: a link leaves the roots.
    """
    for root in roots:
        if not root.is_dir():
            raise UserError("features-missing", f"{root}: there is no such folder. Correct data.features.")
    inside = [root.resolve() for root in roots]
    found: dict[str, Path] = {}
    for path in (path for root in roots for path in _files(root)):
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in inside):
            raise UserError(
                "bag-outside",
                f"{path}: this is a link to a file outside data.features. Add the folder it leads to there instead.",
            )
        slide = slide_id(path)
        found[slide] = path if slide not in found else _one_of(slide, found[slide], path)
    if not found:
        folders = ", ".join(str(root) for root in roots)
        raise UserError(
            "features-empty",
            f"No feature file (.h5, .pt, or .npy in a folder 'features') was found under {folders}. Correct "
            "data.features.",
        )
    return dict(sorted(found.items()))


def _files(root: Path) -> list[Path]:
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name.lower() not in _NOT_FEATURES)
        for name in sorted(names):
            path = Path(folder) / name
            suffix = path.suffix.lower()
            if name.startswith(".") or suffix not in BAG_SUFFIXES:
                continue
            if suffix == ".npy" and (name.lower().endswith(".index.npy") or not in_features_folder(path)):
                continue
            files.append(path)
    return files


def _one_of(slide: str, one: Path, other: Path) -> Path:
    if one.samefile(other):
        return one
    if one.parent.parent == other.parent.parent:
        pair = {path.parent.name: path for path in (one, other)}
        if pair.keys() == {"h5_files", "pt_files"}:
            return pair["h5_files"]
    raise UserError(
        "bag-duplicate",
        f"Slide '{slide}' has two feature files: {one} and {other}. Remove one, or point data.features at the "
        "folder of one encoder.",
    )


def read_header(path: Path, format: Format | None = None) -> BagHeader:
    """Read what a feature file says about itself, without its values.

    Parameters
    ----------
    format : str or None
        Overrides the detection (``data.format``); refused where the file's layout does not fit it.

    Raises
    ------
    UserError
        ``bag-missing``, ``bag-unreadable``, ``bag-format``, ``bag-too-large``, ``bag-no-features``, ``bag-empty``,
        ``bag-coords-missing``, ``bag-coords-length``, and what the format's reader adds.
    """
    with _open(path, format) as bag:
        return bag.header


def read_bag(path: Path, format: Format | None = None) -> Bag:
    """Read one slide's features and coordinates as float32.

    Raises
    ------
    UserError
        As :func:`read_header`, and ``bag-nan`` or ``bag-all-zero``.
    """
    with _open(path, format) as bag:
        header = bag.header
        # HDF5's own float16 conversion is several times slower than reading as stored and converting here.
        features = _as_float32(bag.features(), (header.patches, header.dim))
        coords = _as_float32(bag.coords(), (header.patches, 2))
    for what, array in (("features", features), ("coords", coords)):
        if not np.isfinite(array.sum()):  # quicker than looking at each; a sum may also be too large to be finite
            found = np.flatnonzero(~np.isfinite(array).all(axis=1))
            if not len(found):
                continue
            row = int(found[0])
            raise UserError(
                "bag-nan",
                f"{path}: '{what}' has a value that is not a number or infinite, first in patch {row} (from 0). "
                "Extract the slide's features again, in a wider number format if they overflowed.",
            )
    if features[0, 0] == 0 and not features.any():
        raise all_zero(path, header.patches)
    return Bag(features, coords, header)


def _open(path: Path, wanted: Format | None) -> AbstractContextManager[OpenBag]:
    readers = {".pt": open_pt, ".npy": open_npy}
    return readers.get(path.suffix.lower(), open_hdf5)(path, wanted)


def _as_float32(values: npt.NDArray[np.generic], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    if values.dtype == np.float16:
        out = np.empty(shape, np.float32)
        widen(values.reshape(shape).astype(np.float16, copy=False), out)
        return out
    with np.errstate(over="ignore"):  # a float64 too large becomes infinite, and is refused as that
        return values.reshape(shape).astype(np.float32, copy=False)
