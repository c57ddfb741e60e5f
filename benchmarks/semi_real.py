"""The semi-real breast cohort as files: real expression, labels and hospitals of TCGA-BRCA under synthetic slides.

    python -m benchmarks.semi_real prepare [--brca FOLDER] [--out out/semi-real] [--seed 11]

Writes one folder a hospital and one federation a task; the hospitals that train are the six largest, two of them
without genomics, and all others together are the site ``external``, which never trains. Then, for each task:

    momkd simulate --federation out/semi-real/federation-PR.yaml --comparators --jobs 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.prepared import REAL_DATA, write_federation
from benchmarks.settings import SETTINGS
from momkd_fl.config.base import load
from momkd_fl.config.site import SiteConfig
from momkd_fl.errors import UserError
from momkd_fl.synth.cohort import write_semi_real

TASKS = ("PR", "HER2", "ODX")
DIM = 256


def prepare(
    brca: Path,
    out: Path,
    seed: int,
    *,
    tasks: Sequence[str] = TASKS,
    settings: Mapping[str, Any] = SETTINGS,
    mean_patches: int = 80,
) -> dict[str, Path]:
    """Write the hospitals and the federation file of each task; returns the latter by task.

    Raises
    ------
    UserError
        ``synth-table-missing`` without the real tables; ``synth-folder-in-use`` where hospitals lie there already.
    """
    sites = write_semi_real(out / "sites", brca, seed=seed, tasks=tasks, dim=DIM, mean_patches=mean_patches)
    roles = {site: load(path, SiteConfig).role for site, path in sites.items()}
    encoder = {"name": f"synthetic-{DIM}", "dim": DIM}
    return {
        task: write_federation(out / f"federation-{task}.yaml", task, encoder, sites, roles, settings, seed)
        for task in tasks
    }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("prepare",))
    parser.add_argument("--brca", type=Path, default=REAL_DATA / "tcga-brca", help="folder of the real tables")
    parser.add_argument("--out", type=Path, default=Path("out/semi-real"))
    parser.add_argument("--seed", type=int, default=11, help="seed of the slides and of the training")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--mean-patches", type=int, default=80, help="median patches of a slide")
    args = parser.parse_args()
    try:
        written = prepare(args.brca, args.out, args.seed, tasks=args.tasks, mean_patches=args.mean_patches)
    except UserError as mistake:
        print(mistake, file=sys.stderr)
        return 2
    for path in written.values():
        print(f"momkd simulate --federation {path} --comparators --jobs 2")
    return 0


if __name__ == "__main__":
    sys.exit(main())
