"""Neighbour attention for the CPU, compiled: one pass over the rows, nothing of size (N, k + 1, D) ever exists.

The equations are those of :func:`momkd_fl.model.neighbours.neighbour_attention_plain`. Work is split over threads by
rows where rows are written, and by columns where neighbours' rows are, so that no two threads write one number and
the result does not depend on the number of threads, but for the sums over rows that form the gradient of ``attention``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]

# Inner loops run from 0 and add an offset: from any other start the compiler does not vectorise them.
_FLUSH_ROWS = 64
_COLUMNS = 64
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}  # not "nnan": a NaN must stay one, so that divergence is seen


def forward(source: Array, target: Array, attention: Array, index: Array, slope: float) -> tuple[Array, Array]:
    """Mixed rows (N, H * E) and attention weights (N, H, k + 1).

    Parameters
    ----------
    source, target : (N, H * E), C order, float32 or float64
    attention : (H, E), the same type
    index : (N, k + 1) int64, -1 where there is no neighbour; column 0 is never -1
    """
    heads = len(attention)
    out, weights = np.empty_like(target), np.empty((len(index), heads, index.shape[1]), source.dtype)
    kernel, flat, slope_ = _compiled("mix"), attention.ravel(), source.dtype.type(slope)
    _in_parts(len(index), lambda a, b: kernel(source, target, flat, index, slope_, heads, out, weights, a, b))
    return out, weights


def backward(
    source: Array, target: Array, attention: Array, index: Array, slope: float, weights: Array, grad: Array
) -> tuple[Array, Array, Array]:
    """Gradients of ``source``, ``target`` and ``attention`` from that of the result (N, H * E)."""
    heads, flat, slope_ = len(attention), attention.ravel(), source.dtype.type(slope)
    grad_target, grad_scores = np.empty_like(target), np.empty_like(weights)
    grad_source, parts = np.zeros_like(source), []
    by_row, by_column = _compiled("rows_backward"), _compiled("columns_backward")

    def rows(start: int, stop: int) -> None:
        part = np.zeros(len(flat), np.float64)
        by_row(source, target, flat, index, slope_, weights, grad, grad_target, grad_scores, part, heads, start, stop)
        parts.append(part)

    _in_parts(len(index), rows)
    _in_parts(
        source.shape[1],
        lambda a, b: by_column(
            source, target, flat, index, slope_, weights, grad, grad_scores, grad_source, heads, a, b
        ),
        unit=_COLUMNS,
    )
    return grad_source, grad_target, np.sum(parts, axis=0).astype(source.dtype).reshape(attention.shape)


def _in_parts(total: int, work: Callable[[int, int], None], unit: int = 1) -> None:
    """``work(start, stop)`` over equal parts of ``range(total)``, one for each of torch's threads."""
    units = -(-total // unit)
    threads = min(torch.get_num_threads(), units)
    edges = [min(total, unit * (units * part // threads)) for part in range(threads + 1)] if threads else []
    if threads > 1:
        list(_pool(threads).map(lambda edge: work(*edge), pairwise(edges)))
    elif threads:
        work(0, total)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="neighbours")


@cache
def _compiled(name: str) -> Callable[..., None]:
    """The kernel as machine code: kept on disk where this account may, else compiled once in each process."""
    import numba

    options: dict[str, Any] = {"fastmath": _FASTMATH, "nogil": True, "boundscheck": False, "error_model": "numpy"}
    plain = globals()[f"_{name}"]
    try:
        compiled: Callable[..., None] = numba.njit(cache=True, **options)(plain)
        return compiled
    except RuntimeError:  # no place for the cache
        compiled = numba.njit(**options)(plain)
        return compiled


def _mix(
    source: Array, target: Array, attention: Array, index: Array, slope: Any, heads: int,
    out: Array, weights: Array, start: int, stop: int,
) -> None:  # fmt: skip
    columns, width = index.shape[1], source.shape[1] // heads
    zero = source.dtype.type(0)
    for i in range(start, stop):
        for h in range(heads):
            o = h * width
            top = source.dtype.type(-np.inf)
            for k in range(columns):
                j = index[i, k]
                if j >= 0:
                    score = zero
                    for e in range(width):
                        v = source[j, o + e] + target[i, o + e]
                        score += (v if v > zero else slope * v) * attention[o + e]
                    weights[i, h, k] = score
                    top = max(top, score)
            total = zero
            for k in range(columns):
                weights[i, h, k] = np.exp(weights[i, h, k] - top) if index[i, k] >= 0 else zero
                total += weights[i, h, k]
            for e in range(width):
                out[i, o + e] = zero
            for k in range(columns):
                j = index[i, k]
                weights[i, h, k] /= total
                if j >= 0:
                    w = weights[i, h, k]
                    for e in range(width):
                        out[i, o + e] += w * source[j, o + e]


def _rows_backward(
    source: Array, target: Array, attention: Array, index: Array, slope: Any, weights: Array, grad: Array,
    grad_target: Array, grad_scores: Array, grad_attention: Array, heads: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Everything that belongs to a row itself: gradients of its scores and its target, and its part of attention's."""
    columns, dim = index.shape[1], source.shape[1]
    width = dim // heads
    zero, one = source.dtype.type(0), source.dtype.type(1)
    part = np.zeros(dim, source.dtype)
    for i in range(start, stop):
        for h in range(heads):
            o = h * width
            mean = zero
            for k in range(columns):
                j = index[i, k]
                along = zero
                if j >= 0:
                    for e in range(width):
                        along += source[j, o + e] * grad[i, o + e]
                grad_scores[i, h, k] = along
                mean += weights[i, h, k] * along
            for e in range(width):
                grad_target[i, o + e] = zero
            for k in range(columns):
                j = index[i, k]
                # softmax: dL/ds = w (dL/dw - sum_j w_j dL/dw_j)
                s = weights[i, h, k] * (grad_scores[i, h, k] - mean)
                grad_scores[i, h, k] = s
                if j >= 0:
                    for e in range(width):
                        v = source[j, o + e] + target[i, o + e]
                        down = one if v > zero else slope
                        part[o + e] += s * down * v
                        grad_target[i, o + e] += s * down * attention[o + e]
        if (i - start) % _FLUSH_ROWS == _FLUSH_ROWS - 1 or i == stop - 1:
            for e in range(dim):  # many rows: short sums in the arrays' precision, long ones in float64
                grad_attention[e] += part[e]
                part[e] = zero


def _columns_backward(
    source: Array, target: Array, attention: Array, index: Array, slope: Any, weights: Array, grad: Array,
    grad_scores: Array, grad_source: Array, heads: int, start: int, stop: int,
) -> None:  # fmt: skip
    """The gradient of the neighbours' rows, for the columns from ``start`` to ``stop``."""
    columns, width = index.shape[1], source.shape[1] // heads
    zero, one = source.dtype.type(0), source.dtype.type(1)
    for h in range(heads):
        first, last = max(start, h * width), min(stop, (h + 1) * width)
        if first >= last:
            continue
        along = attention[first:last]
        for i in range(len(index)):
            own, upper = target[i, first:last], grad[i, first:last]
            for k in range(columns):
                j = index[i, k]
                if j >= 0:
                    s, w = grad_scores[i, h, k], weights[i, h, k]
                    there, found = source[j, first:last], grad_source[j, first:last]
                    for e in range(last - first):
                        down = one if there[e] + own[e] > zero else slope
                        found[e] += s * down * along[e] + w * upper[e]
