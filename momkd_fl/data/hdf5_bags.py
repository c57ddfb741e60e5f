"""HDF5 feature files: TRIDENT, CLAM, published UNI2-h sets, STAMP, and torchmil's HDF5 folders."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from momkd_fl.data.chunked import read_dataset
from momkd_fl.data.encoders import without_suffix
from momkd_fl.data.hdf5 import hard_dataset, open_readonly, scalar_attribute
from momkd_fl.data.header import (
    BagHeader,
    Format,
    OpenBag,
    Unit,
    all_zero,
    bag_shape,
    coords_missing,
    slide_id,
    wrong_format,
)
from momkd_fl.data.torchmil_bags import coords_file, unit_of_steps
from momkd_fl.errors import UserError

_KEYS = ("features", "feats", "patch_embeddings")
_KEYS_OF: dict[Format, tuple[str, ...]] = {
    "trident": ("features",),
    "clam": ("features",),
    "uni2-h": ("features",),
    "torchmil": ("features",),
    "stamp": ("feats",),
    "stamp-old": ("feats", "patch_embeddings"),
}


@contextmanager
def open_hdf5(path: Path, wanted: Format | None) -> Iterator[OpenBag]:
    """Open and describe one HDF5 feature file.

    Parameters
    ----------
    wanted : str or None
        The configured format; None: detect it.

    Raises
    ------
    UserError
        As :func:`momkd_fl.data.hdf5.hard_dataset` and ``bag_shape``; ``bag-no-features``,
        ``bag-coords-missing``, ``bag-slide-level``, ``bag-augmented``, ``bag-format``.
    """
    if wanted is not None and wanted not in _KEYS_OF:
        raise wrong_format(path, wanted, "the file is HDF5, which that tool does not write")
    with open_readonly(path) as file, ExitStack() as open_files:
        name, features = _features(path, file, _KEYS_OF[wanted] if wanted else _KEYS, wanted)
        _check_rows_are_patches(path, file)
        coords_path, coords = _coords(path, file, wanted, open_files)
        outside = coords_path != path
        found = "torchmil" if outside else _detect(name, features, coords, file)
        if wanted is not None and not _fits(wanted, features, outside):
            raise wrong_format(path, wanted, f"its layout is that of '{found}'")
        format_ = wanted or found
        patches, dim = bag_shape(path, features.shape or (0,), coords.shape or (0,))
        header = BagHeader(
            path=path,
            slide=slide_id(path),
            format=format_,
            patches=patches,
            dim=dim,
            encoder=_encoder(file, features),
            patch_um=_patch_um(file, coords),
            unit=_unit(file, coords, format_),
            dtype=features.dtype.name,
        )
        yield OpenBag(header, lambda: _values(path, features, patches), lambda: read_dataset(coords_path, coords))


def _features(path: Path, file: h5py.File, keys: tuple[str, ...], wanted: Format | None) -> tuple[str, h5py.Dataset]:
    for name in keys:
        found = hard_dataset(path, file, name)
        if found is not None and found.dtype.kind == "f":
            return name, found
    seen = ", ".join(sorted(file.keys())[:8]) or "nothing"
    if wanted is not None and any(name in file for name in _KEYS):
        raise wrong_format(path, wanted, f"there is no dataset '{keys[0]}' of decimal numbers (found: {seen})")
    raise UserError(
        "bag-no-features",
        f"{path}: there is no dataset 'features', 'feats' or 'patch_embeddings' of decimal numbers (found: {seen}). "
        "Point data.features at the folder of features, not of patch coordinates.",
    )


def _check_rows_are_patches(path: Path, file: h5py.File) -> None:
    """STAMP writes slides and patients in the same layout as patches, and its first version augmented patches."""
    level = scalar_attribute(file, "feat_type")
    if level not in (None, "tile"):
        raise UserError(
            "bag-slide-level",
            f"{path}: these are features of a whole '{level}', not of patches. Point data.features at the features "
            "of patches (STAMP: the output of 'preprocess', not of 'encode').",
        )
    augmented = hard_dataset(path, file, "augmented")
    if augmented is not None and augmented.id.get_storage_size() and np.any(augmented[()]):
        raise UserError(
            "bag-augmented",
            f"{path}: some rows are augmented copies of patches, which would count as tissue. Extract the slide's "
            "features again without augmentation.",
        )


def _coords(path: Path, file: h5py.File, wanted: Format | None, open_files: ExitStack) -> tuple[Path, h5py.Dataset]:
    coords, parallel = hard_dataset(path, file, "coords"), coords_file(path)
    if parallel is not None and (coords is None or wanted == "torchmil"):
        path = parallel
        coords = hard_dataset(parallel, open_files.enter_context(open_readonly(parallel)), "coords")
    if coords is None or coords.dtype.kind not in "iuf":
        raise coords_missing(
            path,
            "There is no dataset 'coords' of numbers, and no file of coordinates in a folder 'coords' beside the "
            "folder. Extract the features with a tool that keeps the coordinates.",
        )
    return path, coords


def _detect(name: str, features: h5py.Dataset, coords: h5py.Dataset, file: h5py.File) -> Format:
    if name == "patch_embeddings":
        return "stamp-old"
    if name == "feats":
        stated = any(mark in file.attrs for mark in ("stamp_version", "unit", "tile_size_um"))
        return "stamp" if stated else "stamp-old"
    if "encoder" in features.attrs or "encoder" in file.attrs or "patch_size_level0" in coords.attrs:
        return "trident"
    return "uni2-h" if len(features.shape or ()) == 3 else "clam"


def _fits(wanted: Format, features: h5py.Dataset, outside: bool) -> bool:
    """The name of the dataset is checked already; what is left is the leading axis and where coordinates lie."""
    if wanted == "uni2-h":
        return len(features.shape or ()) == 3
    return (wanted == "torchmil") == outside


def _values(path: Path, features: h5py.Dataset, patches: int) -> npt.NDArray[np.generic]:
    """The features; refused where chunks are missing, since HDF5 would invent zeros for them."""
    if features.id.get_storage_size() == 0:
        raise all_zero(path, patches)
    if features.chunks is not None:
        sides = zip(features.shape, features.chunks, strict=True)
        if features.id.get_num_chunks() < math.prod(-(-length // chunk) for length, chunk in sides):
            raise UserError(
                "bag-partly-written",
                f"{path}: the file declares {patches} patches but holds the values of fewer; the extraction was "
                "interrupted. Extract the slide's features again.",
            )
    return read_dataset(path, features)


def _encoder(file: h5py.File, features: h5py.Dataset) -> str | None:
    for place, name in ((features, "encoder"), (file, "encoder"), (file, "extractor")):
        encoder = scalar_attribute(place, name)
        if isinstance(encoder, str) and encoder != "None":  # how TRIDENT writes that it does not know
            return without_suffix(encoder)
    return None


def _unit(file: h5py.File, coords: h5py.Dataset, format_: Format) -> Unit | None:
    if format_ in ("trident", "clam", "uni2-h"):
        return "px"
    if format_ == "torchmil":
        return unit_of_steps(np.asarray(read_dataset(Path(coords.file.filename), coords)))
    stated = scalar_attribute(file, "unit")
    if stated == "um" or (stated is None and "tile_size_um" in file.attrs):
        return "um"
    return "px" if stated == "px" else None


def _patch_um(file: h5py.File, coords: h5py.Dataset) -> float | None:
    """Edge in µm: as STAMP states it, or from TRIDENT's pixels, a magnification of m× being 10/m µm per pixel."""
    edge = scalar_attribute(file, "tile_size_um")
    if edge is None and scalar_attribute(file, "unit") == "um":
        edge = scalar_attribute(file, "tile_size")  # STAMP 2.0
    if isinstance(edge, float) and 0 < edge < float("inf"):
        return edge
    for edge_px, magnification in (
        ("patch_size_level0", "level0_magnification"),
        ("patch_size", "target_magnification"),
    ):
        pixels, times = scalar_attribute(coords, edge_px), scalar_attribute(coords, magnification)
        if isinstance(pixels, float) and isinstance(times, float) and pixels > 0 and times > 0:
            return pixels * 10.0 / times
    return None
