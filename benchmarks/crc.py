"""Real patch features, MSI labels and expression of two hospitals: train on one, hold out the other, both ways.

    python -m benchmarks.crc [prepare] [--data ../shared/data/tcga-crc] [--out out/crc] [--seeds 0 1 2]

Writes each hospital's file (the features are read where they are) and two federation files for each seed; then,
unless it is to prepare only, runs ``momkd simulate --comparators`` on them and prints one JSON line a figure.

The hospitals have 4 and 5 patients with MSI-H: fewer than the 11 of a class that a report needs for an AUROC, so
reports say *not estimable*. The values here are over all patients there are, with the interval and the number of
positives beside them; they show that real input goes all the way, and rank no method.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.figures import Figure, print_figures
from benchmarks.prepared import REAL_DATA, write_federation
from benchmarks.settings import SETTINGS
from momkd_fl.evaluation.comparison import Scores
from momkd_fl.evaluation.intervals import auroc_interval
from momkd_fl.evaluation.results_file import read_results
from momkd_fl.federation.comparators import predictions_path, read_predictions

HOSPITALS = ("A6", "D5")
TASK = "MSI"
ENCODER = {"name": "resnet18-swarm", "dim": 512}
METHODS = {"federated": "", "no_genomics_control": "comparators/no_genomics_control"}
"""Where a simulation leaves the held-out predictions of each method that is reported."""


def prepare(data: Path, out: Path, seed: int, settings: Mapping[str, Any] = SETTINGS) -> dict[str, Path]:
    """Write the hospitals' files and a federation file for each direction (``a6_to_d5``, ``d5_to_a6``)."""
    data = data.resolve()
    sites = {hospital: _write_site(data, out / "sites", hospital) for hospital in HOSPITALS}
    found = {}
    for trained, tested in (HOSPITALS, HOSPITALS[::-1]):
        name = f"{trained}_to_{tested}".lower()
        roles = {trained: "train", tested: "evaluate"}
        path = out / f"{name}-seed{seed}.yaml"
        found[name] = write_federation(path, TASK, ENCODER, sites, roles, settings, seed)
    return found


def _write_site(data: Path, folder: Path, hospital: str) -> Path:
    """One hospital's rows of the label table, and its file; features and expression are shared and stay in place."""
    folder.mkdir(parents=True, exist_ok=True)
    with (data / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["site"] == hospital]
    labels = folder / f"{hospital}-labels.csv"
    with labels.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["patient", "slide", "MSI_H"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    raw = {
        "site": hospital,
        "state_dir": f"{hospital}-state",
        "data": {
            "features": [str(data / "bags")],
            "encoder": ENCODER["name"],  # what the files say themselves is a placeholder
            "labels": {"path": labels.name, "slide": "slide"},
            "tasks": {TASK: {"column": "MSI_H", "positive": ["1"], "negative": ["0"]}},
            "genomics": {"path": str(data / "rna_signedlog.csv.gz"), "scale": "signedlog"},
        },
    }
    path = folder / f"{hospital}.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False), "utf-8")
    return path


def simulate(federation: Path) -> None:
    """The documented command, with its lines on standard error."""
    command = [sys.executable, "-m", "momkd_fl.cli.main", "simulate", "--federation", str(federation)]
    subprocess.run([*command, "--comparators", "--jobs", "2", "--plain", "--fresh"], stdout=sys.stderr, check=True)


def figures_of(direction: str, runs: list[Path]) -> list[Figure]:
    """One direction's figures over the seeds' result folders."""
    name, tested = f"crc.{direction}", direction.split("_to_")[1].upper()
    figures = []
    for method, folder in METHODS.items():
        scores = [read_predictions(predictions_path(run / folder, tested), tested) for run in runs]
        figures.append(_auroc(f"{name}.auroc" if method == "federated" else f"{name}.{method}", scores))
    positives = int((scores[0].labels == 1).sum())
    figures.append(Figure(f"{name}.held_out_positives", positives, "patients"))
    figures.append(Figure(f"{name}.held_out_negatives", len(scores[0].labels) - positives, "patients"))
    results = [read_results(run / "results.json") for run in runs]
    reported = [one.held_out["federated"][TASK].pooled for one in results]
    if any(one.value is None for one in reported):
        print(f"{name}: the report says 'not estimable' ({reported[0].reason}).", file=sys.stderr)
    moved = float(np.mean([r.memory.slot_movement_rad or 0.0 for one in results for r in one.rounds if r.memory]))
    figures.append(Figure(f"{name}.slot_movement", round(moved, 4), "rad/round", ">0", moved > 0))
    figures.append(Figure(f"{name}.run_s", round(float(np.mean([one.seconds.run for one in results])), 1), "s"))
    return figures


def _auroc(name: str, scores: list[Scores]) -> Figure:
    """Mean over seeds; the interval is that of the patients, averaged over seeds, and says nothing of the seeds."""
    found = [auroc_interval(one.labels, one.probabilities, class_minimum=1) for one in scores]
    values = np.array([(one.value, one.low, one.high) for one in found], float).mean(axis=0)
    return Figure(name, round(values[0], 4), "AUROC", interval=(round(values[1], 4), round(values[2], 4)))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("prepare", "run"), default="run")
    parser.add_argument("--data", type=Path, default=REAL_DATA / "tcga-crc")
    parser.add_argument("--out", type=Path, default=Path("out/crc"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    runs: dict[str, list[Path]] = {}
    for seed in args.seeds:
        for direction, federation in prepare(args.data, args.out, seed).items():
            if args.action == "prepare":
                print(f"momkd simulate --federation {federation} --comparators --jobs 2")
                continue
            simulate(federation)
            runs.setdefault(direction, []).append(federation.with_suffix(""))
    return print_figures([figure for direction in runs for figure in figures_of(direction, runs[direction])])


if __name__ == "__main__":
    sys.exit(main())
