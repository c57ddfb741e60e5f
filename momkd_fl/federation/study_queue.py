"""The cells of a study over a few processes: one queue, so that all are busy to the end."""

from __future__ import annotations

import fcntl
import multiprocessing
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from momkd_fl.errors import UserError
from momkd_fl.federation.arms import end_with_parent
from momkd_fl.federation.study_cells import Cell
from momkd_fl.federation.study_cohorts import Library
from momkd_fl.federation.study_work import Failure, is_finished, keep_failure, read_record, run_cell

Job = tuple[Cell, Mapping[str, Path]]
Say = Callable[[str], None]
WORKER_ENDED = "worker-ended"
_POLL_S = 0.25


@dataclass
class _Worker:
    """A process and the cell it is at."""

    process: BaseProcess
    line: Connection
    job: Job | None = None
    data_key: str = ""


@dataclass
class Estimate:
    """Expected seconds of cells, from those that have finished: one mean a method, for a local model is quick."""

    given_s: float
    _seconds: dict[str, list[float]] = field(default_factory=dict)

    def learn(self, cell: Cell, seconds: float) -> None:
        """A cell took so long."""
        self._seconds.setdefault(cell.method.name, []).append(seconds)

    def of(self, cells: Sequence[Cell]) -> float:
        """Seconds of these cells one after another."""
        known = {name: sum(values) / len(values) for name, values in self._seconds.items()}
        usual = sum(known.values()) / len(known) if known else self.given_s
        return sum(known.get(cell.method.name, usual) for cell in cells)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the study's folder; what killed processes left half done is removed (UserError ``study-running``)."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                "study-running",
                f"{out}: another study is writing here. Wait for it, or give another folder with --out.",
            ) from None
        shutil.rmtree(out / "work", ignore_errors=True)
        yield


def estimate_of(cells: Sequence[Cell], out: Path, given_s: float) -> Estimate:
    """The estimate that finished cells give."""
    estimate = Estimate(given_s)
    for cell in cells:
        if is_finished(out, cell):
            estimate.learn(cell, read_record(out, cell)["seconds"])
    return estimate


def run_cells(
    jobs: Sequence[Job], out: Path, processes: int, estimate: Estimate, stop: threading.Event, say: Say
) -> list[tuple[Cell, Failure]]:
    """Run every job; returns the cells that failed. A stop ends the processes, at the cost of the cell each is at."""
    queue, failed, total, started = list(jobs), list[tuple[Cell, Failure]](), len(jobs), time.monotonic()
    context = multiprocessing.get_context("spawn")
    workers = [_start(context, out) for _ in range(min(processes, total))]
    finished = 0
    try:
        while any(worker.job or queue for worker in workers) and not stop.is_set():
            for worker in workers:
                if worker.job is None and queue:
                    _hand(worker, queue, workers)
            for worker in _ready(workers):
                seconds, failure = _outcome(worker)
                assert worker.job is not None
                cell = worker.job[0]
                worker.job, finished = None, finished + 1
                if failure is None:
                    estimate.learn(cell, seconds)
                    what = f"{seconds:.1f} s"
                else:
                    failed.append((cell, failure))
                    what = f"failed: {failure.sentence} [{failure.code}]"
                    if failure.code == WORKER_ENDED:
                        keep_failure(out, cell, failure)
                        workers[workers.index(worker)] = _start(context, out)
                left = estimate.of([*(job[0] for job in queue), *(one.job[0] for one in workers if one.job)])
                elapsed = time.monotonic() - started
                say(
                    f"[{finished}/{total}] {cell.label}: {what}; {clock(elapsed)} gone, {clock(left / processes)} to go"
                )
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.process.join()
    return failed


def clock(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _start(context: multiprocessing.context.SpawnContext, out: Path) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, out), daemon=True)
    process.start()
    theirs.close()  # so that a process that ends is seen as the end of its line
    return _Worker(process, ours)


def _hand(worker: _Worker, queue: list[Job], workers: Sequence[_Worker]) -> None:
    """Give a worker its next cell: of the data it holds, else of data that nobody holds, else the first."""
    held = {one.data_key for one in workers if one is not worker and one.job}
    mine = [n for n, job in enumerate(queue) if job[0].data_key == worker.data_key]
    free = [n for n, job in enumerate(queue) if job[0].data_key not in held]
    worker.job = queue.pop((mine or free or [0])[0])
    worker.data_key = worker.job[0].data_key
    worker.line.send(worker.job)


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    busy = {worker.line: worker for worker in workers if worker.job}
    return [busy[line] for line in wait(list(busy), _POLL_S) if isinstance(line, Connection)]


def _outcome(worker: _Worker) -> tuple[float, Failure | None]:
    try:
        seconds, failure = worker.line.recv()
    except (EOFError, OSError):
        worker.process.join()
        why = f"its process ended with status {worker.process.exitcode}; the machine may lack memory"
        return 0.0, Failure(WORKER_ENDED, f"{why}. Run the study again, with fewer --jobs if it recurs.")
    return seconds, failure


def _work(line: Connection, out: Path) -> None:
    """A process's life: cells come, results go, cohorts stay."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
    torch.set_num_threads(1)
    library = Library()
    while True:
        try:
            cell, files = line.recv()
        except EOFError:
            return
        started = time.monotonic()
        failure = run_cell(cell, files, library, out)
        line.send((time.monotonic() - started, failure))
