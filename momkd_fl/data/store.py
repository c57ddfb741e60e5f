"""The ingested store: every slide as one raw shard, its sections page-aligned, with an index beside them.

A shard holds, in this order and each from a page's start: features (N, D) as the source stores them (float16 or
float32), coordinates (N, 2) float32, neighbours (N, k + 1) int32 and the moments (2, D) float64, mean and variance of
the features. Patches are in spatial order (Morton's curve), so that a patch's neighbours lie near it in memory.
``index.jsonl`` has one line a slide; the last line of a slide counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from momkd_fl.data.bags import Bag, BagHeader, Format
from momkd_fl.data.graph import neighbours
from momkd_fl.data.header import Unit, slide_id
from momkd_fl.data.standardise import Moments, slide_moments
from momkd_fl.errors import UserError

INDEX = "index.jsonl"
VERSION = 1
PAGE_BYTES = 4096
TILE_BYTES = 1 << 20
"""Features read at once: they are still in the second-level cache when they are widened."""
_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Entry:
    """One slide of the store.

    Attributes
    ----------
    source, size_bytes, mtime_ns : the file it was made from, and how that file was then
    shard : file name within the store
    k : neighbours of each patch
    digest : BLAKE2b of the whole shard
    """

    source: str
    size_bytes: int
    mtime_ns: int
    shard: str
    patches: int
    dim: int
    dtype: str
    k: int
    digest: str
    format: str
    encoder: str | None
    patch_um: float | None
    unit: str | None
    version: int = VERSION

    @property
    def sections(self) -> dict[str, tuple[int, tuple[int, int], str]]:
        """Place (bytes), shape and number format of each section; ``end`` closes the shard."""
        place, found = 0, {}
        for name, shape, dtype in (
            ("features", (self.patches, self.dim), self.dtype),
            ("coords", (self.patches, 2), "float32"),
            ("neighbours", (self.patches, self.k + 1), "int32"),
            ("moments", (2, self.dim), "float64"),
            ("end", (0, 0), "uint8"),
        ):
            found[name] = (place, shape, dtype)
            place += -(-shape[0] * shape[1] * np.dtype(dtype).itemsize // PAGE_BYTES) * PAGE_BYTES
        return found

    @property
    def shard_bytes(self) -> int:
        """Length of the shard."""
        return self.sections["end"][0]

    def header(self) -> BagHeader:
        """What the source said about itself when it was ingested."""
        path = Path(self.source)
        return BagHeader(
            path=path,
            slide=slide_id(path),
            format=cast(Format, self.format),
            patches=self.patches,
            dim=self.dim,
            encoder=self.encoder,
            patch_um=self.patch_um,
            unit=cast(Unit | None, self.unit),
            dtype=self.dtype,
        )


class Store:
    """A store opened for reading.

    Raises
    ------
    UserError
        ``store-missing``: the folder has no index. ``store-damaged``: a line of it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = read_index(folder)

    def find(self, source: Path) -> Entry | None:
        """The slide made from ``source``, if the file is as it was then and the shard is whole; else None."""
        entry = self.entries.get(str(source))
        if entry is None or not is_fresh(entry, source):
            return None
        try:
            whole = (self.folder / entry.shard).stat().st_size == entry.shard_bytes
        except OSError:
            whole = False
        return entry if whole else None

    def features(self, entry: Entry) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        """Features as stored, tile after tile: rows and their values (n, D), valid until the next is asked for.

        The pages are not kept in the system's cache.
        """
        row_bytes = entry.dim * np.dtype(entry.dtype).itemsize
        rows = max(1, TILE_BYTES // row_bytes)
        buffer = np.empty(rows * row_bytes, np.uint8)
        with _opened(self.folder / entry.shard) as file:
            for start in range(0, entry.patches, rows):
                part = buffer[: min(rows, entry.patches - start) * row_bytes]
                _fill(file, part, start * row_bytes)
                yield slice(start, start + len(part) // row_bytes), part.view(entry.dtype).reshape(-1, entry.dim)
            os.posix_fadvise(file.fileno(), 0, entry.patches * row_bytes, os.POSIX_FADV_DONTNEED)

    def graph(self, entry: Entry) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Coordinates (P, 2) and neighbours (P, k + 1), in the order of the features."""
        start, stop = entry.sections["coords"][0], entry.sections["moments"][0]
        raw = self._read(entry, start, stop - start)
        return _section(entry, raw, "coords", start), _section(entry, raw, "neighbours", start)

    def moments(self, entry: Entry) -> Moments:
        """Mean and variance (D,) of a slide's features."""
        place = entry.sections["moments"][0]
        both = _section(entry, self._read(entry, place, entry.shard_bytes - place), "moments", place)
        return both[0], both[1]

    def digest(self, entry: Entry) -> str:
        """BLAKE2b of the shard as it is now.

        Raises
        ------
        UserError
            As :meth:`read`.
        """
        return hashlib.blake2b(self._read(entry, 0, entry.shard_bytes).data).hexdigest()

    def _read(self, entry: Entry, place: int, length: int) -> npt.NDArray[np.uint8]:
        raw = np.empty(length, np.uint8)
        with _opened(self.folder / entry.shard) as file:
            _fill(file, raw, place)
            os.posix_fadvise(file.fileno(), place, length, os.POSIX_FADV_DONTNEED)
        return raw


def is_fresh(entry: Entry, source: Path) -> bool:
    """Whether the source is there with the size and time it had."""
    try:
        status = source.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (entry.size_bytes, entry.mtime_ns)


def read_index(folder: Path) -> dict[str, Entry]:
    """Entries by source; a last line that was cut off by a crash is left out, its slide is ingested again."""
    path = folder / INDEX
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        raise UserError(
            "store-missing",
            f"{folder}: there is no ingested store. Run 'momkd ingest' first, or remove data.store.",
        ) from None
    known = {field.name for field in fields(Entry)}
    found: dict[str, Entry] = {}
    for number, line in enumerate(lines[:-1], 1):
        try:
            raw = json.loads(line)
            if set(raw) != known or raw["version"] != VERSION or "/" in raw["shard"] or raw["dtype"] not in _DTYPES:
                raise ValueError
            found[raw["source"]] = Entry(**raw)
        except (ValueError, TypeError):
            raise UserError(
                "store-damaged",
                f"{path}, line {number}: cannot be read by this version. Remove the folder and run 'momkd ingest'.",
            ) from None
    return found


def write_shard(folder: Path, bag: Bag, k: int) -> Entry:
    """Write one slide's shard, durable before it has its name, and describe it; the index is the caller's."""
    source = bag.header.path
    status = source.stat()
    order = morton_order(bag.coords)
    coords = bag.coords[order]
    dtype = bag.header.dtype if bag.header.dtype in _DTYPES else "float32"
    values = {
        "features": bag.features[order].astype(dtype, copy=False),
        "coords": coords,
        "neighbours": neighbours(coords, k),
        "moments": np.stack(slide_moments(bag.features)),
    }
    name = hashlib.blake2b(str(source).encode(), digest_size=16).hexdigest() + ".bin"
    header = bag.header
    entry = Entry(
        str(source), status.st_size, status.st_mtime_ns, name, header.patches, header.dim, dtype, k, "",
        header.format, header.encoder, header.patch_um, header.unit,
    )  # fmt: skip
    digest = hashlib.blake2b()
    fresh = folder / f"{name}.new"
    with fresh.open("wb") as file:
        for section, array in values.items():
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            padding = bytes(-len(raw) % PAGE_BYTES)
            assert file.tell() == entry.sections[section][0]
            for part in (raw.data, padding):
                file.write(part)
                digest.update(part)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    fresh.replace(folder / name)
    return Entry(**{**asdict(entry), "digest": digest.hexdigest()})


def append(folder: Path, entry: Entry) -> None:
    """Add a line to the index, durably."""
    with (folder / INDEX).open("ab") as file:
        file.write(json.dumps(asdict(entry)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def rewrite(folder: Path, entries: dict[str, Entry]) -> None:
    """Replace the index by these entries, whole or not at all."""
    fresh = folder / f"{INDEX}.new"
    with fresh.open("wb") as file:
        file.writelines(json.dumps(asdict(entry)).encode() + b"\n" for entry in entries.values())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / INDEX)


def morton_order(coords: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Rows along Morton's curve over the slide's extent, 2^16 steps an axis; equal places in the order of rows."""
    low = coords.min(axis=0)
    extent = max(float((coords.max(axis=0) - low).max()), 1e-30)
    steps = ((coords - low) * (65535.0 / extent)).astype(np.uint64)
    code = np.zeros(len(coords), np.uint64)
    for axis in range(2):
        bits = steps[:, axis]
        for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
            bits = (bits | (bits << np.uint64(shift))) & np.uint64(mask)
        code |= bits << np.uint64(axis)
    return np.argsort(code, kind="stable")


@contextmanager
def _opened(path: Path) -> Iterator[FileIO]:
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as reason:
        raise _damaged(path, reason.strerror or "unreadable") from None


def _fill(file: FileIO, out: npt.NDArray[np.uint8], place: int) -> None:
    view, got = out.data, 0
    while got < len(out) and (part := os.preadv(file.fileno(), [view[got:]], place + got)):
        got += part
    if got < len(out):
        raise _damaged(Path(str(file.name)), "too short")


def _section(entry: Entry, raw: npt.NDArray[np.uint8], name: str, start: int = 0) -> npt.NDArray[Any]:
    place, shape, dtype = entry.sections[name]
    length = shape[0] * shape[1] * np.dtype(dtype).itemsize
    return raw[place - start : place - start + length].view(dtype).reshape(shape)


def _damaged(path: Path, why: str) -> UserError:
    return UserError("store-damaged", f"{path}: the ingested slide is damaged ({why}). Run 'momkd ingest' again.")
