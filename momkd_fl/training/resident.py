"""Bags on the device: how they get there, and which stay."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from momkd_fl.data.cache import BagCache

RESIDENT_SHARE = 0.6
"""Share of the device's free memory that bags may take; the rest is for the student and its step."""
_BUFFERS = 3
_TILE_VALUES = 1 << 15
"""Values converted at once: torch leaves so few to the calling thread, and the trainer keeps its cores."""


@dataclass(frozen=True)
class ResidentBag:
    """A patient's features (P, D) on the device in the step's precision, and neighbours (P, k + 1) on the host."""

    features: Tensor
    neighbours: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.features.nbytes


DeviceCache = BagCache[ResidentBag]


def device_cache(device: torch.device) -> DeviceCache | None:
    """Room for bags on a GPU, by what is free on it now; None on the CPU, whose bags the cohort keeps."""
    if device.type != "cuda":
        return None
    return BagCache(int(RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]))


def fill(out: Tensor, arrays: Sequence[NDArray[np.float32]]) -> None:
    """Write arrays (P, D) float32 end to end into ``out`` (N, D) on the CPU, in its precision, in one pass."""
    if out.dtype == torch.float32:
        np.concatenate(arrays, out=out.numpy())
        return
    rows, start = max(1, _TILE_VALUES // out.shape[1]), 0
    for array in arrays:
        for first in range(0, len(array), rows):
            tile = torch.from_numpy(array[first : first + rows])
            out[start : start + len(tile)].copy_(tile)
            start += len(tile)


class Buffers:
    """Memory for features that is written again and again, since fresh pages cost more than copying into old ones.

    Idle memory of more than ``keep_bytes`` in one piece is let go.
    """

    def __init__(self, keep_bytes: int, *, pinned: bool) -> None:
        self.keep_bytes, self.pinned = keep_bytes, pinned
        self._idle: list[Tensor] = []

    def take(self, rows: int, dim: int, dtype: torch.dtype) -> Tensor:
        """(rows, dim), whatever it holds; its memory is the taker's until :meth:`give_back`."""
        nbytes = rows * dim * dtype.itemsize
        whole = self._idle.pop() if self._idle else None
        if whole is None or whole.nbytes < nbytes:
            whole = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self.pinned)
        return whole[:nbytes].view(dtype).view(rows, dim)

    def give_back(self, taken: Tensor) -> None:
        """Let the memory of a tensor of :meth:`take` be used again."""
        storage = taken.untyped_storage()
        if storage.nbytes() <= self.keep_bytes:
            self._idle.append(torch.empty(0, dtype=torch.uint8).set_(storage))


class Upload:
    """Copies bags to a device through page-locked buffers; a buffer is written again after its copy has arrived.

    To be used on one stream, in one thread.
    """

    def __init__(self, device: torch.device, keep_bytes: int) -> None:
        self.device = device
        self._buffers = Buffers(keep_bytes, pinned=device.type == "cuda" and torch.cuda.is_available())
        self._under_way: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def __call__(self, features: NDArray[np.float32], dtype: torch.dtype) -> Tensor:
        """Features (P, D) on the device in ``dtype``; the copy may still be under way on the stream."""
        if len(self._under_way) == _BUFFERS:
            buffer, arrived = self._under_way.popleft()
            if arrived is not None:
                arrived.synchronize()
            self._buffers.give_back(buffer)
        buffer = self._buffers.take(len(features), features.shape[1], dtype)
        fill(buffer, [features])
        there = torch.empty(features.shape, dtype=dtype, device=self.device).copy_(buffer, non_blocking=True)
        event = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        self._under_way.append((buffer, event))
        return there
