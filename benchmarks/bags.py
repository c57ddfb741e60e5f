"""Generated sites for the measurements of training: TRIDENT files, labels, a gene table, and a store made of them."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import yaml

from momkd_fl.config.base import load
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.bags import find_bags
from momkd_fl.data.cache import BagCache
from momkd_fl.data.cohort import Cohort
from momkd_fl.data.ingest import ingest
from momkd_fl.data.load import load_cohort

SIX = (2000, 3100, 4246, 5300, 6700, 8000)
"""Patches of the six patients whose mean is 4,891."""
DIM = 1024
GENES = 768
NEIGHBOURS = 8
TASK = "PR"
_BLOCK = 4096
_SIGNAL = 0.2
"""Shift of a positive patient's features along one direction, so that there is something to learn."""


@dataclass(frozen=True)
class Site:
    """A generated site: its patients in the order of their ids, one slide and one label (0, 1, 0, ...) each."""

    folder: Path
    sizes: tuple[int, ...]
    dim: int

    @property
    def slides(self) -> list[Path]:
        """The feature files, in the order of the patients."""
        return [self.folder / "features" / f"P{number:04d}.h5" for number in range(len(self.sizes))]

    @property
    def labels(self) -> list[int]:
        """Class of each patient."""
        return [number % 2 for number in range(len(self.sizes))]

    @property
    def genes(self) -> np.ndarray:
        """(patients, GENES) float32 z-scores."""
        return np.random.default_rng(1).standard_normal((len(self.sizes), GENES)).astype(np.float32)

    def cohort(self, *, store: bool, cache_mb: int = 0, genes: bool = False) -> Cohort:
        """The site as the product loads it, with its default of features standardised by the site.

        Parameters
        ----------
        store : from the ingested store; else from the TRIDENT files in place
        cache_mb : memory for features kept between epochs; 0: every epoch reads them
        genes : with the gene table, on its panel
        """
        data: dict[str, object] = {
            "features": ["features"],
            "cache_mb": cache_mb,
            "labels": {"path": "labels.csv"},
            "tasks": {TASK: {"column": TASK, "positive": ["1"], "negative": ["0"]}},
        }
        if store:
            data["store"] = "store"
        if genes:
            data["genomics"] = {"path": "genes.csv", "scale": "zscore"}
        path = self.folder / f"site-{'store' if store else 'files'}-{'genes' if genes else 'plain'}-{cache_mb}.yaml"
        path.write_text(yaml.safe_dump({"site": "bench", "state_dir": "state", "data": data}), "utf-8")
        cohort = load_cohort(load(path, SiteConfig), task=TASK, classes=2, neighbours=NEIGHBOURS)
        return cohort.with_panel(cohort.genes_available, 1) if genes else cohort


def generate(out: Path, sizes: Sequence[int], dim: int = DIM, *, rows_per_chunk: int = 1) -> Site:
    """Write a site below ``out`` and ingest it; one that is there already is used as it is."""
    folder = out / f"site-{len(sizes)}-{sum(sizes)}-{dim}"
    site = Site(folder, tuple(sizes), dim)
    done = folder / "complete"
    if done.exists():
        return site
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "features").mkdir(parents=True)
    for number, (path, label) in enumerate(zip(site.slides, site.labels, strict=True)):
        write_slide(path, sizes[number], dim, number, label, rows_per_chunk)
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("patient", TASK), *zip(_ids(site), site.labels, strict=True)])
    with (folder / "genes.csv").open("w", newline="") as file:
        rows = [(name, *values) for name, values in zip(_ids(site), site.genes.tolist(), strict=True)]
        csv.writer(file).writerows([("patient", *(f"GENE{number}" for number in range(GENES))), *rows])
    ingest(find_bags([folder / "features"]), folder / "store", k=NEIGHBOURS, format=None, progress=lambda *_: None)
    done.touch()
    return site


def write_slide(path: Path, patches: int, dim: int, seed: int, label: int, rows_per_chunk: int) -> None:
    """A slide as TRIDENT writes it (float16, chunks of one row, patches in columns of a grid), block by block."""
    rng = np.random.default_rng(seed)
    direction = np.random.default_rng(0).standard_normal(dim).astype(np.float32)
    side = int(np.ceil(np.sqrt(patches)))
    coords = np.stack([np.arange(patches) // side, np.arange(patches) % side], axis=1).astype(np.int64) * 512
    with h5py.File(path, "w") as file:
        data = file.create_dataset("features", (patches, dim), np.float16, chunks=(min(rows_per_chunk, patches), dim))
        for start in range(0, patches, _BLOCK):
            rows = rng.standard_normal((min(_BLOCK, patches - start), dim), np.float32)
            data[start : start + len(rows)] = rows + label * _SIGNAL * direction
        data.attrs["encoder"] = "house-encoder"
        file.create_dataset("coords", data=coords, chunks=(min(rows_per_chunk, patches), 2))


def _ids(site: Site) -> list[str]:
    return [path.stem for path in site.slides]


class Asked(BagCache):
    """A cache that remembers whose bags were asked for, to hold that a pass went over every patient once."""

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self.keys: set[object] = set()

    def get(self, key):  # type: ignore[no-untyped-def]
        """See the class."""
        self.keys.add(key)
        return super().get(key)


def watched(cohort: Cohort) -> tuple[Cohort, Asked]:
    """The cohort with a cache that remembers."""
    asked = Asked(cohort.cache.capacity_bytes)
    return replace(cohort, cache=asked), asked
