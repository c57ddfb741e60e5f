"""Reading features: TRIDENT files in place against h5py, the store against a raw ``readinto``, and bounded memory.

    python -m benchmarks reading [--out out/reading] [--gigabytes 3 30]

Files are generated. The large cohorts are hard links to a few slides, so they take no room; what they occupy in the
system's cache is dropped behind every read, so they are read from the disk all the same.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import yaml

from benchmarks.figures import Figure, print_figures
from momkd_fl.data.bags import find_bags
from momkd_fl.data.chunked import read_dataset
from momkd_fl.data.ingest import ingest
from momkd_fl.data.store import Store, rewrite

PATCHES, DIM, REPEATS = 5000, 1024, 15
LARGE_PATCHES, LARGE_DIM, LARGE_FILES = 10000, 1536, 8
MAX_RSS_MB = 1024.0


def write_trident(path: Path, patches: int, dim: int, seed: int) -> None:
    """A slide as TRIDENT writes it: float16 in chunks of one row."""
    values = np.random.default_rng(seed).standard_normal((patches, dim), np.float32).astype(np.float16)
    side = int(np.ceil(np.sqrt(patches)))
    coords = np.stack([np.arange(patches) % side, np.arange(patches) // side], 1).astype(np.int64) * 512
    with h5py.File(path, "w") as file:
        data = file.create_dataset("features", data=values, chunks=(1, dim))
        data.attrs["encoder"] = "house-encoder"
        file.create_dataset("coords", data=coords, chunks=(1, 2))


def seconds(read: Callable[[], object], *, cold: Path | None = None) -> float:
    """Median seconds of a read; with ``cold``, that file is dropped from the system's cache before each."""
    found = []
    for _ in range(REPEATS):
        if cold is not None:
            with cold.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        read()
        found.append(time.perf_counter() - started)
    return median(found)


def in_place(out: Path) -> list[Figure]:
    """The same dataset through h5py and past it, in turns."""
    path = out / "one.h5"
    write_trident(path, PATCHES, DIM, 0)
    os.sync()

    def by_h5py() -> object:
        with h5py.File(path) as file:
            return file["features"][:]

    def ours() -> object:
        with h5py.File(path) as file:
            return read_dataset(path, file["features"])

    ours()  # the index of the chunks is found once a run
    figures = []
    for name, cold in (("warm", None), ("cold", path)):
        theirs_s, ours_s = seconds(by_h5py, cold=cold), seconds(ours, cold=cold)
        again_s = seconds(by_h5py, cold=cold)
        ratio = round(min(theirs_s, again_s) / ours_s, 2)
        target, holds = (">=2.5", ratio >= 2.5) if cold is None else (None, None)
        figures.append(Figure(f"reading.trident_{name}_vs_h5py", ratio, "x", target, holds))
        figures.append(Figure(f"reading.trident_{name}_ms", round(ours_s * 1e3, 2), "ms, 5,000 x 1,024 float16"))
    return figures


def stored(out: Path) -> list[Figure]:
    """Ingesting, and the store's read against ``readinto`` of as many bytes."""
    sources = out / "sources"
    sources.mkdir(exist_ok=True)
    for number in range(LARGE_FILES):
        path = sources / f"S{number}.h5"
        if not path.exists():
            write_trident(path, LARGE_PATCHES, LARGE_DIM, number)
    shutil.rmtree(out / "store", ignore_errors=True)
    bags = find_bags([sources])
    started = time.perf_counter()
    done = ingest(bags, out / "store", k=8, format=None, progress=lambda *_: None)
    ingest_s = time.perf_counter() - started
    store = Store(out / "store")
    entry = store.find(next(iter(bags.values())))
    assert entry is not None
    shard, length = out / "store" / entry.shard, entry.sections["moments"][0]

    def raw() -> object:
        buffer = np.empty(length, np.uint8)
        with shard.open("rb", buffering=0) as file:
            file.readinto(memoryview(buffer))
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return buffer

    def ours() -> None:
        for _ in store.features(entry):
            pass
        store.graph(entry)

    ratio = round(seconds(ours) / seconds(raw), 3)
    return [
        Figure("ingest.mb_per_s", round(done.source_bytes / 1e6 / ingest_s, 1), "MB/s of source"),
        Figure("reading.store_vs_readinto", ratio, "x", "<=1.3", ratio <= 1.3),
    ]


def large_site(out: Path, gigabytes: int) -> Path:
    """A site whose slides are links to the generated ones, ingested."""
    folder = out / f"site-{gigabytes}gb"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "features").mkdir(parents=True)
    (folder / "store").mkdir()
    slides = round(gigabytes * 1e9 / (LARGE_PATCHES * LARGE_DIM * 2))
    entries = {}
    originals = list(Store(out / "store").entries.values())
    for number in range(slides):
        one = originals[number % len(originals)]
        source = (folder / "features" / f"P{number:05d}.h5").resolve()
        os.link(one.source, source)
        shard = f"{number:05d}.bin"
        os.link(out / "store" / one.shard, folder / "store" / shard)
        entries[str(source)] = replace(one, source=str(source), shard=shard)
    rewrite(folder / "store", entries)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = [(f"P{number:05d}", number % 3 // 2) for number in range(slides)]
        csv.writer(file).writerows([("patient", "PR"), *rows])
    data = {
        "features": ["features"],
        "store": "store",
        "cache_mb": 0,
        "labels": {"path": "labels.csv"},
        "tasks": {"PR": {"column": "PR", "positive": ["1"], "negative": ["0"]}},
    }
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump({"site": "large", "state_dir": "state", "data": data}), "utf-8")
    return path


def train_epoch(site_file: Path) -> None:
    """One pass of training over a site's patients in this process; prints its peak memory in MB."""
    import torch

    from momkd_fl.config.base import load
    from momkd_fl.config.site import SiteConfig
    from momkd_fl.data.load import load_cohort
    from momkd_fl.model.baselines import build
    from momkd_fl.model.memory import Memory
    from momkd_fl.model.momkd import LossWeights, StudentShape
    from momkd_fl.training.loop import TrainSettings, train
    from momkd_fl.training.sampling import Packer

    cohort = load_cohort(load(site_file, SiteConfig), task="PR", classes=2)
    shape = StudentShape(LARGE_DIM, 512, 2, 64, 8, 2, 4, None, None, 0.5, architecture="gated_attention")
    settings = TrainSettings(
        1.0, None, 1, 2e-4, 1e-4, 5.0, "bf16", torch.device("cpu"), LossWeights(), max_patches=2048
    )
    train(build(shape, 0), Memory(), Packer(cohort, None, None), cohort.labelled("train"), settings, 0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def bounded(out: Path, gigabytes: list[int]) -> list[Figure]:
    """Peak memory of training from so many gigabytes, each in a process of its own."""
    figures = []
    for size in gigabytes:
        site = large_site(out, size)
        started = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.reading", "--train", str(site)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        took_s, rss_mb = time.perf_counter() - started, round(float(done.stdout), 1)
        figures.append(Figure(f"memory.train_rss_mb.{size}gb", rss_mb, "MB", "<=1024", rss_mb <= MAX_RSS_MB))
        figures.append(Figure(f"memory.train_s.{size}gb", round(took_s, 1), "s"))
    return figures


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/reading"))
    parser.add_argument("--gigabytes", nargs="+", type=int, default=[3, 30])
    parser.add_argument("--train", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train is not None:
        train_epoch(args.train)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    return print_figures([*in_place(args.out), *stored(args.out), *bounded(args.out, args.gigabytes)])


if __name__ == "__main__":
    sys.exit(main())
