"""``momkd check`` on a site of 1,000 slides: the first time, when every value is read, and again.

    python -m benchmarks check [--slides 1000] [--patches 1000] [--out out/check]

The site is generated in TRIDENT's layout (float16, chunks of one row) and kept for another run.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import yaml

from benchmarks.figures import Figure, print_figures

DIM = 1024


def write_site(out: Path, slides: int, patches: int) -> Path:
    """A site of one slide a patient with 30% positives; features are noise."""
    features = out / "features_uni"
    features.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    base = rng.standard_normal((patches, DIM), np.float32).astype(np.float16)
    side = int(np.ceil(np.sqrt(patches)))
    coords = np.stack([np.arange(patches) % side, np.arange(patches) // side], 1) * 512
    for number in range(slides):
        path = features / f"P{number:05d}-DX1.h5"
        if path.exists():
            continue
        base[0, 0] = number  # no two slides are the same
        with h5py.File(path, "w") as file:
            data = file.create_dataset("features", data=base, chunks=(1, DIM))
            data.attrs["encoder"] = "uni_v1"
            file.create_dataset("coords", data=coords.astype(np.int64), chunks=(1, 2))
    with (out / "labels.csv").open("w", newline="") as file:
        rows = [(f"P{number:05d}", "positive" if number % 10 < 3 else "negative") for number in range(slides)]
        csv.writer(file).writerows([("patient", "PR"), *rows])
    raw = {
        "site": "bench",
        "state_dir": "state",
        "data": {
            "features": [features.name],
            "patch_um": 128,
            "labels": {"path": "labels.csv"},
            "tasks": {"PR": {"column": "PR", "positive": ["positive"], "negative": ["negative"]}},
        },
    }
    path = out / "site.yaml"
    path.write_text(yaml.safe_dump(raw), "utf-8")
    return path


def seconds_of(site: Path, *options: str) -> float:
    """Wall seconds of the whole command; statuses 0 and 1 are fine (no server is configured)."""
    command = [sys.executable, "-m", "momkd_fl.cli.main", "check", "--site", str(site), *options]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    if done.returncode > 1:
        raise SystemExit("momkd check failed on the generated site")
    return time.perf_counter() - started


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--patches", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("out/check"))
    args = parser.parse_args()
    site = write_site(args.out, args.slides, args.patches)
    shutil.rmtree(args.out / "state", ignore_errors=True)
    first, again, quick = seconds_of(site), seconds_of(site), seconds_of(site, "--quick")
    return print_figures(
        [
            Figure("check.first_s", round(first, 2), f"s, {args.slides} slides of {args.patches} patches, all values"),
            Figure("check.again_s", round(again, 2), f"s, {args.slides} slides, unchanged", "<=20", again <= 20),
            Figure("check.quick_s", round(quick, 2), f"s, {args.slides} slides, headers only"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
