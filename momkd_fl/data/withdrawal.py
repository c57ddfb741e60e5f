"""Patients who no longer take part: a list in the site's state folder that every reading of the cohort leaves out.

The list is append-only, one JSON line a patient, mode 0600, and the site's alone. It names the slides too, so that
``momkd ingest`` does not take them up again. A line without its end is a withdrawal that was cut off while it was
written; its command has not said that it was done, and the next one takes its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Final

from momkd_fl.config.site import SiteConfig
from momkd_fl.data.store import INDEX, read_index, rewrite
from momkd_fl.errors import UserError

FILE: Final = "withdrawn.jsonl"


@dataclass(frozen=True)
class Withdrawal:
    """One patient who no longer takes part; ``slides`` are the feature files that were the patient's."""

    patient: str
    day: str
    reason: str
    slides: tuple[str, ...] = ()


def withdrawn_file(site: SiteConfig) -> Path:
    """Where a site's list is."""
    return site.state_dir / FILE


def read_withdrawn(path: Path) -> dict[str, Withdrawal]:
    """Withdrawals by patient; none where there is no list.

    Raises
    ------
    UserError
        ``withdrawals-unreadable``: nothing is computed from a cohort whose withdrawals are not known.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        raw = [json.loads(line) for line in lines]
        return {one["patient"]: Withdrawal(**{**one, "slides": tuple(one["slides"])}) for one in raw}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            "withdrawals-unreadable",
            f"{path}: the list of withdrawn patients cannot be read, so that no patient's data is used. Put the newest "
            "copy of the file back.",
        ) from None


def withdraw(path: Path, patient: str, reason: str, slides: Iterable[Path], day: date) -> bool:
    """Add a patient to the list, durably; False where it is there already."""
    if patient in read_withdrawn(path):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    line = asdict(Withdrawal(patient, day.isoformat(), reason, tuple(sorted(map(str, slides)))))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        whole = path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(descriptor, whole)
        view = memoryview(json.dumps(line).encode() + b"\n")
        while view:
            written = os.pwrite(descriptor, view, whole)
            view, whole = view[written:], whole + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _sync_folder(path.parent)
    return True


def drop_from_store(folder: Path, slides: Collection[str]) -> int:
    """Take slides out of an ingested store, index first, and delete their shards; how many there were."""
    if not (folder / INDEX).exists():
        return 0
    entries = read_index(folder)
    gone = [entries.pop(source) for source in slides if source in entries]
    if gone:
        rewrite(folder, entries)
        for entry in gone:
            (folder / entry.shard).unlink(missing_ok=True)
    return len(gone)


def without_withdrawn(bags: Mapping[str, Path], path: Path) -> dict[str, Path]:
    """Feature files by slide, less those of patients on the list at ``path``."""
    gone = {slide for one in read_withdrawn(path).values() for slide in one.slides}
    return {name: bag for name, bag in bags.items() if str(bag) not in gone}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
