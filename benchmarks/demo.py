"""``make demo`` on a bare clone: how long it installs and runs, and how much memory all processes take together."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import Figure, print_figures

RUN_TARGET_S = 300.0


def main() -> int:
    """Clone the repository this file is in, run ``make demo`` there, and print what its results say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--here", action="store_true", help="use this checkout and its environment, not a bare clone")
    args = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        place = root
        if not args.here:
            place = Path(folder) / "clone"
            subprocess.run(["git", "clone", "--quiet", str(root), str(place)], check=True)
        made = subprocess.run(["make", "demo", "ARGS=--plain --fresh"], cwd=place, stdout=sys.stderr, check=False)
        if made.returncode:
            print("make demo failed", file=sys.stderr)
            return 1
        results = json.loads((place / "out" / "demo" / "results.json").read_text("utf-8"))
    seconds = results["seconds"]
    figures = [
        Figure("demo.run_s", round(seconds["run"], 1), "s", f"<={RUN_TARGET_S:.0f}", seconds["run"] <= RUN_TARGET_S)
    ]
    if seconds["install"] is not None:
        figures.insert(0, Figure("demo.install_s", round(seconds["install"], 1), "s"))
    figures.append(Figure("demo.peak_rss_mb", round(results["peak_rss_mb"]), "MB"))
    rounds = results["rounds"]
    figures.append(Figure("demo.round_median_s", round(sorted(r["seconds"] for r in rounds)[len(rounds) // 2], 2), "s"))
    for method, by_task in results["held_out"].items():
        for task, found in by_task.items():
            pooled = found["pooled"]
            if pooled["value"] is not None:
                interval = (round(pooled["low"], 4), round(pooled["high"], 4))
                figures.append(Figure(f"demo.{task}.{method}", round(pooled["value"], 4), "AUROC", interval=interval))
    return print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
