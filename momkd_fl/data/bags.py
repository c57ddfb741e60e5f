"""Feature bags: one file per slide, as TRIDENT and CLAM write it, read without conversion."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import numpy.typing as npt

from momkd_fl.data.hdf5 import hard_dataset, open_readonly, scalar_attribute
from momkd_fl.errors import UserError

_BAG_SUFFIXES = (".h5", ".hdf5")
_SUFFIXES = (
    *_BAG_SUFFIXES,
    *(".pt", ".npy", ".svs", ".ndpi", ".mrxs", ".tif", ".tiff", ".ome", ".scn", ".bif", ".vms", ".vmu", ".svslide"),
    *(".dcm", ".czi", ".isyntax"),
)


@dataclass(frozen=True)
class BagHeader:
    """What a feature file says about itself.

    Attributes
    ----------
    encoder : str or None
        The ``encoder`` attribute of the features or of the file, as written; see
        :func:`momkd_fl.data.encoders.resolve_encoder` for how much it counts.
    patch_um : float or None
        Edge of a patch in micrometres, from pixels and magnification (10 µm per pixel at 1×).
    """

    path: Path
    slide: str
    format: Literal["trident", "clam"]
    patches: int
    dim: int
    encoder: str | None
    patch_um: float | None


@dataclass(frozen=True)
class Bag:
    """One slide: features (P, D) float32, coordinates (P, 2) float32 in the file's own unit."""

    features: npt.NDArray[np.float32]
    coords: npt.NDArray[np.float32]
    header: BagHeader


def slide_id(name: str | Path) -> str:
    """A slide's id: its file name as text, without folders and known extensions.

    >>> slide_id("scans/TCGA-A6-2671-01Z-00-DX1.13d1a0d9.svs")
    'TCGA-A6-2671-01Z-00-DX1.13d1a0d9'
    """
    text = str(name).strip().replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].strip()
    while True:
        stem, dot, suffix = text.rpartition(".")
        if not stem or f"{dot}{suffix}".lower() not in _SUFFIXES:
            return text
        text = stem.strip()


def find_bags(roots: Sequence[Path]) -> dict[str, Path]:
    """All feature files under the roots, by slide id. Symbolic links to folders are not followed.

    Raises
    ------
    UserError
        ``features-missing``: a root is no folder. ``features-empty``: no .h5 file anywhere.
        ``bag-duplicate``: two files have the same slide id.
    """
    found: dict[str, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError("features-missing", f"{root}: there is no such folder. Correct data.features.")
        for folder, _, names in os.walk(root):
            for name in names:
                if not name.lower().endswith(_BAG_SUFFIXES) or name.startswith("."):
                    continue
                path = Path(folder) / name
                slide = slide_id(name)
                if slide in found and not path.samefile(found[slide]):
                    raise UserError(
                        "bag-duplicate",
                        f"Slide '{slide}' has two feature files: {found[slide]} and {path}. Remove one, or point "
                        "data.features at the folder of one encoder.",
                    )
                found[slide] = path
    if not found:
        folders = ", ".join(str(root) for root in roots)
        raise UserError("features-empty", f"No .h5 file was found under {folders}. Correct data.features.")
    return dict(sorted(found.items()))


def read_header(path: Path) -> BagHeader:
    """Read what a feature file says about itself, without its values.

    Raises
    ------
    UserError
        ``bag-missing``, ``bag-not-hdf5``, ``bag-unreadable``, ``bag-link``, ``bag-too-large``,
        ``bag-no-features``, ``bag-empty``, ``bag-coords-missing`` or ``bag-coords-length``.
    """
    with open_readonly(path) as file:
        return _describe(path, *_datasets(path, file))


def read_bag(path: Path) -> Bag:
    """Read one slide's features and coordinates as float32.

    A leading axis of one (published UNI2-h sets) is squeezed.

    Raises
    ------
    UserError
        As :func:`read_header`, and ``bag-nan`` or ``bag-all-zero``.
    """
    with open_readonly(path) as file:
        features, coords = _datasets(path, file)
        header = _describe(path, features, coords)
        if features.id.get_storage_size() == 0:
            raise _all_zero(path, header.patches)  # declared, never written: HDF5 would invent zeros
        # HDF5's own float16 conversion is several times slower than reading as stored and converting here.
        values = np.asarray(features[()]).reshape(header.patches, header.dim).astype(np.float32, copy=False)
        places = np.asarray(coords[()]).reshape(header.patches, 2).astype(np.float32, copy=False)
    for what, array in (("features", values), ("coords", places)):
        finite = np.isfinite(array)
        if not finite.all():
            row = int(np.argmin(finite.all(axis=1)))
            raise UserError(
                "bag-nan",
                f"{path}: '{what}' has a value that is not a number or infinite, first in patch {row} (from 0). "
                "Extract the slide's features again, in a wider number format if they overflowed.",
            )
    if not values.any():
        raise _all_zero(path, header.patches)
    return Bag(values, places, header)


def _all_zero(path: Path, patches: int) -> UserError:
    return UserError(
        "bag-all-zero",
        f"{path}: all {patches} patches are zero, so the extraction failed. Extract the slide's features again.",
    )


def _datasets(path: Path, file: h5py.File) -> tuple[h5py.Dataset, h5py.Dataset]:
    features, coords = (hard_dataset(path, file, name) for name in ("features", "coords"))
    if features is None or features.dtype.kind != "f":
        seen = ", ".join(sorted(file.keys())[:8]) or "nothing"
        raise UserError(
            "bag-no-features",
            f"{path}: there is no dataset 'features' of decimal numbers (found: {seen}). "
            "Point data.features at the folder of features, not of patch coordinates.",
        )
    if coords is None or coords.dtype.kind not in "iuf":
        raise UserError(
            "bag-coords-missing",
            f"{path}: there is no dataset 'coords' of numbers, so patches have no neighbours. "
            "Extract the features with a tool that keeps the coordinates.",
        )
    return features, coords


def _squeezed(shape: tuple[int, ...] | None) -> tuple[int, ...]:
    shape = shape or (0,)
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _describe(path: Path, features: h5py.Dataset, coords: h5py.Dataset) -> BagHeader:
    shape, places = _squeezed(features.shape), _squeezed(coords.shape)
    if 0 in shape:
        raise UserError(
            "bag-empty",
            f"{path}: the slide has no patches. Segment its tissue again, or remove the file and its row.",
        )
    if len(shape) != 2:
        raise UserError(
            "bag-no-features",
            f"{path}: 'features' has shape {features.shape}, not (patches, dimensions). Extract them again.",
        )
    if places != (shape[0], 2):
        raise UserError(
            "bag-coords-length",
            f"{path}: {shape[0]} patches have features, but 'coords' has shape {coords.shape} instead of "
            f"({shape[0]}, 2). Features and coordinates are of two extractions: extract them again together.",
        )
    encoder = scalar_attribute(features, "encoder") or scalar_attribute(features.file, "encoder")
    trident = encoder is not None or "patch_size_level0" in coords.attrs
    return BagHeader(
        path=path,
        slide=slide_id(path),
        format="trident" if trident else "clam",
        patches=shape[0],
        dim=shape[1],
        encoder=encoder if isinstance(encoder, str) else None,
        patch_um=_patch_um(coords),
    )


def _patch_um(coords: h5py.Dataset) -> float | None:
    """Edge in µm from TRIDENT's attributes; a magnification of m× is 10/m µm per pixel."""
    for edge_px, magnification in (
        ("patch_size_level0", "level0_magnification"),
        ("patch_size", "target_magnification"),
    ):
        edge, times = scalar_attribute(coords, edge_px), scalar_attribute(coords, magnification)
        if isinstance(edge, float) and isinstance(times, float) and edge > 0 and times > 0:
            return edge * 10.0 / times
    return None
