"""``momkd simulate``: a federation on data at hand, in one process, with what it is to be compared with."""

from __future__ import annotations

import resource
import shutil
import threading
import time
from pathlib import Path

from momkd_fl.config.federation import FederationConfig
from momkd_fl.evaluation.comparison import Models
from momkd_fl.evaluation.results import Method
from momkd_fl.federation.arms import run_arms
from momkd_fl.federation.comparators import (
    Arm,
    Shelf,
    arm_scores,
    collect,
    comparator_arms,
    local_sites,
    predictions_path,
    random_memory_scores,
)
from momkd_fl.federation.coordinator import Outcome
from momkd_fl.federation.outcome import Circumstances, compared, results_of, with_data_digest, write_outcome
from momkd_fl.federation.simulate import member_sites, simulate
from momkd_fl.federation.site_data import device_of
from momkd_fl.federation.students_elsewhere import score_students
from momkd_fl.federation.watch import open_watch


def run_simulation(
    config: FederationConfig, stop: threading.Event, *, comparators: bool, fresh: bool, plain: bool | None, jobs: int
) -> Path | None:
    """Simulate, compare, report; returns the page's path, or None when it was stopped."""
    started = time.monotonic()
    sites = member_sites(config)
    tested = [site for site, member in config.members.items() if member.role == "evaluate"]
    trainers = tuple(site for site, member in config.members.items() if member.role == "train")
    shelf = Shelf(sites, device_of(next(iter(sites.values()))))
    arm = Arm("federated", "federated", trainers)
    folder = config.output_dir
    base = folder / "comparators"
    if fresh:
        shutil.rmtree(base, ignore_errors=True)  # what an earlier configuration left must not be compared with
    watch = open_watch(config, plain=plain)
    with watch.progress, watch.log, watch.metrics:
        participants = {name: shelf.participant(name, arm, m.role, folder) for name, m in config.members.items()}
        outcome = simulate(config, participants, watch, stop, fresh=fresh)
    if outcome is None:
        return None
    seconds = {"federated": time.monotonic() - started}
    own = config.privacy.share == "memory"
    if own and tested:
        score_students(config, outcome.state, shelf, folder, base, tested)
    if comparators and tested:
        if not own:
            random_memory_scores(config, outcome.state, shelf, base / "random_memory", tested)
        files = {name: member.config for name, member in config.members.items() if member.config is not None}
        began = time.monotonic()
        run_arms(config, files, comparator_arms(config), base, stop, watch.progress.say, jobs)
        seconds["comparators"] = time.monotonic() - began
        if stop.is_set():
            return None
    return report(config, outcome, folder, base, tested, time.monotonic() - started, seconds)


def report(
    config: FederationConfig,
    outcome: Outcome,
    folder: Path,
    base: Path,
    tested: list[str],
    run_seconds: float,
    phases: dict[str, float],
) -> Path:
    """Results and page of a run whose predictions lie in ``folder`` and whose comparators' in ``base``."""
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results = results_of(config, outcome, Circumstances("simulation", run_seconds, peak_mb, phases=phases))
    results = with_data_digest(results, folder / "sites")
    federated: Models | None = None
    if config.privacy.share == "memory" and tested:
        trainers = [site for site, member in config.members.items() if member.role == "train"]
        federated = [arm_scores(base / f"own-{site}", tested) for site in trainers]
    elif tested and all(predictions_path(folder, site).exists() for site in tested):
        federated = arm_scores(folder, tested)
    if federated is not None:
        scores: dict[Method, Models] = {"federated": federated, **collect(base, config)}
        results = compared(results, config, scores, local_sites(base, config))
    return write_outcome(results, folder)
