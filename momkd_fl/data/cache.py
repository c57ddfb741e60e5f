"""Bags kept in memory between epochs, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PatientBag:
    """All slides of one patient as one bag.

    Attributes
    ----------
    features : ndarray (P, D), float32
        Standardised. Shared with the cache: not to be written to.
    neighbours : ndarray (P, k + 1), int32
        See :func:`momkd_fl.data.graph.neighbours`; no edge crosses slides.
    """

    features: npt.NDArray[np.float32]
    neighbours: npt.NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.features.nbytes + self.neighbours.nbytes


class Sized(Protocol):
    """Anything that says how many bytes it holds."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


B = TypeVar("B", bound=Sized)


class BagCache(Generic[B]):
    """Least recently used bags go first; a bag larger than the whole cache is never kept."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._bags: OrderedDict[Hashable, B] = OrderedDict()
        self._lock = threading.Lock()  # a loader may read ahead in another thread

    def get(self, key: Hashable) -> B | None:
        """The bag, now the most recently used, or None."""
        with self._lock:
            if key in self._bags:
                self._bags.move_to_end(key)
            return self._bags.get(key)

    def put(self, key: Hashable, bag: B) -> None:
        """Keep a bag, at the cost of those not used for longest."""
        with self._lock:
            if key in self._bags or bag.nbytes > self.capacity_bytes:
                return
            self._bags[key] = bag
            self.used_bytes += bag.nbytes
            while self.used_bytes > self.capacity_bytes:
                self.used_bytes -= self._bags.popitem(last=False)[1].nbytes
