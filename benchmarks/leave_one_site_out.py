"""AUROC on sites that never trained: leave-one-site-out over the training sites, and the external cohort.

    python -m benchmarks.leave_one_site_out [--cohort semi-real|demo] [--tasks PR HER2 ODX] [--seeds 11 12 13]

For every seed and task, each training site is left out once, and once none is. In each fold the federated model,
the pooled model and the control whose memory never saw genomics are trained; local models are trained once. A fold's
predictions for the left-out site, and those of the fold without one for the external cohort, are kept under --out,
so that an interrupted run goes on where it stopped. Prints one JSON line a figure.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures import Figure, print_figures
from benchmarks.settings import SETTINGS
from momkd_fl.config.base import load, parse
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.evaluation.comparison import Scores, compare
from momkd_fl.evaluation.metrics import auroc
from momkd_fl.federation import state as states
from momkd_fl.federation.comparators import (
    Arm,
    Kind,
    Shelf,
    finished,
    predictions_path,
    random_memory_scores,
    read_predictions,
    run_arm,
)
from momkd_fl.federation.watch import unwatched
from momkd_fl.synth.cohort import DEMO_SITES, write_consortium, write_semi_real

METHODS: tuple[Kind, ...] = ("federated", "pooled", "control")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model to train: cohort seed, task, what kind, the training sites, and the sites it is tested on."""

    seed: int
    task: str
    kind: Kind
    trained: tuple[str, ...]
    tested: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its folder."""
        left = "-".join(self.trained) if self.kind == "local" else "without-" + "-".join(self.tested)
        return f"seed{self.seed}/{self.task}/{self.kind}/{left}"


def cells_of(seeds: list[int], tasks: list[str], training: tuple[str, ...], external: tuple[str, ...]) -> list[Cell]:
    """All models, the ones that take longest first."""
    cells = []
    for seed in seeds:
        for task in tasks:
            for left in training:
                kept = tuple(site for site in training if site != left)
                cells += [Cell(seed, task, kind, kept, (left,)) for kind in METHODS]
            cells += [Cell(seed, task, kind, training, external) for kind in METHODS]
            for site in training:
                others = tuple(one for one in training if one != site)
                cells.append(Cell(seed, task, "local", (site,), (*others, *external)))
    return cells


def write_data(cohort: str, folder: Path, seed: int, tasks: list[str], brca: Path) -> dict[str, Path]:
    """The sites' files of one generator seed; written once."""
    marker = folder / "sites.json"
    if not marker.exists():
        if cohort == "semi-real":
            files = write_semi_real(folder, brca, seed=seed, tasks=tasks)
        else:
            files = write_consortium(folder, DEMO_SITES, seed=seed, tasks=tasks)
        marker.write_text(json.dumps({site: str(path) for site, path in files.items()}), "utf-8")
    return {site: Path(path) for site, path in json.loads(marker.read_text("utf-8")).items()}


def federation(cell: Cell, folder: Path, settings: dict[str, Any]) -> FederationConfig:
    """The configuration of one cell."""
    members = {site: {"role": "train"} for site in cell.trained} | {site: {"role": "evaluate"} for site in cell.tested}
    raw = {
        "name": "loso",
        "task": cell.task,
        "encoder": {"name": "synthetic-256", "dim": 256},
        "output_dir": str(folder),
        "members": members,
        "seed": cell.seed,
        **settings,
    }
    raw["rounds"] = {**settings["rounds"], "quorum": 1}
    return parse(raw, FederationConfig, folder / "federation.yaml")


def work(share: list[Cell], files: dict[int, dict[str, Path]], out: Path, settings: dict[str, Any]) -> None:
    """Train cells one after another on one thread."""
    torch.set_num_threads(1)
    shelves: dict[tuple[int, str], Shelf] = {}
    for number, cell in enumerate(share, start=1):
        folder = out / cell.name
        config = federation(cell, folder, settings)
        if finished(folder, config):
            continue
        shelf = shelves.setdefault(
            (cell.seed, cell.task),
            Shelf({site: load(path, SiteConfig) for site, path in files[cell.seed].items()}, torch.device("cpu")),
        )
        started = time.monotonic()
        arm = Arm(cell.name, cell.kind, cell.trained)
        run_arm(arm, config, shelf, folder, unwatched(config), threading.Event())
        if cell.kind == "federated":
            state = states.load(folder / "checkpoint.safetensors")
            random_memory_scores(config, state, shelf, folder / "random_memory", list(cell.tested))
        took = time.monotonic() - started
        print(f"[{os.getpid()}] {number}/{len(share)} {cell.name} {took:.1f} s", file=sys.stderr, flush=True)


def figures_of(cohort: str, cells: list[Cell], out: Path, tasks: list[str], external: tuple[str, ...]) -> list[Figure]:
    """Means over seeds of the pooled AUROC, and paired differences with intervals over patients and seeds."""
    figures: list[Figure] = []
    for task in tasks:
        for where in ("loso", "external"):
            by_seed: dict[str, list[Any]] = {}
            for seed in sorted({cell.seed for cell in cells}):
                mine = [cell for cell in cells if (cell.seed, cell.task) == (seed, task)]
                scores = _scores(mine, out, where, external)
                for name, found in scores.items():
                    by_seed.setdefault(name, []).append(found)
            figures += _summary(f"{cohort}.{task}.{where}", by_seed)
        figures += _memory_health(f"{cohort}.{task}.memory", [cell for cell in cells if cell.task == task], out)
    return figures


def _scores(cells: list[Cell], out: Path, where: str, external: tuple[str, ...]) -> dict[str, Any]:
    """Predictions by method on the left-out sites, or on the external cohort; local: one entry a model."""
    chosen = [cell for cell in cells if (cell.tested == external) == (where == "external") and cell.kind != "local"]
    found: dict[str, Any] = {}
    for kind in METHODS:
        mine = [cell for cell in chosen if cell.kind == kind]
        found[kind] = Scores.join([_read(out / c.name, c.tested) for c in mine])
    random = [cell for cell in chosen if cell.kind == "federated"]
    found["random_memory"] = Scores.join([_read(out / c.name / "random_memory", c.tested) for c in random])
    sites = external if where == "external" else tuple(site for cell in chosen[:: len(METHODS)] for site in cell.tested)
    local = [cell for cell in cells if cell.kind == "local"]
    found["local"] = {
        site: [_read(out / cell.name, (site,)) for cell in local if site in cell.tested] for site in sites
    }
    return found


def _memory_health(name: str, cells: list[Cell], out: Path) -> list[Figure]:
    """Whether the memory of the federated runs lived: how far slots moved, how many are in use, how alike they are."""
    histories = [
        states.load(out / cell.name / "checkpoint.safetensors").history for cell in cells if cell.kind == "federated"
    ]
    ends = {"first_round": [history[0] for history in histories], "last_round": [history[-1] for history in histories]}
    figures = []
    for when, records in ends.items():
        moved = float(np.mean([record.slot_movement_rad for record in records]))
        figures.append(Figure(f"{name}.slot_movement.{when}", round(moved, 4), "rad"))
    last = ends["last_round"]
    figures.append(
        Figure(f"{name}.effective_slots", round(float(np.mean([r.effective_slots for r in last])), 2), "slots")
    )
    figures.append(Figure(f"{name}.slot_cosine", round(float(np.mean([r.slot_cosine for r in last])), 3), "cosine"))
    patches = float(np.mean([record.effective_patches or 0.0 for record in last]))
    figures.append(Figure(f"{name}.effective_patches", round(patches, 1), "patches per bag"))
    return figures


def _read(folder: Path, sites: tuple[str, ...]) -> Scores:
    return Scores.join([read_predictions(predictions_path(folder, site), site) for site in sites])


def _pooled_auroc(scores: Scores) -> float:
    value = auroc(scores.labels, scores.probabilities)
    return float("nan") if value is None else value


def _summary(name: str, by_seed: dict[str, list[Any]]) -> list[Figure]:
    means = {
        method: float(np.mean([_pooled_auroc(s) for s in by_seed[method]])) for method in by_seed if method != "local"
    }
    means["local_median"] = float(np.mean([_local_median(local) for local in by_seed["local"]]))
    figures = [Figure(f"{name}.{method}", round(value, 4), "AUROC") for method, value in means.items()]
    ratio = means["federated"] / means["pooled"]
    figures.append(Figure(f"{name}.federated_to_pooled", round(ratio, 4), "ratio", ">=0.97", ratio >= 0.97))
    above = means["federated"] - means["local_median"]
    figures.append(Figure(f"{name}.federated_minus_local", round(above, 4), "AUROC", ">0", above > 0))
    for other in ("pooled", "control", "random_memory"):
        low, mean, high = _paired(by_seed["federated"], by_seed[other])
        figures.append(Figure(f"{name}.federated_minus_{other}", round(mean, 4), "AUROC", interval=(low, high)))
    return figures


def _local_median(local: dict[str, list[Scores]]) -> float:
    """Mean over the tested sites of the median local model's AUROC there."""
    medians = []
    for models in local.values():
        values = [auroc(model.labels, model.probabilities) for model in models]
        known = [value for value in values if value is not None]
        if known:
            medians.append(float(np.median(known)))
    return float(np.mean(medians))


def _paired(first: list[Scores], second: list[Scores]) -> tuple[float, float, float]:
    """Mean difference over seeds, its 95% interval from the paired bootstrap within seeds and the spread between."""
    pairs = [compare(a, b, class_minimum=2).difference for a, b in zip(first, second, strict=True)]
    values = np.array([pair.value for pair in pairs], float)
    within = np.mean([((pair.high or 0) - (pair.low or 0)) / 3.92 for pair in pairs])
    between = values.std(ddof=1) if len(values) > 1 else 0.0
    # the same patients return in every seed, so the patients' part does not shrink with seeds
    half = 1.96 * float(np.sqrt(within**2 + between**2 / len(values)))
    return round(values.mean() - half, 4), float(values.mean()), round(values.mean() + half, 4)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", choices=("semi-real", "demo"), default="semi-real")
    parser.add_argument("--tasks", nargs="+", default=["PR", "HER2", "ODX"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13])
    parser.add_argument(
        "--brca", type=Path, default=Path(os.environ.get("MOMKD_REAL_DATA", "../shared/data")) / "tcga-brca"
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench/leave_one_site_out"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--figures-only", action="store_true", help="print the figures of finished cells")
    args = parser.parse_args()
    out = (args.out / args.cohort).resolve()
    files = {seed: write_data(args.cohort, out / f"data{seed}", seed, args.tasks, args.brca) for seed in args.seeds}
    roles = {site: load(path, SiteConfig).role for site, path in files[args.seeds[0]].items()}
    training = tuple(site for site, role in roles.items() if role == "train")
    external = tuple(site for site, role in roles.items() if role == "evaluate")
    cells = cells_of(args.seeds, args.tasks, training, external)
    if not args.figures_only:
        print(f"{len(cells)} models to train with {args.jobs} processes", file=sys.stderr, flush=True)
        context = multiprocessing.get_context("spawn")
        shares = [cells[job :: args.jobs] for job in range(args.jobs)]
        workers = [context.Process(target=work, args=(share, files, out, SETTINGS), daemon=True) for share in shares]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            return 1
    return print_figures(
        figures_of("synthetic" if args.cohort == "demo" else args.cohort, cells, out, args.tasks, external)
    )


if __name__ == "__main__":
    sys.exit(main())
