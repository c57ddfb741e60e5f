"""How long training waits for its data: the share of an epoch's wall time, without any cache.

    python -m benchmarks loader [--out out/train] [--repeats 5] [--quick]

Six patients, both students in bf16, from the ingested store and from TRIDENT files in place. One thread computes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import torch

from benchmarks.bags import SIX, Site, generate
from benchmarks.figures import Figure, print_figures, without_targets
from benchmarks.interleaved import middle_at_most
from benchmarks.students import Student
from benchmarks.train import QUICK
from momkd_fl.model.batch import PackedBags
from momkd_fl.training import loop

WAITING_SHARE = 0.1
Pack = tuple[PackedBags, int]
"""What the loader gives for a step: the pack, and the seed of its dropout."""


class Waiting:
    """Stands between the training loop and its loader; counts packs, and the seconds that they were waited for."""

    def __init__(self) -> None:
        self.seconds, self.packs = 0.0, 0

    def around(self, packs: Generator[Pack]) -> Generator[Pack]:
        """The same packs."""
        with closing(packs):
            while True:
                started = time.perf_counter()
                pack = next(packs, None)
                self.seconds += time.perf_counter() - started
                if pack is None:
                    return
                self.packs += 1
                yield pack


def share(student: Student) -> float:
    """Waiting by wall time of one epoch; its start, when nothing has been read yet, is part of both."""
    waiting = Waiting()
    inner = loop.training_packs
    loop.training_packs = lambda *given, **named: waiting.around(inner(*given, **named))
    try:
        started = time.perf_counter()
        steps = student.pass_over_all().steps
        wall = time.perf_counter() - started
    finally:
        loop.training_packs = inner
    if waiting.packs != steps:
        raise SystemExit("the training loop does not take its packs from training_packs: see benchmarks/loader.py")
    return waiting.seconds / wall


def measure(site: Site, repeats: int) -> list[Figure]:
    """Both students from both sources; only the store with MoMKD has something to hold."""
    figures = []
    for architecture, short in (("momkd", "momkd"), ("gated_attention", "gated")):
        for store, source in ((True, "store"), (False, "h5")):
            student = Student(architecture, site.cohort(store=store), "bf16")
            values = [share(student) for _ in range(repeats + 1)][1:]
            held = store and architecture == "momkd"
            name = "loader.waiting_share" if held else f"loader.waiting_share.{short}.{source}"
            figures.append(middle_at_most(name, values, "of an epoch's wall time", WAITING_SHARE if held else None))
    return figures


def main() -> int:
    """Entry point; exit status 1 if training from the store waits too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/train"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smoke run: small slides, two epochs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(generate(args.out, QUICK if args.quick else SIX), 2 if args.quick else args.repeats)
    print(
        f"An epoch of the MoMKD student from the store waits for data {figures[0].value:.0%} of its time, from TRIDENT "
        f"files {figures[1].value:.0%}; gated attention {figures[2].value:.0%} and {figures[3].value:.0%}.",
        file=sys.stderr,
    )
    return print_figures(without_targets(figures) if args.quick else figures)


if __name__ == "__main__":
    sys.exit(main())
