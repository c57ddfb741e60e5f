"""Values of an HDF5 dataset straight from the file, where they lie there as they are in memory.

TRIDENT writes one chunk a row. Through HDF5 every chunk is a lookup in a B-tree and a copy; here the chunks' places are
asked for once, joined into runs and read by ``preadv`` into the result. What is compressed, transposed, incomplete or
odd in any other way goes through HDF5.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

_KEPT = 4096
_IOV_MAX = 1024
_GAP_BYTES = 16384
"""Bytes between two runs that are read over rather than sought past: B-tree nodes lie between the chunks."""

Runs = npt.NDArray[np.int64]
"""(n, 3): place in the file, place in the result, length; bytes."""

_runs: OrderedDict[tuple[str, int, int, str], Runs] = OrderedDict()
_lock = threading.Lock()


def read_dataset(path: Path, dataset: h5py.Dataset) -> npt.NDArray[Any]:
    """All values, in the dataset's own number format and shape.

    The caller has refused links, external storage and sizes above its cap (:mod:`momkd_fl.data.hdf5`); places that a
    file gives for its chunks are checked here against the file's size.
    """
    status = path.stat()
    key = (str(path), status.st_mtime_ns, status.st_size, dataset.name)
    with _lock:
        runs = _runs.get(key)
    if runs is None:
        runs = _find_runs(dataset, status.st_size)
        with _lock:
            _runs[key] = runs
            while len(_runs) > _KEPT:
                _runs.popitem(last=False)
    if not len(runs):
        return np.asarray(dataset[()])
    values = np.empty(dataset.shape, dataset.dtype)
    return values if _read_runs(path, runs, values) else np.asarray(dataset[()])


def _find_runs(dataset: h5py.Dataset, file_bytes: int) -> Runs:
    """Where the values lie; empty where only HDF5 can tell."""
    none = np.zeros((0, 3), np.int64)
    plist = dataset.id.get_create_plist()
    plain = dataset.dtype.kind in "fiu" and dataset.dtype.isnative and not plist.get_nfilters()
    if not plain or not dataset.shape or 0 in dataset.shape or dataset.file.userblock_size:
        return none
    total = int(np.prod(dataset.shape, dtype=np.int64)) * dataset.dtype.itemsize
    if dataset.chunks is None:
        place = dataset.id.get_offset()
        if place is None or place + total > file_bytes:
            return none
        return np.array([[place, 0, total]], np.int64)
    if dataset.chunks[1:] != dataset.shape[1:]:
        return none
    found: list[tuple[int, int, int, int]] = []
    dataset.id.chunk_iter(
        lambda chunk: found.append((chunk.chunk_offset[0], chunk.byte_offset, chunk.size, chunk.filter_mask))
    )
    row_bytes, per_chunk = total // dataset.shape[0], dataset.chunks[0]
    if len(found) != -(-dataset.shape[0] // per_chunk):
        return none  # a chunk that was never written: HDF5 knows what stands there instead
    first, place, size, mask = np.array(sorted(found), np.int64).T
    wanted = np.arange(len(found), dtype=np.int64) * per_chunk
    length = np.minimum(per_chunk, dataset.shape[0] - wanted) * row_bytes
    if (
        (first != wanted).any()
        or mask.any()
        or (size < length).any()
        or (place < 0).any()
        or (place + length > file_bytes).any()
    ):
        return none
    begins = np.flatnonzero(np.concatenate([[True], place[1:] != place[:-1] + length[:-1]]))
    return np.stack([place[begins], wanted[begins] * row_bytes, np.add.reduceat(length, begins)], axis=1)


def _read_runs(path: Path, runs: Runs, values: npt.NDArray[Any]) -> bool:
    """Fill ``values``; False where the file ended early."""
    room = values.reshape(-1).view(np.uint8).data
    over = memoryview(bytearray(_GAP_BYTES))
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        buffers: list[memoryview] = []
        start = end = -1
        for place, to, length in runs.tolist():
            gap = place - end
            if buffers and (not 0 <= gap <= _GAP_BYTES or len(buffers) + 2 > _IOV_MAX):
                if not _fill(file, buffers, start):
                    return False
                buffers = []
            if not buffers:
                start = place
            elif gap:
                buffers.append(over[:gap])
            buffers.append(room[to : to + length])
            end = place + length
        return _fill(file, buffers, start)
    finally:
        os.close(file)


def _fill(file: int, buffers: list[memoryview], place: int) -> bool:
    """Read into all buffers, however few bytes a call returns."""
    left = buffers
    while left:
        got = os.preadv(file, left, place)
        if got == 0:
            return False
        place += got
        while left and got >= len(left[0]):
            got -= len(left[0])
            left = left[1:]
        if left and got:
            left = [left[0][got:], *left[1:]]
    return True
