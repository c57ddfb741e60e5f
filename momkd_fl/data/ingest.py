"""``momkd ingest``: a site's feature files, whatever wrote them, as one store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from momkd_fl.data.bags import Format, read_bag, read_header
from momkd_fl.data.store import INDEX, Store, append, is_fresh, read_index, rewrite, write_shard
from momkd_fl.errors import UserError

Progress = Callable[[str, int, int], None]
_SPARE = 1.1


@dataclass
class Ingested:
    """What was done: slides written, slides that were there unchanged, slides whose source is gone, and mistakes."""

    written: int = 0
    unchanged: int = 0
    dropped: int = 0
    source_bytes: int = 0
    problems: list[UserError] = field(default_factory=list)


def ingest(
    bags: Mapping[str, Path],
    folder: Path,
    *,
    k: int,
    format: Format | None,
    progress: Progress,
    stopped: Callable[[], bool] = lambda: False,
) -> Ingested:
    """Bring the store up to date with the feature files; what has not changed since is left as it is.

    A slide counts once its line is in the index, and is durable then: whatever stops the process, at most the slide
    in work is lost. Slides that cannot be read are told at the end; the others are ingested.

    Raises
    ------
    UserError
        ``store-not-writable``, ``disk-full``.
    """
    done = Ingested()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _mend(folder)
        store = Store(folder)
        stale = [path for path in bags.values() if (entry := store.find(path)) is None or entry.k < k]
        done.unchanged = len(bags) - len(stale)
        done.dropped = _drop(folder, store, {str(path) for path in bags.values()})
        _check_room(folder, stale, k, format)
        for number, path in enumerate(stale, 1):
            if stopped():
                break
            try:
                append(folder, write_shard(folder, read_bag(path, format), k))
            except UserError as problem:
                done.problems.append(problem)
            else:
                done.written += 1
                done.source_bytes += path.stat().st_size
            progress("ingesting", number, len(stale))
    except OSError as reason:
        raise UserError(
            "store-not-writable",
            f"{folder}: the store cannot be written ({reason.strerror}). Free some space, or choose another folder.",
        ) from None
    return done


def verify(folder: Path, progress: Progress) -> list[str]:
    """Read every slide of the store again; a sentence for each that is not what was written, or is out of date."""
    store = Store(folder)
    wrong = []
    for number, entry in enumerate(store.entries.values(), 1):
        try:
            if store.digest(entry) != entry.digest:
                wrong.append(f"{entry.source}: its shard {entry.shard} is not what was written.")
            elif not is_fresh(entry, Path(entry.source)):
                wrong.append(f"{entry.source}: has changed or gone since it was ingested.")
        except UserError as problem:
            wrong.append(problem.sentence)
        progress("verifying", number, len(store.entries))
    return wrong


def _mend(folder: Path) -> None:
    """Cut a line that a crash left unfinished, and begin an index where there is none."""
    path = folder / INDEX
    if not path.exists():
        path.touch()
        return
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        os.truncate(path, whole)


def _drop(folder: Path, store: Store, sources: set[str]) -> int:
    """Forget slides whose files are no longer the site's, and remove shards that no slide has."""
    gone = [source for source in store.entries if source not in sources]
    if gone or len((folder / INDEX).read_bytes().splitlines()) > len(store.entries):
        rewrite(folder, {source: entry for source, entry in store.entries.items() if source not in gone})
    kept = {entry.shard for entry in read_index(folder).values()}
    for path in folder.glob("*.bin*"):
        if path.name not in kept:
            path.unlink()
    return len(gone)


def _check_room(folder: Path, stale: list[Path], k: int, format: Format | None) -> None:
    needed = 0
    for path in stale:
        try:
            header = read_header(path, format)
        except UserError:
            continue  # told when its turn comes
        needed += header.patches * (header.dim * (2 if header.dtype == "float16" else 4) + 4 * (k + 1) + 8) + 65536
    free = shutil.disk_usage(folder).free
    if needed * _SPARE > free:
        raise UserError(
            "disk-full",
            f"{folder}: the store needs about {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free. "
            "Free some space, or choose another folder.",
        )
