"""What the gate adds to a round at a site: contract, small numbers, budget, ledger, signature; 1 M parameters.

    python -m benchmarks gate [--parameters 1000000] [--repetitions 50] [--quick]

The real gate with real books on this disk, of one ``train`` reply: weights, memory statistics and score histogram.
Timed is what :meth:`Gate.send` does beyond building the message, which a site without a gate would do too: the
medians' difference. Charged are one Gaussian release, exactly composed, and apart from it DP-SGD, through privacy loss
distributions; the latter's first composition in a process is reported by itself. ``--books`` has earlier lines in the
ledger and debits in the odometer, as a site in its tenth run would.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message

from benchmarks.figures import Figure, at_most, print_figures, without_targets
from momkd_fl.config.policy import Budget, SmallNumbers
from momkd_fl.config.site import Egress
from momkd_fl.federation.answering import answer
from momkd_fl.federation.books import Books
from momkd_fl.federation.contract import contract_for
from momkd_fl.federation.egress import Gate
from momkd_fl.federation.flower import identify
from momkd_fl.federation.messages import TRAIN, Parcel, Train, TrainReply, ask
from momkd_fl.privacy.accountant import Charge, GaussianReleases, PoissonSteps
from momkd_fl.security.signing import create_signing_key

TARGET_MS = 50.0
CLASSES, SLOTS, WIDTH = 2, 4, 64
RELEASE: tuple[Charge, ...] = (GaussianReleases(60.0),)
PRIVATE: tuple[Charge, ...] = (GaussianReleases(60.0), PoissonSteps(6.0, 0.1, 5))


class Site:
    """A gate with books in ``folder`` and the reply that goes through it."""

    def __init__(self, folder: Path, parameters: int, earlier: int) -> None:
        names = ("policy", "signing_key", "ledger", "odometer", "publications")
        where = Egress.model_validate({name: folder / name for name in names})
        key = create_signing_key(folder, "ash")
        policy = contract_for(
            "ash", "train", coordinator_sha256="0" * 64, runs=["*"], tasks=["*"], expires=date(2999, 1, 1),
            small_numbers=SmallNumbers(scores="cells"), budget=Budget(epsilon=50.0),
        )  # fmt: skip
        Books.create(where, key, "ash", policy.budget)
        self.books = Books.open(where, key, policy.budget)
        self.gate = Gate(policy, self.books)
        self.round = 0
        generator = np.random.default_rng(0)
        self.update = generator.normal(size=parameters).astype(np.float32)
        self.statistics = {
            "sums.histology": generator.normal(size=(CLASSES, SLOTS, WIDTH)).astype(np.float32),
            "counts.histology": np.full((CLASSES, SLOTS), 20.0, np.float32),
        }
        self.scores = np.zeros((1, CLASSES, 100), np.float32)
        self.scores[0, :, 20:60] = 1
        for number in range(earlier):
            digest = f"{number:064x}"
            receipt = self.books.debit(f"earlier/{number}/train", digest, RELEASE)
            self.books.enter("earlier", number, "train", digest, 4 * parameters, receipt)

    def reply(self, gated: bool, charges: tuple[Charge, ...]) -> Message:
        """One reply of the next round, through the gate or built without it."""
        self.round += 1
        body = Train(proximal_mu=0.0, learning_rate_share=1.0)
        request = ask(TRAIN, body, 7, run="bench", round=self.round, arrays={})
        parcel: Parcel[Any] = Parcel("train", "bench", self.round, body, {})
        said = TrainReply(seconds={"train": 1.0}, losses={}, loss_sum=[1.0, 1.0], monitors={})
        self.update[0] = self.round
        arrays = {
            "update": {"histology": self.update},
            "statistics": self.statistics,
            "scores": {"counts": self.scores},
        }
        if gated:
            return self.gate.send(TRAIN, request, parcel, said, arrays, task="PR", charges=charges)
        return answer(TRAIN, request, parcel, said, arrays)


def timed_ms(work: Callable[[], object]) -> float:
    """Wall milliseconds: what waits for the disk counts."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def added_ms(site: Site, charges: tuple[Charge, ...], repetitions: int) -> tuple[float, tuple[float, float]]:
    """Median and quartiles of a gated reply's time less the median of an ungated one's, in turns."""
    gated, plain = [], []
    for _ in range(repetitions):
        plain.append(timed_ms(lambda: site.reply(False, ())))
        gated.append(timed_ms(lambda: site.reply(True, charges)))
    base = statistics.median(plain)
    low, middle, high = statistics.quantiles(gated, n=4)
    return round(middle - base, 2), (round(low - base, 2), round(high - base, 2))


def figures_of(parameters: int, repetitions: int, earlier: int, folder: Path) -> list[Figure]:
    """The figures, of books in ``folder``."""
    site = Site(folder, parameters, earlier)
    site.reply(True, ())
    figures = []
    for name, charges in (("no_noise", ()), ("release", RELEASE), ("dpsgd", PRIVATE)):
        if name == "dpsgd":
            first = timed_ms(lambda: site.reply(True, PRIVATE))
            figures.append(Figure("gate.first_dpsgd_ms", round(first, 1), "ms, first in a process"))
        print(f"{name}: {repetitions} rounds", file=sys.stderr, flush=True)
        value, spread = added_ms(site, charges, repetitions)
        figures.append(at_most(f"gate.round_ms.{name}", value, "ms", TARGET_MS, spread))
    opening = timed_ms(lambda: site.books.must_continue(site.books.anchor))
    figures.append(Figure("gate.lines", float(site.books.ledger.head.lines), "lines of the ledger"))
    figures.append(Figure("gate.heads_ms", round(opening, 2), "ms, heads of the last reply come back"))
    site.books.close()
    return figures


def main() -> int:
    """Entry point; exit status 1 if a round costs more than its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--books", type=int, default=300, help="earlier lines of ledger and odometer")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 5 rounds of 10,000 parameters")
    args = parser.parse_args()
    identify(1, 1)
    sizes = (10_000, 5, 10) if args.quick else (args.parameters, args.repetitions, args.books)
    Path("out").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gate-", dir="out") as folder:
        figures = figures_of(*sizes, Path(folder))
    return print_figures(without_targets(figures) if args.quick else figures)


if __name__ == "__main__":
    sys.exit(main())
