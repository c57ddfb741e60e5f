"""Memory of one very large patient: training and evaluation, each in a process of its own.

    python -m benchmarks memory [--out out/memory] [--cap-gb 16] [--quick]

100,000 and 400,000 patches of 1,536 float16 from the ingested store, no cache, the MoMKD student at its default width,
bf16, one thread. Training is held to the peak of the whole process. Of evaluation, whose working memory should not
grow with the slide, what stands beyond the bag itself is reported too: the bag as the product holds it, float32
features and neighbours.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.bags import generate
from benchmarks.figures import Figure, at_most, print_figures, without_targets
from benchmarks.peak import over_imports, peak_of
from benchmarks.students import Student

DIM = 1536
SIZES = {"100k": 100_000, "400k": 400_000}
TRAIN_100K_GB = 4.0
ROWS_PER_CHUNK = 1024
"""Of the files that are ingested: with TRIDENT's single rows, writing them would take most of the time."""


def measure(work: str, patches: int, out: Path) -> None:
    """Train one step on, or score, one patient of so many patches; the parent generated it."""
    torch.set_num_threads(1)
    run = _runner(work, out, 64)
    run()
    large = _runner(work, out, patches)
    started = time.perf_counter()
    over_imports(large)
    print(f"{work} {patches:,} patches: {time.perf_counter() - started:.1f} s", file=sys.stderr)


def _runner(work: str, out: Path, patches: int):  # type: ignore[no-untyped-def]
    student = Student("momkd", generate(out, [patches], DIM, rows_per_chunk=ROWS_PER_CHUNK).cohort(store=True), "bf16")
    return student.epoch if work == "train" else student.score


def figures_of(sizes: dict[str, int], out: Path, cap_gb: float) -> list[Figure]:
    """Four processes: both works at both sizes."""
    figures = []
    for name, patches in sizes.items():
        generate(out, [patches], DIM, rows_per_chunk=ROWS_PER_CHUNK)
        common = [str(patches), "--out", str(out)]
        peak = {work: peak_of("benchmarks.memory", "--measure", work, *common) for work in ("train", "evaluate")}
        most = TRAIN_100K_GB if name == "100k" else cap_gb
        gigabytes = {work: round(found["peak_mb"] * 2**20 / 1e9, 3) for work, found in peak.items()}
        bag_mb = patches * (DIM * 4 + 9 * 4) / 2**20
        beyond = round(peak["evaluate"]["over_mb"] - bag_mb, 1)
        figures += [
            at_most(f"memory.train_{name}_gb", gigabytes["train"], "GB, whole process", most),
            Figure(f"memory.evaluate_{name}_gb", gigabytes["evaluate"], "GB, whole process"),
            Figure(f"memory.evaluate_{name}_over_bag_mb", beyond, "MB over imports and bag"),
        ]
    return figures


def main() -> int:
    """Entry point; exit status 1 if training needs more than its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/memory"))
    parser.add_argument("--cap-gb", type=float, default=8.0, help="what training 400,000 patches may take")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 1,000 and 4,000 patches")
    parser.add_argument("--measure", nargs=2, metavar=("WORK", "PATCHES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], int(args.measure[1]), args.out)
        return 0
    sizes = {"100k": 1000, "400k": 4000} if args.quick else SIZES
    figures = figures_of(sizes, args.out, args.cap_gb)
    value = {figure.figure: figure.value for figure in figures}
    small, large = sizes.values()
    print(
        f"One patient of {small:,} x {DIM:,}: training peaked at {value['memory.train_100k_gb']:.2f} GB, evaluation at "
        f"{value['memory.evaluate_100k_gb']:.2f} GB; of {large:,}: {value['memory.train_400k_gb']:.2f} and "
        f"{value['memory.evaluate_400k_gb']:.2f} GB.",
        file=sys.stderr,
    )
    return print_figures(without_targets(figures) if args.quick else figures)


if __name__ == "__main__":
    sys.exit(main())
