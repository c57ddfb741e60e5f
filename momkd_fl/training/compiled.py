"""Inner loops of the CPU's fast paths, compiled: each row is read once, and what can be computed again is not kept.

Arrays of patches are (N, D) in C order, float32, or bfloat16 seen as uint16; sums are taken in float32. The equations
are those of the plain students in :mod:`momkd_fl.model`. Rows are split over threads so that no two write one number:
results do not depend on the number of threads, but for gradients that are sums over rows. Everything stands in one
file because the cache of compiled code watches the file of the kernel only.

Inner loops run from 0 and add an offset: from any other start the compiler does not vectorise them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

Array = NDArray[Any]

LAYER_NORM_EPS = np.float32(1e-5)
_FLUSH_ROWS = 64
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}  # not "nnan": a NaN must stay one, so that divergence is seen
_ROUNDING = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds a float32 to an integer


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Machine code kept on disk where this account may write, else compiled once in each process."""
    options: dict[str, Any] = {"fastmath": _FASTMATH, "nogil": True, "boundscheck": False, "error_model": "numpy"}
    try:
        kept: Callable[..., Any] = njit(cache=True, **options)(function)
    except RuntimeError:  # no place for the cache
        kept = njit(**options)(function)
    return kept


def _bitcast_to_float(context: Any, bits: Any) -> Any:
    return types.float32(types.uint32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


def _bitcast_to_bits(context: Any, value: Any) -> Any:
    return types.uint32(types.float32), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))


_as_float: Any = intrinsic(_bitcast_to_float)
_as_bits: Any = intrinsic(_bitcast_to_bits)


def _up(value: Any) -> Any:
    """bfloat16's bits, or a float32, as float32."""


@overload(_up)
def _up_typed(value: Any) -> Any:
    def widened(value: Any) -> Any:
        return _as_float(np.uint32(np.uint32(value) << np.uint32(16)))

    def as_it_is(value: Any) -> Any:
        return value

    return widened if value == types.uint16 else as_it_is


def _down(value: Any, like: Any) -> Any:
    """A float32 as ``like``'s type: rounded to the nearest bfloat16, or as it is."""


@overload(_down)
def _down_typed(value: Any, like: Any) -> Any:
    def rounded(value: Any, like: Any) -> Any:
        bits = _as_bits(value)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    def as_it_is(value: Any, like: Any) -> Any:
        return value

    return rounded if like == types.uint16 else as_it_is


@njit(fastmath={"contract"})  # reassociation would undo the rounding
def _exp(x: Any) -> Any:
    """exp in float32, error under 1e-7 of the value, in a form that vectorises (Cephes' polynomial)."""
    x = x if not (x < np.float32(-87.0)) else np.float32(-87.0)
    x = x if not (x > np.float32(88.0)) else np.float32(88.0)
    shifted = x * np.float32(1.4426950408889634) + _ROUNDING
    n = shifted - _ROUNDING
    r = x - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _as_float(np.uint32((_as_bits(shifted) + np.uint32(127)) << np.uint32(23)))


@njit
def _kept(index: Any, seed: Any, threshold: Any) -> Any:
    """Whether dropout keeps a number: a hash of its place, so that no mask is stored (Wellons' lowbias32)."""
    x = np.uint32(index ^ seed)
    x = np.uint32(x ^ (x >> np.uint32(16)))
    x = np.uint32(x * np.uint32(0x7FEB352D))
    x = np.uint32(x ^ (x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x846CA68B))
    x = np.uint32(x ^ (x >> np.uint32(16)))
    return x >= threshold


@compiled
def dropout_mask(seed: Any, threshold: Any, scale: Any, out: Array) -> None:
    """What dropout multiplies (N, D) numbers with: 0 or ``scale``."""
    for i in range(out.shape[0]):
        for e in range(out.shape[1]):
            keep = _kept(np.uint32(np.uint32(i * out.shape[1]) + np.uint32(e)), seed, threshold)
            out[i, e] = scale if keep else np.float32(0)


# ---- graph attention -------------------------------------------------------------------------------------------


@compiled
def mix(
    sources: Array, targets: Array, index: Array, slope: Any, attention: Array, bias: Array, gamma: Array, beta: Array,
    elu: bool, seed: Any, threshold: Any, scale: Any, base: Array, out: Array, weights: Array, stats: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """out = base + Drop(act(LayerNorm(GATv2's mixing + bias))) for rows from ``start``; act is ELU, or ReLU.

    Left halves of ``sources`` (M, 2 D) are heard by right halves of ``targets`` (n, 2 D). ``index`` (n, k + 1): rows
    of ``sources`` for each row, -1 where there is none; column 0 is never -1. Written beside: attention ``weights``
    (n, H, k + 1) and each row's mean and 1 / sd, ``stats`` (n, 2).
    """
    columns, dim = index.shape[1], len(attention)
    heads = weights.shape[1]
    width = dim // heads
    zero, one = np.float32(0), np.float32(1)
    near = np.empty((columns, dim), np.float32)
    own, row = np.empty(dim, np.float32), np.empty(dim, np.float32)
    for i in range(start, stop):
        for e in range(dim):
            own[e] = _up(targets[i, dim + e])
            row[e] = bias[e]
        for k in range(columns):
            j = index[i, k]
            if j >= 0:
                for e in range(dim):
                    near[k, e] = _up(sources[j, e])
        for h in range(heads):
            o = h * width
            top = np.float32(-np.inf)
            for k in range(columns):
                if index[i, k] >= 0:
                    score = zero
                    for e in range(width):
                        v = near[k, o + e] + own[o + e]
                        score += (v if v > zero else slope * v) * attention[o + e]
                    weights[i, h, k] = score
                    top = max(top, score)
            total = zero
            for k in range(columns):
                weights[i, h, k] = _exp(weights[i, h, k] - top) if index[i, k] >= 0 else zero
                total += weights[i, h, k]
            for k in range(columns):
                weights[i, h, k] /= total
                w = weights[i, h, k]
                if index[i, k] >= 0:
                    for e in range(width):
                        row[o + e] += w * near[k, o + e]
        mean, variance = zero, zero
        for e in range(dim):
            mean += row[e]
        mean /= np.float32(dim)
        for e in range(dim):
            variance += (row[e] - mean) * (row[e] - mean)
        inverse = one / np.sqrt(variance / np.float32(dim) + LAYER_NORM_EPS)
        stats[i, 0], stats[i, 1] = mean, inverse
        first = np.uint32(i * dim)
        for e in range(dim):
            u = (row[e] - mean) * inverse * gamma[e] + beta[e]
            if elu:
                u = u if u > zero else _exp(u) - one
            else:
                u = zero if u < zero else u  # this way round a NaN stays one
            if threshold > 0:
                u = u * scale if _kept(np.uint32(first + np.uint32(e)), seed, threshold) else zero
            row[e] = _up(base[i, e]) + u
        for e in range(dim):
            out[i, e] = _down(row[e], out[i, e])


@compiled
def mix_rows_backward(
    sources: Array, targets: Array, index: Array, slope: Any, attention: Array, bias: Array, gamma: Array, beta: Array,
    elu: bool, seed: Any, threshold: Any, scale: Any, weights: Array, stats: Array, grad: Array,
    grad_mixed: Array, grad_y: Array, grad_scores: Array, sums: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """What belongs to a row itself: gradients of its mixing, of its target (right half of ``grad_y``) and its scores.

    Added to ``sums`` (6, D) float64: gradients of attention, bias, gamma, beta, the targets' bias and the base's.
    """
    columns, dim = index.shape[1], len(attention)
    heads = weights.shape[1]
    width = dim // heads
    zero = np.float32(0)
    near, part = np.empty((columns, dim), np.float32), np.zeros((6, dim), np.float32)
    own, row, up = np.empty(dim, np.float32), np.empty(dim, np.float32), np.empty(dim, np.float32)
    to_target = np.empty(dim, np.float32)
    for i in range(start, stop):
        for e in range(dim):
            own[e] = _up(targets[i, dim + e])
            row[e] = bias[e]
            to_target[e] = zero
        for k in range(columns):
            j = index[i, k]
            if j >= 0:
                for e in range(dim):
                    near[k, e] = _up(sources[j, e])
                for h in range(heads):
                    o, w = h * width, weights[i, h, k]
                    for e in range(width):
                        row[o + e] += w * near[k, o + e]
        mean, inverse = stats[i, 0], stats[i, 1]
        first = np.uint32(i * dim)
        along, across = zero, zero
        for e in range(dim):
            row[e] = (row[e] - mean) * inverse
            u = row[e] * gamma[e] + beta[e]
            d = _up(grad[i, e])
            part[5, e] += d
            if threshold > 0:
                d = d * scale if _kept(np.uint32(first + np.uint32(e)), seed, threshold) else zero
            if elu:
                d = d if u > zero else d * _exp(u)
            else:
                d = d if u > zero else zero
            part[2, e] += d * row[e]
            part[3, e] += d
            up[e] = d * gamma[e]
            along += up[e]
            across += up[e] * row[e]
        along /= np.float32(dim)
        across /= np.float32(dim)
        for e in range(dim):
            up[e] = inverse * (up[e] - along - across * row[e])
            part[1, e] += up[e]
        for e in range(dim):
            grad_mixed[i, e] = _down(up[e], grad_mixed[i, e])
        for h in range(heads):
            o = h * width
            mean = zero
            for k in range(columns):
                dot = zero
                if index[i, k] >= 0:
                    for e in range(width):
                        dot += near[k, o + e] * up[o + e]
                grad_scores[i, h, k] = dot
                mean += weights[i, h, k] * dot
            for k in range(columns):
                # softmax: dL/ds = w (dL/dw - sum_j w_j dL/dw_j), centred with the same dots
                s = weights[i, h, k] * (grad_scores[i, h, k] - mean)
                grad_scores[i, h, k] = s
                if index[i, k] >= 0:
                    for e in range(width):
                        v = near[k, o + e] + own[o + e]
                        down = s if v > zero else s * slope
                        part[0, o + e] += down * v
                        to_target[o + e] += down * attention[o + e]
        for e in range(dim):
            part[4, e] += to_target[e]
            grad_y[i, dim + e] = _down(to_target[e], grad_y[i, dim + e])
        if (i - start) % _FLUSH_ROWS == _FLUSH_ROWS - 1 or i == stop - 1:
            for q in range(len(part)):  # many rows: short sums in float32, long ones in float64
                for e in range(dim):
                    sums[q, e] += part[q, e]
                    part[q, e] = zero


@compiled
def mix_sources_backward(
    sources: Array, targets: Array, slope: Any, attention: Array, weights: Array, grad_scores: Array, grad_mixed: Array,
    starts: Array, edges: Array, grad_y: Array, sums: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """The gradient of what others hear (left half of ``grad_y``), from lists of who hears it (:func:`listeners`).

    Its sum is added to ``sums`` (D,).
    """
    dim, heads, columns = len(attention), weights.shape[1], weights.shape[2]
    width = dim // heads
    zero = np.float32(0)
    own, row, part = np.empty(dim, np.float32), np.empty(dim, np.float32), np.zeros(dim, np.float32)
    for j in range(start, stop):
        for e in range(dim):
            own[e] = _up(sources[j, e])
            row[e] = zero
        for edge in edges[starts[j] : starts[j + 1]]:
            i, k = edge // columns, edge % columns
            for h in range(heads):
                o, s, w = h * width, grad_scores[i, h, k], weights[i, h, k]
                low = s * slope
                for e in range(width):
                    down = s if own[o + e] + _up(targets[i, dim + o + e]) > zero else low
                    row[o + e] += down * attention[o + e] + w * _up(grad_mixed[i, o + e])
        for e in range(dim):
            part[e] += row[e]
            grad_y[j, e] = _down(row[e], grad_y[j, e])
        if (j - start) % _FLUSH_ROWS == _FLUSH_ROWS - 1 or j == stop - 1:
            for e in range(dim):
                sums[e] += part[e]
                part[e] = zero


@compiled
def listeners(index: Array, sources: int) -> tuple[Array, Array]:
    """Who hears whom: places of ``index`` (n, k + 1), flat, grouped by the row they name; and where groups start."""
    flat = index.ravel()
    starts = np.zeros(sources + 2, np.int64)
    for j in flat:
        if j >= 0:
            starts[j + 2] += 1
    starts = np.cumsum(starts)
    edges = np.empty(starts[-1], np.int64)
    for place in range(len(flat)):
        j = flat[place]
        if j >= 0:
            edges[starts[j + 1]] = place
            starts[j + 1] += 1
    return starts[:-1], edges


# ---- gated attention -------------------------------------------------------------------------------------------


@compiled
def rectify(values: Array, seed: Any, threshold: Any, scale: Any, first_row: int, start: int, stop: int) -> None:
    """Drop(ReLU(values)) in place; ``first_row`` is the place of row 0 in the bags, for the dropout's hash."""
    dim, zero = values.shape[1], np.float32(0)
    for i in range(start, stop):
        first = np.uint32((first_row + i) * dim)
        for e in range(dim):
            v = _up(values[i, e])
            v = zero if v < zero else v
            if threshold > 0:
                v = v * scale if _kept(np.uint32(first + np.uint32(e)), seed, threshold) else zero
            values[i, e] = _down(v, values[i, e])


@compiled
def gate_scores(gates: Array, along: Array, bias: Any, scores: Array, start: int, stop: int) -> None:
    """w (tanh(l) * sigmoid(r)) + b of rows (l, r) side by side: ``gates`` (n, 2 E), ``along`` (E,)."""
    width, one = len(along), np.float32(1)
    for i in range(start, stop):
        score = np.float32(0)
        for e in range(width):
            left, right = _up(gates[i, e]), _up(gates[i, width + e])
            t = one - (one + one) / (one + _exp(left + left))
            score += along[e] * t / (one + _exp(-right))
        scores[i] = score + bias


@compiled
def gates_backward(
    gates: Array, along: Array, grad_scores: Array, grad_gates: Array, sums: Array, start: int, stop: int
) -> None:
    """Gradients of the gates; added to ``sums`` (3, E) float64 those of the score's weights and the gates' biases."""
    width, one, zero = len(along), np.float32(1), np.float32(0)
    part = np.zeros((3, width), np.float32)
    for i in range(start, stop):
        s = grad_scores[i]
        for e in range(width):
            left, right = _up(gates[i, e]), _up(gates[i, width + e])
            t = one - (one + one) / (one + _exp(left + left))
            g = one / (one + _exp(-right))
            to_left, to_right = s * along[e] * g * (one - t * t), s * along[e] * t * g * (one - g)
            part[0, e] += s * t * g
            part[1, e] += to_left
            part[2, e] += to_right
            grad_gates[i, e] = _down(to_left, grad_gates[i, e])
            grad_gates[i, width + e] = _down(to_right, grad_gates[i, width + e])
        if (i - start) % _FLUSH_ROWS == _FLUSH_ROWS - 1 or i == stop - 1:
            for q in range(len(part)):
                for e in range(width):
                    sums[q, e] += part[q, e]
                    part[q, e] = zero


@compiled
def rectify_backward(
    values: Array, grad: Array, attention: Array, grad_pooled: Array, bag: Array, scale: Any, sums: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """``grad`` in place: (grad + a_i dL/dpooled[bag]) where Drop(ReLU) let the value through; its sum into ``sums``."""
    dim, zero = values.shape[1], np.float32(0)
    part = np.zeros(dim, np.float32)
    for i in range(start, stop):
        a, from_pooled = attention[i], grad_pooled[bag[i]]
        for e in range(dim):
            d = _up(grad[i, e]) + a * from_pooled[e]
            d = d * scale if _up(values[i, e]) > zero else zero
            part[e] += d
            grad[i, e] = _down(d, grad[i, e])
        if (i - start) % _FLUSH_ROWS == _FLUSH_ROWS - 1 or i == stop - 1:
            for e in range(dim):
                sums[e] += part[e]
                part[e] = zero


# ---- pooling ---------------------------------------------------------------------------------------------------


@compiled
def pool(values: Array, weights: Array, bag: Array, sums: Array, start: int, stop: int) -> None:
    """Added to ``sums`` (B, A, D): weights (n, A) times values (n, D), by bag."""
    for i in range(start, stop):
        for q in range(weights.shape[1]):
            w, total = weights[i, q], sums[bag[i], q]
            for e in range(values.shape[1]):
                total[e] += w * _up(values[i, e])


@compiled
def pool_backward(values: Array, grad: Array, bag: Array, out: Array, start: int, stop: int) -> None:
    """The gradient of the weights, ``out`` (n, A): each row times its bag's ``grad`` (B, A, D)."""
    for i in range(start, stop):
        for q in range(out.shape[1]):
            dot, along = np.float32(0), grad[bag[i], q]
            for e in range(values.shape[1]):
                dot += _up(values[i, e]) * along[e]
            out[i, q] = dot


@compiled
def spread(weights: Array, grad: Array, bag: Array, out: Array, start: int, stop: int) -> None:
    """The gradient of the values, ``out`` (n, D): weights (n, A) times the bag's ``grad`` (B, A, D)."""
    row = np.empty(out.shape[1], np.float32)
    for i in range(start, stop):
        for e in range(out.shape[1]):
            row[e] = np.float32(0)
        for q in range(weights.shape[1]):
            w, along = weights[i, q], grad[bag[i], q]
            for e in range(out.shape[1]):
                row[e] += w * along[e]
        for e in range(out.shape[1]):
            out[i, e] = _down(row[e], out[i, e])
