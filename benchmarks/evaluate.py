"""Evaluation: one pass over six patients, ours against CLAM's and the released MoMKD's.

    python -m benchmarks evaluate [--peers ../peers] [--out out/train] [--repeats 5] [--quick]

The patients, files and turns are those of the training benchmark; one thread. CLAM's pass is its ``summary``, without
the instance loss (in fp32: it fails under autocast); the release's is its validation loop. Ours is the product's
scoring: probabilities, log losses and effective patches.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.bags import SIX, Site, generate
from benchmarks.figures import Figure, print_figures, without_targets
from benchmarks.interleaved import Arm, interleaved, middle
from benchmarks.peers import Clam, Released, Slides, add_packages
from benchmarks.students import Student
from benchmarks.train import QUICK, students

RATIOS: dict[str, tuple[str, str, float | None]] = {
    "vs_clam": ("clam", "gated bf16", 2.0),
    "vs_clam.fp32": ("clam", "gated fp32", None),
    "vs_clam.in_memory": ("clam in_memory", "gated bf16 in_memory", None),
    "vs_release": ("release", "momkd bf16", None),
    "vs_release.fp32": ("release", "momkd fp32", None),
    "vs_release.in_memory": ("release in_memory", "momkd bf16 in_memory", None),
}
"""Figure to (slower arm, faster arm, least ratio)."""
EPOCHS = 5.0
"""Passes of training before bf16's scores are compared with fp32's."""


def speed(folder: Path, site: Site, repeats: int) -> list[Figure]:
    """All ratios, from one run in one process."""
    files, kept = Slides(site, False), Slides(site, True)
    passes = {
        "clam": Clam(folder, files).score,
        "clam in_memory": Clam(folder, kept).score,
        "release": Released(folder, files).score,
        "release in_memory": Released(folder, kept).score,
        **{name: student.score for name, student in students(site).items()},
    }
    rounds = interleaved([Arm(name, run) for name, run in passes.items()], repeats)
    figures = []
    for name, (slow, fast, least) in RATIOS.items():
        figures.append(middle(f"evaluate.{name}", rounds.ratios(slow, fast), "x CPU-s", least=least))
        figures.append(middle(f"evaluate.{name}.wall", rounds.ratios(slow, fast, "wall"), "x wall"))
    for name in passes:
        each = [seconds / len(site.sizes) for seconds in rounds.of(name)]
        figures.append(middle(f"evaluate.cpu_s.{name.replace(' ', '_')}", each, "CPU-s per patient"))
    return figures


def rounding(site: Site) -> list[Figure]:
    """How far bf16 moves a probability of students that have learnt, at most over the patients."""
    figures = []
    for architecture in ("momkd", "gated_attention"):
        student = Student(architecture, site.cohort(store=True, cache_mb=1024), "fp32")
        student.epoch(epochs=EPOCHS)
        exact = student.score().probabilities
        student.precision = "bf16"
        shift = float(np.abs(student.score().probabilities - exact).max())
        figures.append(Figure(f"evaluate.bf16_shift.{architecture}", round(shift, 5), "of a probability, the largest"))
    return figures


def main() -> int:
    """Entry point; exit status 1 if a target is missed, 2 where there are no peers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path("../peers"), help="where benchmarks/peers.sh put them")
    parser.add_argument("--out", type=Path, default=Path("out/train"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smoke run: small slides, two rounds")
    args = parser.parse_args()
    add_packages(args.peers)
    torch.set_num_threads(1)
    site = generate(args.out, QUICK if args.quick else SIX)
    figures = speed(args.peers, site, 2 if args.quick else args.repeats) + rounding(site)
    value = {figure.figure: figure.value for figure in figures}
    print(
        f"One evaluation pass over six patients: gated attention took {value['evaluate.vs_clam']:.2f} times less CPU "
        f"time than CLAM, the MoMKD student {value['evaluate.vs_release']:.2f} times less than the released MoMKD.",
        file=sys.stderr,
    )
    return print_figures(without_targets(figures) if args.quick else figures)


if __name__ == "__main__":
    sys.exit(main())
