"""The studies of the documentation: run a committed plan, or print the figures of its finished cells.

    python -m benchmarks.study run|summary|NAME [NAME] [--out FOLDER] [--jobs 2] [--only TEXT]

``run`` and ``summary`` are of ``studies/main.yaml`` unless another plan is named; a plan's name alone runs it. One JSON
line a figure; those of the plan's targets say whether they hold. Cells go to ``out/study/NAME``, where an interrupted
study goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks import crc
from benchmarks.figures import Figure, print_figures
from benchmarks.prepared import REAL_DATA
from momkd_fl.cli.frame import OK, run_command
from momkd_fl.cli.study import open_study, run_study, study_results
from momkd_fl.config.study import RELEASED
from momkd_fl.evaluation.results import Estimate
from momkd_fl.federation.study_privacy import PrivacyRow
from momkd_fl.federation.study_results import ALL, Pair, Row, StudyResults, Verdict

ROOT = Path(__file__).resolve().parent.parent
_SHARE = "share of anchors and slots, mean over cells"
SPLITS = {"leave_one_site_out": "loso", "external": "external"}


def figures_of(results: StudyResults) -> list[Figure]:
    """AUROC of every method, every difference asked for, and the targets; what cannot be estimated has no figure."""
    found = [figure for row in results.rows for figure in _of_row(results.study, row)]
    released = {figure.figure: figure for row in results.privacy for figure in _of_privacy(results.study, row)}
    judged = {_name(results.study, one): _of_verdict(results.study, one) for one in results.verdicts}
    pairs = {_name(results.study, pair): _of_pair(results.study, pair) for pair in results.pairs}
    found += [figure for figure in {**pairs, **released, **judged}.values() if figure is not None]
    share = Figure(
        f"study-{results.study}.finished", round(results.finished / max(results.cells, 1), 4), "share of cells"
    )
    return [
        *found,
        share,
        Figure(f"study-{results.study}.code_versions", len(results.codes), "digests of the package, over all cells"),
        Figure(f"study-{results.study}.core_hours", round(results.seconds / 3600, 2), "h of one core"),
    ]


def _of_row(study: str, row: Row) -> Iterator[Figure]:
    group = "" if row.group == ALL else f".{row.group}"
    name = f"study-{study}.{row.task}.{SPLITS[row.split]}{group}.{row.method}"
    if row.pooled is not None:
        yield Figure(name, round(row.pooled, 4), "AUROC")
    if row.within_site is not None:
        yield Figure(f"{name}.within_site", round(row.within_site, 4), "AUROC, mean within site")


def _of_privacy(study: str, row: PrivacyRow) -> Iterator[Figure]:
    name = f"study-{study}.{row.task}.{SPLITS[row.split]}.{row.method}"
    if row.share_released is not None:
        yield Figure(f"{name}.share_released", round(row.share_released, 4), _SHARE)
    for part, share in row.released.items():
        yield Figure(f"{name}.share_released.{part}", round(share, 4), "share, mean over cells")
    yield Figure(f"{name}.epsilon_spent", round(row.spent, 4), "ε, the site that spent most")
    claims = {"run": row.epsilon_run, "anchors": row.epsilon_anchors, "memory": row.epsilon_memory}
    for part, epsilon in claims.items():
        if epsilon is not None:
            given = "given the weights" if part == "memory" and row.conditional else "unconditional"
            yield Figure(f"{name}.epsilon.{part}", round(epsilon, 4), f"ε, {given}")
    for part, ratio in row.noise_to_signal.items():
        yield Figure(f"{name}.noise_to_signal.{part}", round(ratio, 3), "expected from public numbers")
    yield Figure(f"{name}.cells_with_a_site_dropped", row.dropped, f"of {row.cells} cells")


def _name(study: str, one: Pair | Verdict) -> str:
    if isinstance(one, Verdict):
        target = one.target
        group, method, reference, ratio = target.group, target.method, target.reference, target.ratio
        if reference == RELEASED:
            return f"study-{study}.{one.task}.{SPLITS[one.split]}.{method}.share_released"
    else:
        group, method, reference, ratio = one.group, one.method, one.reference, one.what == "ratio"
    inside = "" if group == ALL else f".{group}"
    return f"study-{study}.{one.task}.{SPLITS[one.split]}{inside}.{method}_{'to' if ratio else 'minus'}_{reference}"


def _of_pair(study: str, pair: Pair) -> Figure | None:
    return _estimated(_name(study, pair), pair.estimate, "ratio" if pair.what == "ratio" else "AUROC")


def _of_verdict(study: str, one: Verdict) -> Figure | None:
    if one.target.reference == RELEASED:
        return _estimated(_name(study, one), one.estimate, _SHARE, f">={one.target.at_least:g}", one.holds)
    unit = "ratio" if one.target.ratio else f"AUROC, least at {one.where}" if one.where else "AUROC"
    return _estimated(_name(study, one), one.estimate, unit, f">={one.target.at_least:g}", one.holds)


def _estimated(
    name: str, one: Estimate, unit: str, target: str | None = None, holds: bool | None = None
) -> Figure | None:
    if one.value is None:
        return None
    interval = None if one.low is None or one.high is None else (round(one.low, 4), round(one.high, 4))
    return Figure(name, round(one.value, 4), unit, target, holds, interval)


def main() -> int:
    """Entry point."""
    known = sorted(path.stem for path in (ROOT / "studies").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("run", "summary", *known), default="run")
    parser.add_argument("plan", nargs="?", choices=known, default="main")
    parser.add_argument("--out", type=Path, default=None, help="default: out/study/NAME")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--only", default=None, help="only cells with this in TASK/METHOD/SITES/seedN")
    args = parser.parse_args()
    name = args.action if args.action in known else args.plan
    out = (args.out or ROOT / "out" / "study" / name).resolve()
    os.environ.setdefault("MOMKD_REAL_DATA", str(REAL_DATA))
    if name == "crc":
        crc.prepare(REAL_DATA / "tcga-crc", ROOT / "out" / "crc", 0)
    path = ROOT / "studies" / f"{name}.yaml"

    def work(stop: threading.Event) -> int:
        status = OK
        if args.action != "summary":
            status = run_study(path, out, stop, jobs=args.jobs, only=args.only, status=False)
        if stop.is_set():
            return status
        return max(status, print_figures(figures_of(study_results(open_study(path), out))))

    return run_command("study", work)


if __name__ == "__main__":
    sys.exit(main())
