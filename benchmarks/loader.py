"""How long training waits for its data: the share of an epoch's wall time, without any cache.

    python -m benchmarks loader [--out out/train] [--repeats 5] [--quick]

Six patients, both students in bf16, from the ingested store and from TRIDENT files in place. One thread computes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.bags import SIX, Site, generate
from benchmarks.figures import Figure, print_figures, without_targets
from benchmarks.interleaved import middle_at_most
from benchmarks.students import Student
from benchmarks.train import QUICK
from momkd_fl.training.sampling import Packer

WAITING_SHARE = 0.1


class Waiting:
    """Counts the seconds that the loop waits for packs: all of ``Packer.pack``, which it calls between steps."""

    def __init__(self, packer: Packer) -> None:
        self.seconds = 0.0
        inner = packer.pack

        def timed(*given: object, **named: object) -> object:
            started = time.perf_counter()
            found = inner(*given, **named)  # type: ignore[arg-type]
            self.seconds += time.perf_counter() - started
            return found

        packer.pack = timed  # type: ignore[method-assign, assignment]


def shares(student: Student, repeats: int) -> list[float]:
    """Waiting by wall time of each epoch, after one to warm up."""
    waiting = Waiting(student.packer)
    found = []
    for _ in range(repeats + 1):
        waiting.seconds, started = 0.0, time.perf_counter()
        student.pass_over_all()
        found.append(waiting.seconds / (time.perf_counter() - started))
    return found[1:]


def measure(site: Site, repeats: int) -> list[Figure]:
    """Both students from both sources; only the store with MoMKD has something to hold."""
    figures = []
    for architecture, short in (("momkd", "momkd"), ("gated_attention", "gated")):
        for store, source in ((True, "store"), (False, "h5")):
            values = shares(Student(architecture, site.cohort(store=store), "bf16"), repeats)
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
