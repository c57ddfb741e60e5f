"""Rows of patches on the CPU: tiles for products, threads for compiled passes, dropout, and the online softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from momkd_fl.training import compiled

TILE_ROWS = 2048
"""Rows of a product: its operands stay near the second-level cache, and no bag is ever cast as a whole."""

Array = NDArray[Any]
Kernel = Callable[..., None]


def array(tensor: Tensor) -> Array:
    """The tensor's memory as NumPy sees it; bfloat16, which NumPy lacks, as uint16."""
    plain = tensor.detach()
    return (plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy()


def tiles(rows: int) -> Iterator[slice]:
    """Slices of at most ``TILE_ROWS`` rows, nearly equal."""
    parts = max(1, -(-rows // TILE_ROWS))
    edges = [rows * part // parts for part in range(parts + 1)]
    return (slice(start, stop) for start, stop in pairwise(edges))


def by_rows(rows: int, kernel: Kernel, *arguments: Any) -> None:
    """``kernel(*arguments, start, stop)`` over equal parts of the rows, one for each of torch's threads."""
    edges = _parts(rows)
    if len(edges) == 1:
        kernel(*arguments, *edges[0])
    elif edges:
        list(_threads(len(edges)).map(lambda edge: kernel(*arguments, *edge), edges))


def by_rows_summed(shape: tuple[int, ...], rows: int, kernel: Kernel, *arguments: Any) -> Array:
    """``kernel(*arguments, sums, start, stop)`` likewise, each thread with sums of its own: their total, float64."""
    edges = _parts(rows)
    sums = np.zeros((len(edges), *shape), np.float64)
    parts = list(zip(sums, edges, strict=True))
    if len(parts) == 1:
        kernel(*arguments, parts[0][0], *parts[0][1])
    elif parts:
        list(_threads(len(parts)).map(lambda part: kernel(*arguments, part[0], *part[1]), parts))
    total: Array = sums.sum(axis=0)
    return total


def _parts(rows: int) -> list[tuple[int, int]]:
    threads = min(torch.get_num_threads(), rows)
    return list(pairwise(rows * part // threads for part in range(threads + 1))) if threads else []


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="rows")


@dataclass(frozen=True)
class Dropout:
    """Dropout by a hash of place and seed: computed again in the backward pass, never kept.

    ``threshold`` is the probability in units of 2^-32; 0 drops nothing.
    """

    seed: np.uint32
    threshold: np.uint32
    scale: np.float32

    @classmethod
    def draw(cls, probability: float, training: bool) -> Dropout:
        """A dropout of its own, seeded by torch's generator as torch's dropout is."""
        if not training or probability == 0.0:
            return cls(np.uint32(0), np.uint32(0), np.float32(1))
        seed = torch.randint(2**32, (1,), dtype=torch.int64).numpy()[0]
        return cls(np.uint32(seed), np.uint32(min(probability * 2**32, 2**32 - 1)), np.float32(1 / (1 - probability)))

    def mask(self, rows: int, columns: int) -> Tensor:
        """What values (N, D) are multiplied with."""
        out = np.empty((rows, columns), np.float32)
        compiled.dropout_mask(self.seed, self.threshold, self.scale, out)
        return torch.from_numpy(out)


class OnlineSoftmax:
    """Softmax-weighted sums over each bag, tile after tile, without the values that went by.

    Parameters
    ----------
    patients, attentions, dim : B, A and D of the pooled values (B, A, D)
    """

    def __init__(self, patients: int, attentions: int, dim: int) -> None:
        self.top = np.full((patients, attentions), -np.inf, np.float32)
        self.total = np.zeros((patients, attentions), np.float32)
        self.pooled = np.zeros((patients, attentions, dim), np.float32)

    def add(self, values: Array, scores: Array, bag: Array) -> None:
        """Rows (n, D) with scores (n, A) of the bags ``bag`` (n,), ascending."""
        here = slice(int(bag[0]), int(bag[-1]) + 1)
        top = self.top[here].copy()
        np.maximum.at(top, bag - here.start, scores)
        shrink = np.exp(self.top[here] - top)
        weights = np.exp(scores - top[bag - here.start])
        self.top[here] = top
        self.total[here] *= shrink
        np.add.at(self.total, bag, weights)
        self.pooled[here] *= shrink[..., None]
        shape = (here.stop - here.start, *self.pooled.shape[1:])
        self.pooled[here] += by_rows_summed(shape, len(bag), compiled.pool, values, weights, bag - here.start)

    def close(self, scores: Array, bag: Array) -> tuple[Array, Array]:
        """Attention (N, A) of all rows' scores, and the pooled values (B, A, D)."""
        attention = np.exp(scores - self.top[bag]) / self.total[bag]
        return attention, self.pooled / self.total[..., None]
