"""One cell of a study: trained, and left as a folder that is there whole or not at all.

``OUT/cells/<key>/`` holds ``record.json`` and ``predictions/<site>.csv`` of every held-out site, the selected model's
predictions for validation patients under ``validation/``, and those with a random memory under ``random_memory/``.
Where no weights are shared, ``students/<trained>/`` holds the predictions of each site's own student, and those under
``predictions`` are of the one that is the median at that hospital.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from momkd_fl import __version__
from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.evaluation.comparison import Scores
from momkd_fl.evaluation.metrics import ScoreHistogram, auroc
from momkd_fl.federation.comparators import (
    POOLED,
    Arm,
    predictions_path,
    random_memory_scores,
    read_predictions,
    run_arm,
)
from momkd_fl.federation.coordinator import Outcome
from momkd_fl.federation.outcome import checkpoint_digest, code_digest
from momkd_fl.federation.students_elsewhere import score_students
from momkd_fl.federation.study_cells import Cell
from momkd_fl.federation.study_cohorts import CellShelf, Library
from momkd_fl.federation.study_privacy import privacy_record
from momkd_fl.federation.watch import unwatched
from momkd_fl.training.checkpoint import write_durably

_LINES_KEPT = 12


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a cell has no result."""

    code: str
    sentence: str


def cell_folder(out: Path, cell: Cell) -> Path:
    """Where a finished cell lies."""
    return out / "cells" / cell.key


def failure_path(out: Path, cell: Cell) -> Path:
    """Where a cell that failed says why."""
    return out / "failed" / f"{cell.key}.json"


def is_finished(out: Path, cell: Cell) -> bool:
    """Whether the cell's results are there."""
    return (cell_folder(out, cell) / "record.json").exists()


def read_record(out: Path, cell: Cell) -> dict[str, Any]:
    """What a finished cell says of itself."""
    found: dict[str, Any] = json.loads((cell_folder(out, cell) / "record.json").read_text("utf-8"))
    return found


def read_failure(out: Path, cell: Cell) -> Failure | None:
    """Why a cell failed when it was last tried; None where it did not."""
    path = failure_path(out, cell)
    if not path.exists():
        return None
    raw = json.loads(path.read_text("utf-8"))
    return Failure(raw["code"], raw["sentence"])


def cell_scores(out: Path, cell: Cell, *, random_memory: bool = False) -> dict[str, Scores]:
    """Predictions of a finished cell by held-out site."""
    folder = cell_folder(out, cell) / ("random_memory" if random_memory else "predictions")
    return {site: read_predictions(folder / f"{site}.csv", site) for site in cell.tested}


def validation_scores(out: Path, cell: Cell, site: str) -> Scores:
    """The selected model's predictions for a training site's validation patients."""
    return read_predictions(cell_folder(out, cell) / "validation" / f"{site}.csv", site)


def run_cell(cell: Cell, files: Mapping[str, Path], library: Library, out: Path) -> Failure | None:
    """Train a cell and keep its results; a failure is noted beside them and returned."""
    work = out / "work" / str(os.getpid())
    shutil.rmtree(work, ignore_errors=True)
    try:
        _train(cell, library.shelf(cell, files), work, cell_folder(out, cell))
    except UserError as mistake:
        return keep_failure(out, cell, Failure(mistake.code, mistake.sentence))
    except Exception as problem:  # one cell's bug must not cost the others
        failure = Failure(f"bug-{type(problem).__name__}", str(problem))
        return keep_failure(out, cell, failure, traceback.format_exc())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    failure_path(out, cell).unlink(missing_ok=True)
    return None


def keep_failure(out: Path, cell: Cell, failure: Failure, trace: str = "") -> Failure:
    """Note why a cell has no result; returns it."""
    said = {"cell": cell.label, **dataclasses.asdict(failure), "trace": trace}
    write_durably(failure_path(out, cell), json.dumps(said, indent=1).encode())
    return failure


def _train(cell: Cell, shelf: CellShelf, work: Path, kept: Path) -> None:
    started = time.monotonic()
    config = cell.config(work / "run")
    arm = cell.arm
    outcome = _run(arm, config, shelf, work / "run")
    done = work / "done"
    charged = {site: tuple(shelf.participants[site].charged) for site in outcome.state.members if site in cell.trained}
    if config.privacy.share == "memory" and not cell.method.pooled:
        _score_students(cell, config, outcome, shelf, work)
    _keep(predictions_path(work / "run", "*"), done / "predictions")
    _keep(predictions_path(work / "run", "*").with_name("predictions_validation.csv"), done / "validation")
    missing = [site for site in cell.tested if not (done / "predictions" / f"{site}.csv").exists()]
    if missing:
        codes = dict(outcome.failures)
        why = ", ".join(f"{site} ({codes.get(site, 'no answer')})" for site in missing)
        raise UserError("study-cell-unscored", f"{cell.label}: no predictions of {why}.")
    if cell.method.random_memory:
        random_memory_scores(config, outcome.state, shelf, work / "random", list(cell.tested))
        _keep(predictions_path(work / "random", "*"), done / "random_memory")
    record = _record(cell, outcome, time.monotonic() - started)
    if config.privacy.active and not cell.method.pooled:
        record["privacy"] = privacy_record(config, outcome, charged)
    (done / "record.json").write_text(json.dumps(record, indent=1), "utf-8")
    _sync(done)
    kept.parent.mkdir(parents=True, exist_ok=True)
    if not kept.exists():  # two methods may come to the same cell
        done.rename(kept)


def _run(arm: Arm, config: FederationConfig, shelf: CellShelf, folder: Path) -> Outcome:
    """Train an arm; what the coordinator said last stands behind a mistake's sentence."""
    said = io.StringIO()
    try:
        outcome = run_arm(arm, config, shelf, folder, unwatched(config, said), threading.Event())
    except UserError as mistake:
        lines = " ".join(said.getvalue().splitlines()[-_LINES_KEPT:])
        raise UserError(mistake.code, f"{mistake.sentence} Before that: {lines}") from mistake
    assert outcome is not None  # nobody stops it
    return outcome


def _score_students(cell: Cell, config: FederationConfig, outcome: Outcome, shelf: CellShelf, work: Path) -> None:
    """Every training site's student at the held-out sites; the median one's predictions stand for the cell.

    The median is by AUROC at that hospital (of an even number the lower one), as ``momkd simulate`` reports it.
    """
    base = work / "students"
    score_students(config, outcome.state, shelf, work / "run", base, list(cell.tested))
    for site in cell.tested:
        ranked = []
        for trained in cell.trained:
            path = predictions_path(base / f"own-{trained}", site)
            scores = read_predictions(path, site)
            ranked.append((auroc(scores.labels, scores.probabilities, class_minimum=1) or 0.0, trained, path))
            kept = work / "done" / "students" / trained / f"{site}.csv"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, kept)
        median = sorted(ranked)[(len(ranked) - 1) // 2]
        chosen = predictions_path(work / "run", site)
        chosen.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(median[2], chosen)


def _keep(pattern: Path, folder: Path) -> None:
    """Move ``.../sites/<site>/<file>`` to ``folder/<site>.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    sites = pattern.parent.parent
    for path in sorted(sites.glob(f"*/{pattern.name}")):
        path.rename(folder / f"{path.parent.name}.csv")


def _sync(folder: Path) -> None:
    """Everything under the folder is on the disk before its name is: a power cut leaves no half cell."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _record(cell: Cell, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """What the run was: seconds, what was chosen, and how the memory lived."""
    history, best = outcome.state.history, outcome.chosen.best
    last = history[-1]
    return {
        "cell": cell.label,
        "key": cell.key,
        "task": cell.task,
        "method": cell.method.name,
        "seed": cell.seed,
        "trained": [POOLED] if cell.method.pooled else list(cell.trained),
        "tested": list(cell.tested),
        "software": __version__,
        "code": code_digest(),
        "seconds": round(seconds, 3),
        "digest": checkpoint_digest(outcome),
        "rounds": len(history),
        "chosen_round": best.round,
        "validation_auroc": ScoreHistogram.from_arrays(best.scores).auroc(minimum=1) if best.scores else None,
        "validation_auroc_by_round": [_rounded(one.auroc) for one in history],
        "memory": {
            "slot_movement_rad": _rounded_all([one.slot_movement_rad for one in history]),
            "effective_slots": _rounded(last.effective_slots),
            "slot_cosine": _rounded(last.slot_cosine),
            "moved_share": _rounded(last.moved_share),
            "effective_patches": _rounded(last.effective_patches),
        },
        "losses": {name: _rounded(value) for name, value in last.losses.items()},
        "failures": [list(one) for one in outcome.failures],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 5)


def _rounded_all(values: Sequence[float]) -> list[float | None]:
    return [_rounded(value) for value in values]
