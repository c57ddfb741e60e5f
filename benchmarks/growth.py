"""How cost grows: the slope of CPU-seconds against patches of one patient, and against patients, on logarithmic axes.

    python -m benchmarks growth [--out out/growth] [--repeats 5] [--quick]

Both students, training and evaluation, bf16, one thread, read from the ingested store. 1.0 is proportional. The slope
is the least-squares line through the medians; the spread is that of the slopes of single rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch

from benchmarks.bags import generate
from benchmarks.figures import Figure, print_figures, without_targets
from benchmarks.interleaved import Arm, Rounds, interleaved
from benchmarks.students import Student
from momkd_fl.data.cohort import Cohort, Patient

PATCHES = (1000, 2000, 4000, 8000, 16000, 32000)
PATIENTS = (8, 16, 32, 64)
EACH = 1000
PASSES = 4
"""Passes of one call over a single patient: a call of one step would mostly be measured for what it sets up."""
TOLERANCE = 0.05


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Least-squares slope of log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure(
    cohort: Cohort, groups: dict[int, Sequence[Patient]], axis: str, architecture: str, repeats: int
) -> list[Figure]:
    """Slopes of one student along one axis; ``groups`` has the patients of each size."""
    passes = PASSES if axis == "patches" else 1
    figures = []
    for work in ("train", "evaluate"):
        arms = []
        for size, patients in groups.items():
            student = Student(architecture, replace(cohort, patients=tuple(patients)), "bf16")
            run = partial(student.epoch, epochs=passes)
            if work == "evaluate":
                student.patients, run = [*patients] * passes, student.score
            arms.append(Arm(str(size), run))
        figures.append(_figure(f"growth.{work}.{architecture}.{axis}", list(groups), interleaved(arms, repeats)))
    return figures


def _figure(name: str, sizes: list[int], rounds: Rounds) -> Figure:
    found = slope(sizes, [median(rounds.of(str(size))) for size in sizes])
    each = [slope(sizes, seconds) for seconds in zip(*(rounds.of(str(size)) for size in sizes), strict=True)]
    low, _, high = quantiles(each, n=4, method="inclusive")
    holds = abs(found - 1) <= TOLERANCE
    spread = (round(low, 3), round(high, 3))
    return Figure(name, round(found, 3), "log CPU-s per log size", f"1 +- {TOLERANCE}", holds, spread=spread)


def main() -> int:
    """Entry point; exit status 1 if a slope is not 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/growth"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smoke run: few sizes, two rounds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    patches, patients, repeats = (PATCHES[:3], PATIENTS[:2], 2) if args.quick else (PATCHES, PATIENTS, args.repeats)
    figures = []
    wide = generate(args.out, patches).cohort(store=True)
    many = generate(args.out, [EACH] * max(patients)).cohort(store=True)
    by_patches = {size: [patient] for size, patient in zip(patches, wide.patients, strict=True)}
    by_patients = {size: many.patients[:size] for size in patients}
    for architecture in ("momkd", "gated_attention"):
        figures += measure(wide, by_patches, "patches", architecture, repeats)
        figures += measure(many, by_patients, "patients", architecture, repeats)
    values = [figure.value for figure in figures]
    print(
        f"CPU time of training and evaluation, {patches[0]:,} to {patches[-1]:,} patches and {patients[0]} to "
        f"{patients[-1]} patients: log-log slopes of {min(values):.3f} to {max(values):.3f}; 1 is proportional.",
        file=sys.stderr,
    )
    return print_figures(without_targets(figures) if args.quick else figures)


if __name__ == "__main__":
    sys.exit(main())
