"""Where a training step's time goes: shares of the operators' own time, by torch's profiler.

    bash benchmarks/peers.sh ../peers
    python -m benchmarks breakdown [--peers ../peers] [--out out/breakdown] [--quick]

One pass over two patients of 2,000 patches of 1,024, features in memory, one thread, after a pass to warm up. The
profiler's own cost falls on many small operators more than on few large ones: shares are a guide, seconds are in
``benchmarks train``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.bags import generate
from benchmarks.figures import Figure, print_figures
from benchmarks.peers import Clam, Released, Slides, Torchmil, add_packages
from benchmarks.students import Student

SIZES, QUICK, CACHE_MB = (2000, 2000), (300, 300), 256
PARTS: dict[str, tuple[str, ...]] = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mv", "aten::addmv"),
    "compiled": ("_Encode", "_EncodeBackward", "_GatedPool", "_GatedPoolBackward", "_Pool", "_PoolBackward"),
    "dropout": ("aten::bernoulli_", "aten::native_dropout", "aten::native_dropout_backward"),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::contiguous"),
    "edges": ("aten::index_select", "aten::index", "aten::index_add_", "aten::scatter_add_", "aten::scatter_reduce_"),
}
"""Operators by what they do; whatever is in no part is 'rest'."""


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each part's share of the sum, from operators' own seconds."""
    total = sum(seconds.values())
    found = {part: sum(seconds.get(name, 0.0) for name in names) / total for part, names in PARTS.items()}
    return {**found, "rest": 1.0 - sum(found.values())}


def seen(run: Callable[[], object]) -> dict[str, float]:
    """Own seconds of every operator of a second pass."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    return {event.key: float(event.self_cpu_time_total) for event in recorded.key_averages()}


def main() -> int:
    """Entry point; 2 where there are no peers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path("../peers"), help="where benchmarks/peers.sh put them")
    parser.add_argument("--out", type=Path, default=Path("out/breakdown"))
    parser.add_argument("--quick", action="store_true", help="a smoke run: small slides")
    args = parser.parse_args()
    add_packages(args.peers)
    torch.set_num_threads(1)
    site = generate(args.out, QUICK if args.quick else SIZES)
    slides = Slides(site, True)
    arms: dict[str, Callable[[], object]] = {
        "release": Released(args.peers, slides).epoch,
        "clam": Clam(args.peers, slides).epoch,
        "clam_autocast": Clam(args.peers, slides, bf16=True).epoch,
        "torchmil": Torchmil(slides, 1).epoch,
    }
    for precision in ("fp32", "bf16"):
        momkd = site.cohort(store=True, genes=True, cache_mb=CACHE_MB)
        gated = site.cohort(store=True, cache_mb=CACHE_MB)
        arms[f"momkd_{precision}"] = Student("momkd", momkd, precision).epoch
        arms[f"gated_{precision}"] = Student("gated_attention", gated, precision).epoch
    figures = []
    for arm, run in arms.items():
        print(f"profiling {arm}", file=sys.stderr, flush=True)
        for part, share in shares(seen(run)).items():
            figures.append(Figure(f"breakdown.{arm}.{part}", round(share, 3), "of the operators' own time"))
    return print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
