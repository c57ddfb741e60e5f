"""Small consortia, written once, and the real tables where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from momkd_fl.synth.cohort import SynthSite, write_consortium

SITES = (
    SynthSite("oak", 12),
    SynthSite("pine", 8, genomics=False),
    SynthSite("yew", 6, genomics=False, role="evaluate"),
)


@pytest.fixture(scope="session")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_consortium(tmp_path_factory.mktemp("consortium"), SITES, seed=3, mean_patches=40, dim=32)


@pytest.fixture(scope="session")
def brca_folder() -> Path:
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("MOMKD_REAL_DATA", default)) / "tcga-brca"
    if not folder.parent.exists():
        pytest.skip(f"{folder.parent} is not here")
    return folder


@pytest.fixture(scope="session")
def mean_bags():
    """Mean patch of each patient and labels (1, 0) of one task over several sites."""

    def read(paths: list[Path], task: str, positive: str, negative: str):
        means, labels = [], []
        for path in paths:
            table = pd.read_csv(path.parent / "labels.csv", dtype=str, keep_default_na=False)
            site = []
            for slides in table["slides"]:
                patches = []
                for slide in slides.split(";"):
                    (bag,) = path.parent.glob(f"features_*/{slide}.h5")
                    with h5py.File(bag) as file:
                        patches.append(file["features"][:].astype(np.float32))
                site.append(np.concatenate(patches).mean(axis=0))
            keep = table[task].isin([positive, negative]).to_numpy()
            features = np.stack(site)
            means.append(((features - features.mean(axis=0)) / features.std(axis=0))[keep])
            labels.append((table[task][keep] == positive).to_numpy(dtype=int))
        return means, labels

    return read
