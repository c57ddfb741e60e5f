"""Numbers of secure sums by run, on disk before anybody hears of them: no number is ever used twice.

A site keeps the last one that it took part in, the coordinator the last one that it began.
"""

from __future__ import annotations

import json
from pathlib import Path

from momkd_fl.errors import UserError
from momkd_fl.training.checkpoint import write_durably

SITE_FILE = "sums.json"
RUNS_MAX = 1000


class SumNumbers:
    """The last number of each run, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def last(self, run: str) -> int:
        """The last number of ``run``; -1: none.

        Raises
        ------
        UserError
            ``sum-numbers-unreadable``.
        """
        return self._read().get(run, -1)

    def store(self, run: str, number: int) -> None:
        """Durable when it returns (write, fsync, rename); only the newest runs are kept."""
        numbers = self._read()
        numbers.pop(run, None)
        kept = dict(list({**numbers, run: number}.items())[-RUNS_MAX:])
        write_durably(self._path, json.dumps(kept, indent=1).encode())

    def _read(self) -> dict[str, int]:
        try:
            raw = json.loads(self._path.read_bytes())
            if not (isinstance(raw, dict) and all(type(number) is int for number in raw.values())):
                raise ValueError
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            raise UserError(
                "sum-numbers-unreadable",
                f"{self._path}: the numbers of the secure sums so far cannot be read, so no sum is begun: a number "
                "used twice could lay a site bare. Put the file back, or start a new run and remove it.",
            ) from None
        return {str(run): number for run, number in raw.items()}
