"""Peak memory of a piece of work, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def over_imports(run: Callable[[], object], **more: float) -> None:
    """Run the work in this process, and print the memory of the whole process at its peak and over what it had before.

    For the parent's :func:`peak_of`; ``more`` is printed along.
    """
    before = _megabytes("VmRSS")
    CLEAR.write_text("5")  # the high-water mark starts again (proc(5))
    run()
    peak = _megabytes("VmHWM")
    print(json.dumps({"peak_mb": round(peak, 1), "over_mb": round(peak - before, 1), **more}))


def peak_of(module: str, *arguments: str) -> dict[str, float]:
    """What ``python -m module arguments``, which ends in :func:`over_imports`, measured."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _megabytes(name: str) -> float:
    for line in STATUS.read_text("utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"{STATUS} has no {name}")
