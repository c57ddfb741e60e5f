"""Text attributes of variable length, read in a process of their own.

HDF5 keeps such text in a heap, and a damaged heap makes HDF5 itself crash or loop for ever (found by mutating files;
``tests/data/test_fuzz.py``). No check from outside can tell, so another process reads it: one child for the life of
this process, started when it is first needed, given a few seconds for each question, and replaced when it dies.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py

TIMEOUT_S = 5
MEMORY_BYTES = 2 * 1024**3
_MAX_TEXT = 4096


class HeapDamaged(OSError):  # noqa: N818 - one of the ways in which HDF5 fails on a file
    """The reader crashed or did not answer: the file is damaged."""


class _Child:
    """The reading process, from this side."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, path: Path, place: str, name: str) -> str | None:
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps([str(path), place, name]).encode() + b"\n")
                process.stdin.flush()
                with selectors.DefaultSelector() as ready:
                    ready.register(process.stdout, selectors.EVENT_READ)
                    line = process.stdout.readline() if ready.select(2 * TIMEOUT_S) else b""
            except BrokenPipeError:
                line = b""
            if not line.endswith(b"\n"):
                process.kill()
                process.communicate()
                self._process = None
                raise HeapDamaged
            answer: str | None = json.loads(line)
            return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "momkd_fl.data.attributes"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the parent; the child ends when its input does
            )
        return self._process


_child = _Child()


def read_text(found: h5py.Dataset | h5py.File, name: str) -> str | None:
    """The text of an attribute; None where it is longer than a name can be, or no text.

    Raises
    ------
    HeapDamaged
        The file cannot be read safely.
    """
    return _child.ask(Path(found.file.filename), found.name, name)


def _serve() -> None:
    """Answer one question a line; SIGALRM ends the process in the middle of HDF5 if need be."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        path, place, name = json.loads(line)
        signal.alarm(TIMEOUT_S)
        try:
            with h5py.File(path, "r", locking=False) as file:
                value = file[place].attrs[name]
        except Exception:  # a mistake of the file's, that HDF5 has noticed itself
            value = None
        signal.alarm(0)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        text = value.strip() if isinstance(value, str) and len(value) <= _MAX_TEXT else None
        sys.stdout.write(json.dumps(text) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
