"""Every value of every feature file looked at once, remembered until the file changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from momkd_fl.config.site import SiteConfig
from momkd_fl.data.bags import BagHeader, read_bag
from momkd_fl.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done and how many there are."""

_MEMORY = "checked.json"
_SAVE_EVERY = 50
_SAMPLE_BYTES = 65536


def scan_values(headers: Sequence[BagHeader], site: SiteConfig, progress: Progress) -> tuple[list[UserError], int]:
    """Read each file whole unless it was read before and has the same size and time.

    What was found good is kept in ``state_dir/checked.json``; it is saved while reading, so that a stopped scan
    goes on where it was.

    Returns
    -------
    the mistakes found, and how many files were read now
    """
    path = site.state_dir / _MEMORY
    known = _load(path)
    problems: list[UserError] = []
    stale = [header for header in headers if known.get(str(header.path)) != _state(header.path)]
    for number, header in enumerate(stale, 1):
        progress("reading values", number, len(stale))
        try:
            read_bag(header.path, site.data.format)
        except UserError as problem:
            problems.append(problem)
        else:
            known[str(header.path)] = _state(header.path)
        if number % _SAVE_EVERY == 0 or number == len(stale):
            _save(path, known)
    return problems, len(stale)


def duplicates(paths: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Pairs of files with the same bytes: of one size, then of one start and end, then of one hash."""
    groups = _grouped(paths, lambda path: path.stat().st_size)
    for look in (_ends, _hash):
        groups = [part for group in groups for part in _grouped(group, look)]
    for group in groups:
        yield from ((group[0], other) for other in group[1:])


def _grouped(paths: Sequence[Path], key: Callable[[Path], Any]) -> list[list[Path]]:
    found: defaultdict[Any, list[Path]] = defaultdict(list)
    for path in paths:
        found[key(path)].append(path)
    return [group for group in found.values() if len(group) > 1]


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(_SAMPLE_BYTES)
        file.seek(-min(_SAMPLE_BYTES, path.stat().st_size), os.SEEK_END)
        return hashlib.blake2b(start + file.read()).digest()


def _hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _load(path: Path) -> dict[str, list[int]]:
    """What is remembered; a damaged memory is no mistake of anybody, the files are read again."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _save(path: Path, known: dict[str, list[int]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(known), encoding="utf-8")
        fresh.replace(path)
    except OSError as reason:
        raise UserError(
            "state-not-writable",
            f"{path}: what was checked cannot be kept ({reason.strerror}). Give this account a state_dir it may write.",
        ) from None
