"""Training: ours against the released MoMKD, CLAM and torchmil's ABMIL, and against the roof of matrix products.

    bash benchmarks/peers.sh ../peers
    python -m benchmarks train [--peers ../peers] [--out out/train] [--repeats 5] [--quick]

Six patients, 29,346 patches of 1,024 float16 in TRIDENT files, one thread. A pass is a whole step for each patient as
the product takes it: reading, forward, losses, backward, clipping, optimiser. Every arm reads its files within the
step, but where a figure says ``in_memory``. All arms take turns, round by round; a ratio is the median over the rounds
of CPU-seconds (user and system, all threads), with its quartiles.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import roof
from benchmarks.bags import SIX, Site, generate
from benchmarks.figures import Figure, at_most, print_figures, without_targets
from benchmarks.interleaved import Arm, Rounds, interleaved, middle
from benchmarks.peak import over_imports, peak_of
from benchmarks.peers import Clam, Released, Slides, Torchmil, add_packages, losses_fall
from benchmarks.students import Student

RSS_TARGET = 0.167
SMALL = (200,) * 32
CACHE_MB = 1024
QUICK = (100, 160, 212, 270, 340, 400)
RATIOS: dict[str, tuple[str, str, float | None]] = {
    "vs_release": ("release", "momkd bf16", 5.0),
    "vs_release.fp32": ("release", "momkd fp32", None),
    "vs_release.in_memory": ("release in_memory", "momkd bf16 in_memory", None),
    "vs_clam": ("clam", "gated bf16", 2.0),
    "vs_clam.fp32": ("clam", "gated fp32", None),
    "vs_clam.in_memory": ("clam in_memory", "gated bf16 in_memory", None),
    "vs_clam_autocast": ("clam autocast", "gated bf16", 1.25),
    "vs_clam_autocast.in_memory": ("clam autocast in_memory", "gated bf16 in_memory", None),
    "vs_torchmil": ("torchmil", "gated bf16", 2.2),
    "vs_torchmil.in_memory": ("torchmil in_memory", "gated bf16 in_memory", None),
    "vs_torchmil.batch_3": ("torchmil batch 3", "gated bf16", None),
}
"""Figure to (slower arm, faster arm, least ratio)."""
ROOFS: dict[str, tuple[str, float | None]] = {
    "roof_gated_fp32": ("gated fp32", 0.9),
    "roof_gated_bf16": ("gated bf16", 0.65),
    "roof_momkd_bf16": ("momkd bf16", 0.6),
    "roof_momkd_fp32": ("momkd fp32", None),
    "roof_gated_fp32.in_memory": ("gated fp32 in_memory", None),
    "roof_gated_bf16.in_memory": ("gated bf16 in_memory", None),
    "roof_momkd_bf16.in_memory": ("momkd bf16 in_memory", None),
}


class Learning:
    """Runs an arm's pass and keeps its losses."""

    def __init__(self, run: Callable[[], float]) -> None:
        self.run, self.losses = run, list[float]()

    def __call__(self) -> None:
        self.losses.append(self.run())


def students(site: Site) -> dict[str, Student]:
    """Ours: MoMKD from the store, where its graph was prepared; gated attention from the TRIDENT files in place."""
    found = {}
    for precision in ("fp32", "bf16"):
        found[f"momkd {precision}"] = Student("momkd", site.cohort(store=True, genes=True), precision)
        found[f"gated {precision}"] = Student("gated_attention", site.cohort(store=False), precision)
    kept = site.cohort(store=True, genes=True, cache_mb=CACHE_MB)
    found["momkd bf16 in_memory"] = Student("momkd", kept, "bf16")
    for precision in ("fp32", "bf16"):
        kept = site.cohort(store=False, cache_mb=CACHE_MB)
        found[f"gated {precision} in_memory"] = Student("gated_attention", kept, precision)
    return found


def peers(folder: Path, site: Site) -> dict[str, Callable[[], float]]:
    """The others' passes."""
    files, kept = Slides(site, False), Slides(site, True)
    return {
        "release": Released(folder, files).epoch,
        "release in_memory": Released(folder, kept).epoch,
        "clam": Clam(folder, files).epoch,
        "clam in_memory": Clam(folder, kept).epoch,
        "clam autocast": Clam(folder, files, bf16=True).epoch,
        "clam autocast in_memory": Clam(folder, kept, bf16=True).epoch,
        "torchmil": Torchmil(files, 1).epoch,
        "torchmil in_memory": Torchmil(kept, 1).epoch,
        "torchmil batch 3": Torchmil(files, 3).epoch,
    }


def speed(folder: Path, site: Site, repeats: int) -> list[Figure]:
    """All ratios and shares of the roof, from one run in one process."""
    ours = students(site)
    passes = peers(folder, site)
    passes |= {name: _classification(student) for name, student in ours.items()}
    arms = {name: Learning(run) for name, run in passes.items()}
    matmuls = [*roof.products("fp32"), *roof.products("bf16")]
    rounds = interleaved([*(Arm(name, run) for name, run in arms.items()), *matmuls], repeats)
    stuck = [name for name, arm in arms.items() if not losses_fall(arm.losses)]
    if stuck:
        raise SystemExit(f"the loss did not fall in {len(site.sizes)} steps a pass: {', '.join(stuck)}")
    figures = []
    for name, (slow, fast, least) in RATIOS.items():
        figures.append(middle(f"train.{name}", rounds.ratios(slow, fast), "x CPU-s", least=least))
        figures.append(middle(f"train.{name}.wall", rounds.ratios(slow, fast, "wall"), "x wall"))
    figures += [_share(rounds, name, ours[arm], arm, site, least) for name, (arm, least) in ROOFS.items()]
    for precision in ("fp32", "bf16"):
        rates = [rate / 1e9 for rate in roof.best(rounds, precision)]
        figures.append(middle(f"train.roof_gflops.{precision}", rates, "GFLOP/CPU-s"))
    return figures + _absolute(rounds, list(arms), len(site.sizes))


def small_bags(out: Path, patches: tuple[int, ...], repeats: int) -> list[Figure]:
    """A pass over many small patients in one step against as many steps; features are in memory."""
    site = generate(out, patches)
    figures = []
    for architecture, least in (("gated_attention", 2.0), ("momkd", None)):
        cohort = site.cohort(store=True, cache_mb=CACHE_MB, genes=architecture == "momkd")
        arms = [
            Arm(name, Student(architecture, cohort, "bf16", per_step=per_step).epoch)
            for name, per_step in (("one at a time", 1), ("packed", len(patches)))
        ]
        ratios = interleaved(arms, repeats).ratios("one at a time", "packed")
        name = "train.small_bags" if least else f"train.small_bags.{architecture}"
        figures.append(middle(name, ratios, "x CPU-s", least=least))
    return figures


def memory(folder: Path, out: Path, sizes: tuple[int, ...]) -> list[Figure]:
    """Peak memory of a pass over what the process had before it, each arm in a process of its own."""
    common = ["--peers", str(folder), "--out", str(out), "--sizes", *map(str, sizes)]
    arms = ("momkd", "release", "gated", "clam")
    peak = {arm: peak_of("benchmarks.train", "--rss", arm, *common)["over_mb"] for arm in arms}
    ratio = round(peak["momkd"] / peak["release"], 4)
    figures = [at_most("train.rss_vs_release", ratio, "of the release's peak over imports", RSS_TARGET)]
    return figures + [Figure(f"train.rss_mb.{arm}", peak[arm], "MB over imports") for arm in arms]


def measure_rss(arm: str, folder: Path, out: Path, sizes: tuple[int, ...]) -> None:
    """One arm's pass in this process, after the same over tiny slides, so that nothing is compiled or loaded in it."""

    def runner(site: Site) -> Callable[[], object]:
        if arm == "release":
            return Released(folder, Slides(site, False)).epoch
        if arm == "clam":
            return Clam(folder, Slides(site, False)).epoch
        momkd = arm == "momkd"
        cohort = site.cohort(store=momkd, genes=momkd)
        return Student("momkd" if momkd else "gated_attention", cohort, "bf16").pass_over_all

    runner(generate(out, (64, 64)))()
    over_imports(runner(generate(out, sizes)))


def main() -> int:
    """Entry point; exit status 1 if a target is missed, 2 where there are no peers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path("../peers"), help="where benchmarks/peers.sh put them")
    parser.add_argument("--out", type=Path, default=Path("out/train"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smoke run: small slides, two rounds")
    parser.add_argument("--rss", default="", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    add_packages(args.peers)
    torch.set_num_threads(1)
    if args.rss:
        measure_rss(args.rss, args.peers, args.out, tuple(args.sizes))
        return 0
    sizes, repeats, small = (QUICK, 2, SMALL[:8]) if args.quick else (SIX, args.repeats, SMALL)
    site = generate(args.out, sizes)
    figures = memory(args.peers, args.out, sizes) + speed(args.peers, site, repeats)
    figures += small_bags(args.out, small, repeats)
    _say({figure.figure: figure for figure in figures}, len(sizes), sum(sizes))
    return print_figures(without_targets(figures) if args.quick else figures)


def _classification(student: Student) -> Callable[[], float]:
    return lambda: student.pass_over_all().losses["classification"]


def _share(rounds: Rounds, name: str, student: Student, arm: str, site: Site, least: float | None) -> Figure:
    flop = roof.flop_per_patch(student.shape) * sum(site.sizes)
    rates = roof.best(rounds, student.precision)
    shares = [flop / seconds / rate for seconds, rate in zip(rounds.of(arm), rates, strict=True)]
    return middle(f"train.{name}", shares, "of the matmul roof", least=least)


def _absolute(rounds: Rounds, arms: list[str], patients: int) -> list[Figure]:
    return [
        middle(f"train.{clock}_s.{arm.replace(' ', '_')}", [s / patients for s in rounds.of(arm, clock)], unit)
        for clock, unit in (("cpu", "CPU-s per patient"), ("wall", "s per patient"))
        for arm in arms
    ]


def _say(figures: dict[str, Figure], patients: int, patches: int) -> None:
    value = {name: figure.value for name, figure in figures.items()}
    print(
        f"Training on {patients} patients, {patches:,} patches in all: the MoMKD student took "
        f"{value['train.vs_release']:.2f} times less CPU time than the released MoMKD at "
        f"{value['train.rss_vs_release']:.2f} of its memory; gated attention {value['train.vs_clam']:.2f} times less "
        f"than CLAM, {value['train.vs_clam_autocast']:.2f} than CLAM with autocast and "
        f"{value['train.vs_torchmil']:.2f} than torchmil.",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
