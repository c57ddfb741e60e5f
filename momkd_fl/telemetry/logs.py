"""A JSON-lines log whose fields, and the values they may take, are allow-listed.

One line an event: ``{"time": "2026-01-31T09:30:00.123Z", "level": "info", "event": "round_finished",
"site": "north", "round": 3, "seconds": 1.2}``. There is no field for free text: no sentence, path,
exception text, patient id or count of patients has a place to go.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final

from momkd_fl.errors import UserError
from momkd_fl.telemetry.vocabulary import (
    CONNECTION_STATES,
    CREDENTIALS,
    DEVICES,
    LEVELS,
    OUTCOMES,
    PHASES,
    SITE_STATES,
    must_be,
)

Value = bool | int | float | str | None

_EVENT = re.compile(r"[a-z][a-z0-9_]{0,47}")
_CODE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+){0,7}")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_VERSION = re.compile(r"\d{1,4}(\.\d{1,4}){1,3}")

_Check = Callable[[object], bool]


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _word(words: tuple[str, ...]) -> _Check:
    return lambda value: isinstance(value, str) and value in words


def _shape(pattern: re.Pattern[str]) -> _Check:
    return lambda value: isinstance(value, str) and len(value) <= 64 and pattern.fullmatch(value) is not None


FIELDS: Final[dict[str, _Check]] = {
    "round": _count,
    "rounds": _count,
    "attempt": _count,
    "phase": _word(PHASES),
    "state": _word((*SITE_STATES, *CONNECTION_STATES)),
    "outcome": _word(OUTCOMES),
    "code": _shape(_CODE),
    "seconds": _number,
    "waited_s": _number,
    "bytes": _count,
    "bytes_sent": _count,
    "bytes_received": _count,
    "rss_mb": _number,
    "port": _count,
    "device": _word(DEVICES),
    "resumed": _flag,
    "digest": _shape(_DIGEST),
    "version": _shape(_VERSION),
    "credential": _word(CREDENTIALS),
    "days_left": _number,
    "fields_dropped": _count,
}
"""Fields of every log, each with the check of its value."""

COORDINATOR_FIELDS: Final[dict[str, _Check]] = {
    "sites_expected": _count,
    "sites_online": _count,
    "replies": _count,
    "quorum": _count,
    "auroc": _number,
    "loss": _number,
    "slot_movement": _number,
    "effective_slots": _number,
    "effective_patches": _number,
}
"""Further fields of the coordinator's log: figures over all sites. A site's own AUROC may betray
how few of its patients are positive, so a site's log has no such field."""


class JsonLog:
    """An append-only log of events.

    Parameters
    ----------
    path : Path or None
        File to append to; its folder is made. None: nothing is written, but fields are still checked.
    site : str
        The name that stands in each line, of the site or of the coordinator.
    sites : iterable of str
        At the coordinator: the sites that a line may be about. Empty at a site.
    strict : bool, optional
        True: an event with a field or value that is not allowed raises ValueError. False: the field
        is dropped and counted in ``fields_dropped``. Default: the environment variable MOMKD_LOG_STRICT.

    Raises
    ------
    UserError
        ``log-not-writable``.
    """

    def __init__(self, path: Path | None, site: str, *, sites: Iterable[str] = (), strict: bool | None = None) -> None:
        self.site = site
        self.fields_dropped = 0
        self.lines_lost = 0
        self._strict = os.environ.get("MOMKD_LOG_STRICT") == "1" if strict is None else strict
        names = tuple(sites)
        about: dict[str, _Check] = {"site": _word((site, *names))}
        self._checks = {**FIELDS, **about, **(COORDINATOR_FIELDS if names else {})}
        self._file: int | None = None if path is None else _open(path)

    def event(self, event: str, *, level: str = "info", **fields: Value) -> None:
        """Append one line; fields that are None are left out.

        Parameters
        ----------
        event : str
            Its name, lower_snake_case.
        level : str
            ``info``, ``warning`` or ``error``.
        fields
            Those of :data:`FIELDS`, at the coordinator also :data:`COORDINATOR_FIELDS` and ``site``.
        """
        if _EVENT.fullmatch(event) is None:
            raise ValueError("an event's name is a short lower_snake_case word")
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Value] = {"time": now, "level": must_be(level, LEVELS, "level"), "event": event}
        line["site"] = self.site
        for name, value in fields.items():
            if value is None:
                continue
            check = self._checks.get(name)
            if check is None or not check(value):
                self._refuse(name, known=check is not None)
            else:
                line[name] = value
        self._append(line)

    def close(self) -> None:
        """Close the file; if fields were dropped, the last line says how many."""
        if self.fields_dropped:
            self.event("log_closed", level="warning", fields_dropped=self.fields_dropped)
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> JsonLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse(self, name: str, *, known: bool) -> None:
        if self._strict:
            # The name stands in the source; the value may be private, so it is not repeated.
            raise ValueError(f"log field '{name}' {'has a value that is not allowed' if known else 'is not allowed'}")
        self.fields_dropped += 1

    def _append(self, line: dict[str, Value]) -> None:
        if self._file is None:
            return
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            # One write to a descriptor opened for appending: lines of threads and processes never mix.
            whole = os.write(self._file, data) == len(data)
        except OSError:
            whole = False  # a full disk must not end a training run
        self.lines_lost += not whole


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as reason:
        raise UserError(
            "log-not-writable",
            f"{path}: the log cannot be opened for writing ({reason.strerror}). Change telemetry.log or the rights.",
        ) from None
