"""What every reader of feature files hands back, whatever tool wrote the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from momkd_fl.errors import UserError

Format = Literal["trident", "clam", "clam-pt", "uni2-h", "stamp", "stamp-old", "torchmil", "slideflow"]
FORMATS: tuple[Format, ...] = get_args(Format)
Unit = Literal["px", "um", "grid"]

BAG_SUFFIXES = (".h5", ".hdf5", ".pt", ".npy")
_SUFFIXES = (
    *BAG_SUFFIXES,
    *(".svs", ".ndpi", ".mrxs", ".tif", ".tiff", ".ome", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".qptiff"),
    *(".dcm", ".czi", ".isyntax"),
)

MAX_BYTES = 4 * 1024**3
"""Largest array read, in bytes as declared: 700,000 patches of 1,536 dimensions in float32."""


@dataclass(frozen=True)
class BagHeader:
    """What a feature file says about itself.

    Attributes
    ----------
    format : str
        The tool whose layout the file has, as detected or as overridden by ``data.format``.
    encoder : str or None
        The encoder as the file, or the tool's own file beside it, writes it; see
        :func:`momkd_fl.data.encoders.resolve_encoder` for how much it counts.
    patch_um : float or None
        Edge of a patch in micrometres, as stated or from pixels and magnification (10 µm per pixel at 1×).
    unit : str or None
        Unit of the coordinates: pixels of level 0, micrometres, steps of a grid; None where nothing says.
        Slides of one patient may differ in it without harm, so that is not checked: a patch's neighbours
        are sought within its own slide only, and which patches are nearest does not depend on the unit.
    dtype : str
        Number format of the features as stored, e.g. ``float16``.
    """

    path: Path
    slide: str
    format: Format
    patches: int
    dim: int
    encoder: str | None
    patch_um: float | None
    unit: Unit | None
    dtype: str


@dataclass(frozen=True)
class Bag:
    """One slide: features (P, D) float32, coordinates (P, 2) float32 in the file's own unit."""

    features: npt.NDArray[np.float32]
    coords: npt.NDArray[np.float32]
    header: BagHeader


@dataclass(frozen=True)
class OpenBag:
    """An opened file, described; its values are read on demand, in any number format and shape of the right size.

    The arrays are plain memory: nothing of them is mapped from a file that may change or vanish.
    """

    header: BagHeader
    features: Callable[[], npt.NDArray[np.generic]]
    coords: Callable[[], npt.NDArray[np.generic]]


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


def bag_shape(path: Path, features: tuple[int, ...], coords: tuple[int, ...]) -> tuple[int, int]:
    """Patches and dimensions from the declared shapes; a leading axis of one (UNI2-h sets) is dropped.

    Raises
    ------
    UserError
        ``bag-empty``, ``bag-no-features``, ``bag-coords-length``.
    """
    shape, places = squeezed(features), squeezed(coords)
    if 0 in shape:
        raise UserError(
            "bag-empty",
            f"{path}: the slide has no patches. Segment its tissue again, or remove the file and its row.",
        )
    if len(shape) != 2:
        raise UserError(
            "bag-no-features",
            f"{path}: the features have shape {features}, not (patches, dimensions). Extract them again.",
        )
    if places != (shape[0], 2):
        raise UserError(
            "bag-coords-length",
            f"{path}: {shape[0]} patches have features, but the coordinates have shape {coords} instead of "
            f"({shape[0]}, 2). Features and coordinates are of two extractions: extract them again together.",
        )
    return shape[0], shape[1]


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without a leading axis of one, where there are three."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def too_large(path: Path, what: str, shape: tuple[int, ...]) -> UserError:
    """The refusal of a declared size no slide can have."""
    return UserError(
        "bag-too-large",
        f"{path}: '{what}' declares {shape} values, more than the {MAX_BYTES // 1024**3} GB a slide may have or more "
        "than the file can hold. The file is damaged, or it holds more than one slide.",
    )


def coords_missing(path: Path, mend: str) -> UserError:
    """The refusal of features without coordinates."""
    return UserError(
        "bag-coords-missing", f"{path}: there are no coordinates to the features, so patches have no neighbours. {mend}"
    )


def wrong_format(path: Path, wanted: Format, found: str) -> UserError:
    """The refusal of a configured format that the file does not have."""
    return UserError(
        "bag-format",
        f"{path}: data.format says '{wanted}', but {found}. Correct data.format, or remove it: the format of each "
        "file is then detected.",
    )


def all_zero(path: Path, patches: int) -> UserError:
    """The refusal of features that say nothing."""
    return UserError(
        "bag-all-zero",
        f"{path}: all {patches} patches are zero, so the extraction failed. Extract the slide's features again.",
    )
