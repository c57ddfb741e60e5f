"""``momkd study``: a grid of methods, tasks, splits and seeds, in process, that goes on where it stopped."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from momkd_fl.cli.frame import FAILED, OK
from momkd_fl.config.base import load
from momkd_fl.config.study import StudyPlan
from momkd_fl.errors import UserError
from momkd_fl.federation.study_cells import Cell, Hospitals, cells_of
from momkd_fl.federation.study_cohorts import hospitals_of, site_digests, site_files, subgroup, write_data
from momkd_fl.federation.study_files import write_study
from momkd_fl.federation.study_queue import alone, clock, estimate_of, run_cells
from momkd_fl.federation.study_results import StudyResults, results_of
from momkd_fl.federation.study_work import is_finished, read_failure


@dataclass(frozen=True)
class Study:
    """A plan with its hospitals and its cells; equal cells of several methods stand once in ``distinct``."""

    plan: StudyPlan
    hospitals: Hospitals
    cells: Sequence[Cell]

    @property
    def distinct(self) -> list[Cell]:
        """Cells to compute."""
        return list({cell.key: cell for cell in reversed(self.cells)}.values())[::-1]


def open_study(path: Path) -> Study:
    """Read a plan and lay out its grid."""
    plan = load(path, StudyPlan)
    hospitals = hospitals_of(plan, path)
    return Study(plan, hospitals, cells_of(plan, hospitals, path, site_digests(plan)))


def run_study(path: Path, out: Path, stop: threading.Event, *, jobs: int | None, only: str | None, status: bool) -> int:
    """Run what has not finished and write the results; with ``status`` only say how far it is."""
    study = open_study(path)
    plan = study.plan
    chosen = [cell for cell in study.distinct if only is None or only in cell.label]
    if not chosen:
        raise UserError(
            "study-nothing-chosen", f"No cell of {path} has '{only}' in its name, as PR/federated/... does."
        )
    left = [cell for cell in chosen if not is_finished(out, cell)]
    processes = jobs or plan.jobs
    estimate = estimate_of(study.distinct, out, plan.seconds_per_cell)
    expected_s = estimate.of(left)
    _say(
        f"Study {plan.name}: {len(chosen)} cells, {len(chosen) - len(left)} finished. {len(left)} x "
        f"{expected_s / max(len(left), 1):.1f} s / {processes} processes = {clock(expected_s / processes)}."
    )
    if status:
        _report_failures(left, out)
        return OK
    failed = []
    with alone(out):
        if left:
            write_data(plan, left, out, _say)
            work = [(cell, site_files(plan, cell, out)) for cell in left]
            failed = run_cells(work, out, processes, estimate, stop, _say)
        if stop.is_set():
            _say("Stopped; the same command goes on from here.")
            return OK
        page = write_study(study_results(study, out), out)
    print(page.read_text("utf-8"))
    print(f"Results: {page}")
    if failed:
        _say(f"{len(failed)} cells failed; the same command tries them again.")
        _report_failures(left, out)
    return FAILED if failed else OK


def study_results(study: Study, out: Path) -> StudyResults:
    """What the finished cells give."""
    plan = study.plan
    inside = {}
    for task in plan.tasks:
        files = [site_files(plan, cell, out) for cell in study.cells if cell.task == task]
        found = next((subgroup(plan, task, one) for one in files if one), None)
        if found is not None:
            inside[task] = found
    return results_of(plan, study.cells, out, inside, study.hospitals.without_genomics)


def _report_failures(cells: Sequence[Cell], out: Path) -> None:
    for cell in cells:
        failure = read_failure(out, cell)
        if failure is not None:
            _say(f"{cell.label} failed when it was last tried: {failure.sentence} [{failure.code}]")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
