"""``momkd report``: page, model card, JSON and CSV of a finished run, written again from its ``results.json``."""

from __future__ import annotations

from pathlib import Path

from momkd_fl.cli.frame import OK
from momkd_fl.errors import UserError
from momkd_fl.evaluation.report import write_report
from momkd_fl.evaluation.results_file import read_results, write_results


def run_report(run: Path, out: Path | None) -> int:
    """Write ``report.html``, ``model_card.md``, ``results.json`` and ``results.csv`` into ``out``.

    ``run`` is a run's folder or a ``results.json``; ``out`` None: beside it.

    Raises
    ------
    UserError
        ``report-no-results``, ``report-unwritable``, or as :func:`~momkd_fl.evaluation.results_file.read_results`.
    """
    source = _results_file(run)
    results = read_results(source)
    folder = source.parent if out is None else out
    try:
        write_results(results, folder)
        page, _ = write_report(results, {}, folder / "report.html")
    except OSError as error:
        raise UserError(
            "report-unwritable",
            f"{folder}: cannot be written to ({error.strerror}). Give another folder with --out.",
        ) from None
    print(f"Report: {page}")
    return OK


def _results_file(run: Path) -> Path:
    if not run.is_dir():
        return run
    if (run / "results.json").is_file():
        return run / "results.json"
    below = sorted(run.glob("*/results.json"))
    hint = f"Did you mean {below[0].parent}?" if below else "A run writes it when it ends: resume the run first."
    raise UserError("report-no-results", f"{run}: this folder has no results.json. {hint}")
