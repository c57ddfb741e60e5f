"""The demo's second half: the models a federation is compared with, and the page that shows both."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from momkd_fl.config.base import load
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.evaluation.comparison import Models, Scores
from momkd_fl.evaluation.results import Method
from momkd_fl.evaluation.results_file import read_results
from momkd_fl.federation import state as states
from momkd_fl.federation.arms import run_arms
from momkd_fl.federation.comparators import (
    Shelf,
    collect,
    comparator_arms,
    finished,
    local_sites,
    random_memory_scores,
    read_predictions,
)
from momkd_fl.federation.outcome import compared, with_data_digest, write_outcome

JOBS = 2


def compare_and_report(
    *,
    federation: Path,
    site_files: Mapping[str, Path],
    states_dir: Path,
    comparators: Path,
    out: Path,
    stop: threading.Event,
    say: Callable[[str], None],
    peak_rss_mb: Callable[[], float],
    started: float,
    phases: dict[str, float],
) -> Path | None:
    """Train the comparators on the same patients, pair them with the sites' own predictions, write the results.

    Returns the page's path; None when it was stopped.
    """
    config = load(federation, FederationConfig)
    tested = [site for site, member in config.members.items() if member.role == "evaluate"]
    began = time.monotonic()
    _random_memory(config, site_files, comparators, tested)
    run_arms(config, site_files, comparator_arms(config), comparators, stop, say, JOBS)
    if stop.is_set():
        return None
    parts = [read_predictions(states_dir / site / "predictions_test.csv", site) for site in tested]
    scores: dict[Method, Models] = {"federated": Scores.join(parts), **collect(comparators, config)}
    seen = read_results(config.output_dir / "results.json")
    seconds = dataclasses.replace(
        seen.seconds,
        install=_install_seconds(),
        run=time.monotonic() - started,
        phases={**phases, "comparators": time.monotonic() - began},
    )
    found = dataclasses.replace(seen, origin="synthetic", seconds=seconds, peak_rss_mb=peak_rss_mb())
    found = with_data_digest(found, states_dir)
    return write_outcome(compared(found, config, scores, local_sites(comparators, config)), out)


def _random_memory(
    config: FederationConfig, site_files: Mapping[str, Path], comparators: Path, tested: list[str]
) -> None:
    folder = comparators / "random_memory"
    if finished(folder, config):
        return
    torch.set_num_threads(1)
    shelf = Shelf({site: load(site_files[site], SiteConfig) for site in tested}, torch.device("cpu"))
    state = states.load(config.output_dir / "checkpoint.safetensors")
    random_memory_scores(config, state, shelf, folder, tested)


def _install_seconds() -> float | None:
    """What ``make setup`` measured, where this environment was set up by it."""
    try:
        return float((Path(sys.prefix) / "install_seconds").read_text("utf-8"))
    except (OSError, ValueError):
        return None
