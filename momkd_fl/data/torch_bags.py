"""``.pt`` feature files of CLAM and slideflow: one tensor, checked before torch sees the file.

A ``.pt`` file is a zip archive with a pickle in it. The pickle's instructions are read, never run, to see that it
builds one plain tensor; only then does torch load it, with ``weights_only`` and mapped, so that nothing is
unpickled freely and no memory is taken for what the file does not hold.
"""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from momkd_fl.data.arrays import map_npy, read_npz_member
from momkd_fl.data.chunked import read_dataset
from momkd_fl.data.encoders import without_suffix
from momkd_fl.data.hdf5 import check_readable, hard_dataset, open_readonly
from momkd_fl.data.header import (
    MAX_BYTES,
    BagHeader,
    Format,
    OpenBag,
    bag_shape,
    coords_missing,
    slide_id,
    too_large,
    wrong_format,
)
from momkd_fl.errors import UserError

if TYPE_CHECKING:
    import torch

_MAX_PICKLE_BYTES = 16_384
_MAX_CONFIG_BYTES = 1024**2

# All that torch.save names in the pickle of one dense floating tensor.
_PLAIN_TENSOR = {
    "torch._utils _rebuild_tensor_v2",
    "collections OrderedDict",
    *(f"torch {kind}Storage" for kind in ("Half", "BFloat16", "Float", "Double")),
}


@contextmanager
def open_pt(path: Path, wanted: Format | None) -> Iterator[OpenBag]:
    """Open and describe one ``.pt`` feature file and its coordinates.

    Raises
    ------
    UserError
        ``bag-missing``, ``bag-unreadable``, ``bag-not-tensor``, ``bag-too-large``, ``bag-coords-missing``,
        ``bag-format``; as ``bag_shape``, and as the readers of the coordinates' file.
    """
    index = index_file(path)
    found: Format = "clam-pt" if index is None else "slideflow"
    if wanted not in (None, found):
        raise wrong_format(path, wanted, f"its layout is that of '{found}'")
    tensor = _tensor(path)
    coords = _clam_coords(path) if index is None else _index(index)
    config = {} if index is None else _bags_config(path)
    patches, dim = bag_shape(path, tuple(tensor.shape), coords.shape)
    header = BagHeader(
        path=path,
        slide=slide_id(path),
        format=found,
        patches=patches,
        dim=dim,
        encoder=_extractor(config),
        patch_um=_tile_um(config),
        unit="px",
        dtype=str(tensor.dtype).removeprefix("torch."),
    )
    yield OpenBag(header, lambda: tensor.float().numpy().copy(), lambda: coords)


def index_file(path: Path) -> Path | None:
    """slideflow's file of tile locations beside ``{slide}.pt``, or None; ``.npy`` where it could not write zips."""
    for suffix in (".index.npz", ".index.npy"):
        beside = path.with_name(path.stem + suffix)
        if beside.is_file():
            return beside
    return None


def _index(path: Path) -> npt.NDArray[np.generic]:
    return np.array(map_npy(path)) if path.suffix == ".npy" else read_npz_member(path, "arr_0")


def _clam_coords(path: Path) -> npt.NDArray[np.generic]:
    """CLAM's ``.pt`` has no coordinates; the HDF5 file it was made of has, and so has the file of patches.

    TRIDENT calls the latter ``patches/{slide}_patches.h5`` and can write ``.pt`` too.
    """
    name, folder = f"{path.stem}.h5", path.parent
    for place in (
        folder.parent / "h5_files" / name,
        folder.parent / "patches" / name,
        folder.parent / "patches" / f"{path.stem}_patches.h5",
        folder.parent.parent / "patches" / name,
        folder / "patches" / name,
    ):
        if place.is_file():
            with open_readonly(place) as file:
                coords = hard_dataset(place, file, "coords")
                if coords is not None and coords.dtype.kind in "iuf":
                    return read_dataset(place, coords)
    raise coords_missing(
        path,
        f"A .pt file holds none; put CLAM's '{name}' into a folder 'h5_files' or 'patches' beside the folder "
        f"'{folder.name}'.",
    )


def _tensor(path: Path) -> torch.Tensor:
    check_readable(path)
    try:
        _check_archive(path)
        import torch

        tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except Exception as reason:  # a hostile archive or pickle can fail in any way
        raise _not_tensor(path, f"{type(reason).__name__} on reading") from None
    if type(tensor) is not torch.Tensor or tensor.layout != torch.strided or not tensor.is_floating_point():
        raise _not_tensor(path, "something else than a tensor of decimal numbers")
    if tensor.numel() * max(tensor.element_size(), 4) > MAX_BYTES or not tensor.is_contiguous():
        # A tensor that repeats one number declares any size; torch.save of features is contiguous.
        raise too_large(path, "tensor", tuple(tensor.shape))
    return tensor.detach()


def _check_archive(path: Path) -> None:
    """Members stored without compression, as torch does, so that none grows on reading; one plain tensor."""
    if not zipfile.is_zipfile(path):
        raise _not_tensor(path, "not the archive torch.save writes since 1.6")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise _not_tensor(path, "compressed, which torch.save never does")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise too_large(path, "archive", (sum(member.file_size for member in members),))
        pickles = [member for member in members if member.filename.rsplit("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise _not_tensor(path, "not one tensor")
        named = {
            str(value)
            for code, value, _ in pickletools.genops(archive.read(pickles[0]))
            if code.name in ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "NEWOBJ", "OBJ", "BUILD")
        }
    if "torch._utils _rebuild_tensor_v2" not in named or not named <= _PLAIN_TENSOR:
        raise _not_tensor(path, "more than one plain tensor in it")


def _not_tensor(path: Path, reason: str) -> UserError:
    return UserError(
        "bag-not-tensor",
        f"{path}: this is not a file with one tensor of features ({reason}); other objects are never loaded. "
        "Write it again as torch.save(features, path), or use the tool's .h5 file.",
    )


def _bags_config(path: Path) -> dict[str, Any]:
    """slideflow's ``bags_config.json`` beside the bags or one folder above; empty where there is none."""
    for folder in list(path.parents)[:2]:
        file = folder / "bags_config.json"
        if file.is_file() and file.stat().st_size <= _MAX_CONFIG_BYTES:
            try:
                config = json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, OSError, RecursionError) as reason:
                raise UserError(
                    "bags-config",
                    f"{file}: this is not readable as JSON ({type(reason).__name__}). Copy it again, or remove it and "
                    "name the encoder in data.encoder.",
                ) from None
            return config if isinstance(config, dict) else {}
    return {}


def _extractor(config: dict[str, Any]) -> str | None:
    """``slideflow.model.extractors.uni.UNIFeatures`` -> ``UNI``."""
    extractor = config.get("extractor")
    name = extractor.get("class") if isinstance(extractor, dict) else None
    if not isinstance(name, str):
        return None
    return without_suffix(name.rsplit(".", 1)[-1].removesuffix("Features").removesuffix("_")) or None


def _tile_um(config: dict[str, Any]) -> float | None:
    """Edge in µm; slideflow also states it as a magnification (``20x``), being 10/20 µm per pixel."""
    tile, pixels = config.get("tile_um"), config.get("tile_px")
    if isinstance(tile, int | float) and 0 < tile < float("inf"):
        return float(tile)
    times = tile[:-1] if isinstance(tile, str) and tile.lower().endswith("x") else ""
    if times.replace(".", "", 1).isdecimal() and float(times) > 0 and isinstance(pixels, int) and pixels > 0:
        return pixels * 10.0 / float(times)
    return None
