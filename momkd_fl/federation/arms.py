"""Running several arms: one after another, or in a few processes side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from momkd_fl.config.base import load
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.federation.comparators import Arm, Shelf, finished, run_arm
from momkd_fl.federation.watch import unwatched

Say = Callable[[str], None]


def run_arms(
    base: FederationConfig,
    site_files: Mapping[str, Path],
    arms: Sequence[Arm],
    folder: Path,
    stop: threading.Event,
    say: Say,
    jobs: int = 1,
) -> None:
    """Train every arm that has not finished yet; each leaves its held-out predictions under ``folder/<arm>``.

    Processes share nothing: each reads the cohorts it needs. A stop ends them; what has finished stays.
    """
    left = [arm for arm in arms if not finished(folder / arm.name, arm.config(base, folder))]
    if not left:
        return
    shares = _shares(left, max(1, min(jobs, len(left))))
    names = ", ".join(arm.name for arm in left)
    say(f"Training {len(left)} models to compare with ({names}).")
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(base, dict(site_files), share, folder), daemon=True) for share in shares
    ]
    for worker in workers:
        worker.start()
    try:
        _wait(workers, left, base, folder, stop, say)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    failed = [worker for worker in workers if worker.exitcode not in (0, -signal.SIGTERM)]
    if failed and not stop.is_set():
        raise RuntimeError("a comparator's process failed; its traceback stands above")


def run_here(base: FederationConfig, site_files: Mapping[str, Path], arms: Sequence[Arm], folder: Path) -> None:
    """Train the arms in this process, on one thread."""
    torch.set_num_threads(1)
    sites = {site: load(path, SiteConfig) for site, path in site_files.items()}
    shelf = Shelf(sites, torch.device("cpu"))
    for arm in arms:
        config = arm.config(base, folder / arm.name)
        if not finished(folder / arm.name, config):
            run_arm(arm, base, shelf, folder / arm.name, unwatched(config), threading.Event())


def _work(base: FederationConfig, files: Mapping[str, Path], arms: Sequence[Arm], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
    run_here(base, files, arms, folder)


def end_with_parent() -> None:
    """A parent that is killed cannot end its processes; each watches for itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _shares(arms: Sequence[Arm], jobs: int) -> list[list[Arm]]:
    """Arms by process, the larger first, each to the process with the least to do so far."""
    shares: list[list[Arm]] = [[] for _ in range(jobs)]
    for arm in sorted(arms, key=lambda arm: -len(arm.sites)):
        min(shares, key=lambda share: sum(len(one.sites) + 1 for one in share)).append(arm)
    return shares


def _wait(
    workers: Sequence[multiprocessing.process.BaseProcess],
    arms: Sequence[Arm],
    base: FederationConfig,
    folder: Path,
    stop: threading.Event,
    say: Say,
) -> None:
    done: set[str] = set()
    while any(worker.is_alive() for worker in workers) and not stop.wait(0.5):
        for arm in arms:
            if arm.name not in done and finished(folder / arm.name, arm.config(base, folder)):
                done.add(arm.name)
                with contextlib.suppress(OSError):
                    say(f"{len(done)} of {len(arms)} comparison models done ({arm.name}).")
