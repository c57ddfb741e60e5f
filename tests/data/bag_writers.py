"""One writer for each tool: files as the tool's own code writes them, down to chunks, number formats and attributes.

Each takes a folder, a slide's id, features (N, D) float32 and coordinates (N, 2) int64, and returns the file that
is the bag. The link names the code that is followed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch


def _folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _grown(file: h5py.File, name: str, values: np.ndarray, rows: int) -> h5py.Dataset:
    """A dataset that can grow, in chunks of ``rows`` rows."""
    shape = values.shape[1:]
    made = file.create_dataset(name, values.shape, values.dtype, chunks=(rows, *shape), maxshape=(None, *shape))
    made[:] = values
    return made


def trident(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """https://github.com/mahmoodlab/TRIDENT/blob/main/trident/IO.py ``save_h5``, ``coords_to_h5``"""
    path = _folder(root / "20x_256px_0px_overlap" / "features_house" / f"{slide}.h5")
    with h5py.File(path, "w") as file:
        data = _grown(file, "features", features, 1)
        data.attrs.update({"name": slide, "savetodir": str(path.parent), "encoder": "house"})
        _grown(file, "coords", coords.astype(np.int64), 1).attrs.update(
            {
                "patch_size": 256,
                "patch_size_level0": 512,
                "level0_magnification": 40,
                "target_magnification": 20,
                "overlap": 0,
                "name": slide,
                "savetodir": str(path.parent),
                "level0_width": 100_000,
                "level0_height": 100_000,
            }
        )
    return path


def trident_half(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """The same from an encoder that runs in half precision."""
    return trident(root, slide, features.astype(np.float16), coords)


def clam(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """https://github.com/mahmoodlab/CLAM/blob/master/utils/file_utils.py ``save_hdf5``: batch after batch, and
    https://github.com/mahmoodlab/CLAM/blob/master/extract_features_fp.py for the ``.pt`` beside it"""
    path = _folder(root / "h5_files" / f"{slide}.h5")
    first = min(len(features), 7)
    with h5py.File(path, "w") as file:
        for name, values in (("features", features.astype(np.float32)), ("coords", coords.astype(np.int32))):
            made = _grown(file, name, values[:first], 32)
            made.resize(len(values), axis=0)
            made[first:] = values[first:]
    torch.save(torch.from_numpy(features.astype(np.float32)), _folder(root / "pt_files" / f"{slide}.pt"))
    return path


def clam_pt(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """CLAM with ``h5_files`` deleted to save space; its ``patches/{slide}.h5`` still has the coordinates:
    https://github.com/mahmoodlab/CLAM/blob/master/wsi_core/WholeSlideImage.py ``process_contour``"""
    path = _folder(root / "pt_files" / f"{slide}.pt")
    torch.save(torch.from_numpy(features.astype(np.float32)), path)
    with h5py.File(_folder(root / "patches" / f"{slide}.h5"), "w") as file:
        _grown(file, "coords", coords.astype(np.int64), 1).attrs.update({"patch_size": 256, "patch_level": 0})
    return path


def uni2_h(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """https://huggingface.co/datasets/MahmoodLab/UNI2-h-features: a leading axis of one, nothing else"""
    path = _folder(root / "uni2-h" / f"{slide}.h5")
    with h5py.File(path, "w") as file:
        file["features"] = features.astype(np.float32)[None]
        file["coords"] = coords.astype(np.int64)[None]
    return path


def stamp(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """https://github.com/KatherLab/STAMP/blob/main/src/stamp/preprocessing/__init__.py ``extract_``"""
    path = _folder(root / "house-1a2b3c4d" / f"{slide}.h5")
    with h5py.File(path, "w") as file:
        file["coords"] = coords.astype(np.float32)
        file["feats"] = features.astype(np.float16)
        file.attrs.update(
            {
                "stamp_version": "2.4.0",
                "extractor": "house",
                "unit": "um",
                "tile_size_um": 256.0,
                "tile_size_px": 224,
                "code_hash": "1a2b3c4d",
                "feat_type": "tile",
            }
        )
    return path


def stamp_2_0(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """The same before 2.1, when the edge was called ``tile_size``: ``get_coords`` in
    https://github.com/KatherLab/STAMP/blob/main/src/stamp/modeling/data.py"""
    path = _folder(root / f"{slide}.h5")
    with h5py.File(path, "w") as file:
        file["coords"], file["feats"] = coords.astype(np.float32), features.astype(np.float16)
        file.attrs.update({"extractor": "house", "unit": "um", "tile_size": 256.0})
    return path


def stamp_1(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """STAMP 1, preprocessing/helpers/feature_extractors.py at commit 2c612aea of https://github.com/KatherLab/STAMP"""
    path = _folder(root / f"{slide}.h5")
    with h5py.File(path, "w") as file:
        file["coords"], file["feats"] = coords, features.astype(np.float16)
        file["augmented"] = np.repeat([False, True], [len(features), 0])
        file.attrs["extractor"] = "house"
    return path


def stamp_embeddings(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """``patch_embeddings``: ``BagDataset`` in https://github.com/KatherLab/STAMP/blob/main/src/stamp/modeling/data.py"""
    path = _folder(root / f"{slide}.h5")
    with h5py.File(path, "w") as file:
        file["coords"], file["patch_embeddings"] = coords, features.astype(np.float32)
    return path


def torchmil_npy(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """https://github.com/Franblueee/torchmil/blob/main/torchmil/datasets/processed_mil_dataset.py: parallel folders"""
    path = _folder(root / "features" / f"{slide}.npy")
    np.save(path, features.astype(np.float32))
    np.save(_folder(root / "coords" / f"{slide}.npy"), coords // 512)
    np.save(_folder(root / "labels" / f"{slide}.npy"), np.array([1]))
    np.save(_folder(root / "inst_labels" / f"{slide}.npy"), np.zeros(len(features)))
    return path


def torchmil_h5(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """The same with ``file_type='.h5'``: one dataset a file, named after its folder"""
    path = _folder(root / "features" / "features_house" / f"{slide}.h5")
    labels = np.array([1])
    for place, name, values in (
        (path, "features", features.astype(np.float32)),
        (root / "coords" / path.name, "coords", coords),
        (root / "labels" / path.name, "labels", labels),
    ):
        with h5py.File(_folder(place), "w") as file:
            file[name] = values
    return path


def slideflow(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    """https://github.com/slideflow/slideflow/blob/master/slideflow/model/features.py ``to_torch``, ``dump_config``"""
    path = _folder(root / f"{slide}.pt")
    torch.save(torch.from_numpy(features.astype(np.float32)), path)
    np.savez(root / f"{slide}.index", arr_0=coords)
    config = {
        "extractor": {"class": "slideflow.model.extractors.house.HouseFeatures", "kwargs": {}},
        "normalizer": None,
        "num_features": features.shape[1],
        "tile_px": 256,
        "tile_um": 128,
    }
    (root / "bags_config.json").write_text(json.dumps(config))
    return path


@dataclass(frozen=True)
class Tool:
    """A writer and what a reader must find: format, unit, encoder, patch edge (µm), number format."""

    write: Callable[[Path, str, np.ndarray, np.ndarray], Path]
    format: str
    unit: str | None
    encoder: str | None
    patch_um: float | None
    dtype: str = "float32"
    grid: int = 1


TOOLS = {
    "trident": Tool(trident, "trident", "px", "house", 128.0),
    "trident-half": Tool(trident_half, "trident", "px", "house", 128.0, "float16"),
    "clam": Tool(clam, "clam", "px", None, None),
    "clam-pt": Tool(clam_pt, "clam-pt", "px", None, None),
    "uni2-h": Tool(uni2_h, "uni2-h", "px", None, None),
    "stamp": Tool(stamp, "stamp", "um", "house", 256.0, "float16"),
    "stamp-2.0": Tool(stamp_2_0, "stamp", "um", "house", 256.0, "float16"),
    "stamp-1": Tool(stamp_1, "stamp-old", None, "house", None, "float16"),
    "stamp-embeddings": Tool(stamp_embeddings, "stamp-old", None, None, None),
    "torchmil-npy": Tool(torchmil_npy, "torchmil", "grid", None, None, grid=512),
    "torchmil-h5": Tool(torchmil_h5, "torchmil", "px", None, None),
    "slideflow": Tool(slideflow, "slideflow", "px", "House", 128.0),
}
