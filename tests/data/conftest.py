"""Feature files as each tool writes them, and a small hospital's folder around them."""

from __future__ import annotations

import csv
import gzip
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from momkd_fl.config.site import SiteConfig

sys.path.insert(0, str(Path(__file__).parent))  # for bag_writers, which tests name their parameters from

Writer = Callable[..., Path]


def some_bag(patches: int, dim: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (patches, dim) and level-0 coordinates on a square grid of 512 px."""
    features = np.random.default_rng(seed).normal(size=(patches, dim)).astype(np.float32)
    side = int(np.ceil(np.sqrt(patches)))
    rows = np.arange(patches)
    return features, np.stack([rows % side, rows // side], axis=1).astype(np.int64) * 512


@pytest.fixture(scope="session")
def bag_values() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return some_bag


@pytest.fixture(scope="session")
def write_trident() -> Writer:
    """TRIDENT: float16 or float32 in chunks of one row, attributes on both datasets."""

    def write(
        path: Path,
        patches: int = 12,
        dim: int = 8,
        *,
        seed: int = 0,
        features: np.ndarray | None = None,
        coords: np.ndarray | None = None,
        dtype: str = "float16",
        encoder: str | None = "house-8",
        level0: int | None = 512,
    ) -> Path:
        made, places = some_bag(patches if features is None else len(features), dim, seed)
        features = made if features is None else features
        coords = places if coords is None else coords
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            chunks = (1, features.shape[1]) if features.ndim == 2 and features.size else None
            data = file.create_dataset("features", data=features.astype(dtype), chunks=chunks)
            if encoder is not None:
                data.attrs["encoder"] = encoder
            data.attrs["name"] = path.stem
            grid = file.create_dataset("coords", data=coords)
            if level0 is not None:
                for name, value in (
                    ("patch_size", 256),
                    ("patch_size_level0", level0),
                    ("level0_magnification", 40),
                    ("target_magnification", 20),
                    ("overlap", 0),
                ):
                    grid.attrs[name] = value
        return path

    return write


@pytest.fixture(scope="session")
def write_clam() -> Writer:
    """CLAM: float32 in chunks of 32 rows that can grow, int32 coordinates, no attributes."""

    def write(path: Path, patches: int = 40, dim: int = 8, *, seed: int = 0) -> Path:
        features, coords = some_bag(patches, dim, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file.create_dataset("features", data=features, chunks=(32, dim), maxshape=(None, dim))
            file.create_dataset("coords", data=coords.astype(np.int32), chunks=(32, 2), maxshape=(None, 2))
        return path

    return write


@pytest.fixture(scope="session")
def write_table() -> Writer:
    """A csv (or tsv, or gzipped) file from rows; the first is the header."""

    def write(path: Path, rows: Sequence[Sequence[object]], separator: str = ",") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=separator).writerows(rows)
        return path

    return write


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[..., SiteConfig]:
    """A site's configuration over the files under ``tmp_path/{name}``."""

    def make(name: str = "alpha", role: str = "train", **data: Any) -> SiteConfig:
        root = tmp_path / name
        section = {
            "features": [root / "features"],
            "labels": {"path": root / "labels.csv"},
            "tasks": {"PR": {"column": "PR", "positive": ["pos"], "negative": ["neg"]}},
            "cache_mb": 16,
            **data,
        }
        return SiteConfig.model_validate({"site": name, "role": role, "state_dir": root / "state", "data": section})

    return make


@pytest.fixture
def hospital(
    tmp_path: Path, write_trident: Writer, write_table: Writer, make_site: Callable[..., SiteConfig]
) -> Callable[..., SiteConfig]:
    """Write a small hospital: one slide a patient, every third patient positive, then one equivocal, one without
    a label; genes G0..G5 for the first ``genomic`` patients."""

    def build(name: str = "alpha", patients: int = 12, genomic: int = 0, dim: int = 8, **options: Any) -> SiteConfig:
        root = tmp_path / name
        ids = [f"{name}{number:02d}" for number in range(patients + 2)]
        values = ["pos" if number % 3 == 0 else "neg" for number in range(patients)] + ["equivocal", ""]
        write_table(root / "labels.csv", [("patient", "PR"), *zip(ids, values, strict=True)])
        for number, patient in enumerate(ids):
            write_trident(root / "features" / f"{patient}-DX1.h5", 10 + number, dim, seed=number)
        if genomic:
            genes = np.random.default_rng(1).normal(size=(genomic, 6))
            rows = [(patient, *row) for patient, row in zip(ids, genes.round(4).tolist(), strict=False)]
            write_table(root / "rna.csv", [("case", *(f"G{gene}" for gene in range(6))), *rows])
            options.setdefault("genomics", {"path": root / "rna.csv", "scale": "zscore"})
        options.setdefault("encoder", None)
        return make_site(name, **options)

    return build


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real test data; tests that need it are skipped only where it is absent."""
    folder = Path(os.environ.get("MOMKD_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder
