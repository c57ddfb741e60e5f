"""MoMKD's histology encoder as one operation on the CPU, and the same by tiles where nothing is learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from momkd_fl.model.histology import NEGATIVE_SLOPE, HistologyEncoder
from momkd_fl.training import compiled
from momkd_fl.training.rows import Array, Dropout, array, by_rows, by_rows_summed, tiles


class _Layer(NamedTuple):
    source: Tensor
    source_bias: Tensor
    target: Tensor
    target_bias: Tensor
    attention: Tensor
    bias: Tensor
    gamma: Tensor
    beta: Tensor

    def products(self) -> tuple[Tensor, Tensor]:
        """Weights and biases of both maps as one product: (2 D, D_in) and (2 D,)."""
        return torch.cat([self.source, self.target]), torch.cat([self.source_bias, self.target_bias])

    def mixing(self, index: Tensor, elu: bool, dropout: Dropout) -> tuple[Any, ...]:
        """What both compiled passes take behind the rows themselves."""
        own = (array(value).reshape(-1) for value in self[4:])
        return (array(index), np.float32(NEGATIVE_SLOPE), *own, elu, dropout.seed, dropout.threshold, dropout.scale)


class _Kept(NamedTuple):
    """Attention weights (N, H, k + 1), and mean and 1 / sd of each row before its normalisation (N, 2)."""

    weights: Array
    stats: Array


def encode(encoder: HistologyEncoder, features: Tensor, neighbours: Tensor, dtype: torch.dtype) -> Tensor:
    """Contextual features (N, D) in ``dtype``, from features (N, D_in) and neighbours (N, k + 1).

    h1 = Drop(ELU(LN(GATv2(X)))) + W_r X;  F = h1 + Drop(ReLU(LN(GATv2(h1)))), which is METHOD's max(h1, h2): what the
    second layer adds below zero is what the maximum takes away.
    """
    dropouts = [Dropout.draw(encoder.dropout.p, encoder.training) for _ in range(2)]
    first, second, residual = _parameters(encoder)
    encoded: Tensor = _Encode.apply(  # type: ignore[no-untyped-call]
        features, neighbours, dtype, dropouts, *first, *second, *residual
    )
    return encoded


Room = Callable[[str, int, int, torch.dtype], Tensor]
"""Gives an uninitialised array (rows, columns) to a name."""


def _fresh(name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Memory of its own, whatever the name."""
    return torch.empty(rows, columns, dtype=dtype)


class Scratch:
    """Arrays that are used again for every tile: tiles and their rings have ever other sizes, and an allocator keeps
    the pieces of those that it was given back."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def array(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised (rows, columns) in the place of that name; a place holds a power of two of rows.

        What no tile has written to takes no memory, so that a place is hardly ever made anew.
        """
        held = self._held.get(name)
        if held is None or len(held) < rows * columns:
            held = self._held[name] = torch.empty((1 << (rows - 1).bit_length()) * columns, dtype=dtype)
        return held[: rows * columns].view(rows, columns)

    def rows(self, name: str, source: Tensor, index: Tensor) -> Tensor:
        """The rows of ``source`` (N, C) at ``index`` (n,)."""
        return torch.index_select(source, 0, index, out=self.array(name, len(index), source.shape[1], source.dtype))


@torch.no_grad()
def encode_tile(
    encoder: HistologyEncoder,
    features: Tensor,
    neighbours: NDArray[np.int64],
    rows: slice,
    dtype: torch.dtype,
    scratch: Scratch,
) -> Tensor:
    """:func:`encode` for some rows alone, without dropout: reads those rows, their neighbours, and these's.

    Memory is that of the rows and of two rings around them, which in spatial order is little; what is returned lies in
    ``scratch`` and lasts until the next tile.
    """
    first, second, residual = _parameters(encoder)
    own = np.arange(rows.start, rows.stop)
    ring1, heard2, place2 = _around(own, neighbours)
    ring2, heard1, place1 = _around(ring1, neighbours)
    none = Dropout.draw(0.0, False)
    y1, all_h1 = _products(
        features, dtype, first.products(), residual, chosen=torch.from_numpy(ring2), room=scratch.array
    )
    h1 = scratch.rows("h1", all_h1, place1)
    _mix(y1, scratch.rows("targets1", y1, place1), heard1, first, True, none, h1, h1, scratch.array)
    (y2,) = _products(h1, dtype, second.products(), room=scratch.array)
    out = scratch.rows("out", h1, place2)
    _mix(y2, scratch.rows("targets2", y2, place2), heard2, second, False, none, out, out, scratch.array)
    return out


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, index: Tensor, dtype: torch.dtype, dropouts: list[Dropout], *weights: Tensor
    ) -> Tensor:
        first, second, residual = _split(weights)
        y1, h1 = _products(x, dtype, first.products(), residual)
        kept1 = _mix(y1, y1, index, first, True, dropouts[0], h1, h1)
        (y2,) = _products(h1, dtype, second.products())
        out = torch.empty_like(h1)
        kept2 = _mix(y2, y2, index, second, False, dropouts[1], h1, out)
        ctx.save_for_backward(x, index, *weights)
        ctx.kept = (y1, kept1, h1, y2, kept2)
        ctx.settings = (dtype, dropouts)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, index, *weights = ctx.saved_tensors
        first, second, _ = _split(weights)
        dtype, dropouts = ctx.settings
        y1, kept1, h1, y2, kept2 = ctx.kept
        del ctx.kept  # each array is let go of as soon as it has been used: memory is what bounds a bag
        lists = compiled.listeners(array(index), len(x))
        grad = grads[0].to(dtype).contiguous()
        grad_y, own2, _ = _mix_backward(y2, index, lists, second, False, dropouts[1], kept2, grad, h1)
        del y2, kept2, h1
        grad = torch.addmm(grad, grad_y, second.products()[0].to(dtype))
        del grad_y
        _, own1, bias = _mix_backward(y1, index, lists, first, True, dropouts[0], kept1, grad, x)
        return None, None, None, None, *own1, *own2, _products_backward(grad, x), bias


def _parameters(encoder: HistologyEncoder) -> tuple[_Layer, _Layer, tuple[Tensor, Tensor]]:
    layers = [
        _Layer(
            layer.source.weight, layer.source.bias, layer.target.weight, layer.target.bias,
            layer.attention, layer.bias, norm.weight, norm.bias,
        )
        for layer, norm in ((encoder.first, encoder.first_norm), (encoder.second, encoder.second_norm))
    ]  # fmt: skip
    return layers[0], layers[1], (encoder.residual.weight, encoder.residual.bias)


def _split(weights: tuple[Tensor, ...] | list[Tensor]) -> tuple[_Layer, _Layer, tuple[Tensor, Tensor]]:
    plain = [value.detach() for value in weights]
    return _Layer(*plain[:8]), _Layer(*plain[8:16]), (plain[16], plain[17])


def _products(
    x: Tensor,
    dtype: torch.dtype,
    *maps: tuple[Tensor, Tensor],
    chosen: Tensor | None = None,
    room: Room = _fresh,
) -> list[Tensor]:
    """Linear maps of the same rows, all or those ``chosen``, tile by tile; each tile is cast once."""
    cast = [(weight.to(dtype).T, bias.to(dtype)) for weight, bias in maps]
    count = len(x) if chosen is None else len(chosen)
    out = [room(f"product {x.shape[1]} {place}", count, len(bias), dtype) for place, (_, bias) in enumerate(cast)]
    for rows in tiles(count):
        tile = x[rows].to(dtype) if chosen is None else _cast(x, chosen[rows], dtype, room)
        for (weight, bias), whole in zip(cast, out, strict=True):
            torch.addmm(bias, tile, weight, out=whole[rows])
    return out


def _cast(x: Tensor, chosen: Tensor, dtype: torch.dtype, room: Room) -> Tensor:
    rows = torch.index_select(x, 0, chosen, out=room("rows", len(chosen), x.shape[1], x.dtype))
    return rows if x.dtype == dtype else room("cast", len(rows), rows.shape[1], dtype).copy_(rows)


def _products_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of a map's weights (D, D_in), fp32: tiles are rounded, their sum is not."""
    weight = torch.zeros(grad.shape[1], x.shape[1])
    for rows in tiles(len(x)):
        weight += grad[rows].T @ x[rows].to(grad.dtype)
    return weight


def _mix(
    sources: Tensor,
    targets: Tensor,
    index: Tensor,
    layer: _Layer,
    elu: bool,
    dropout: Dropout,
    base: Tensor,
    out: Tensor,
    room: Room = _fresh,
) -> _Kept:
    """The mixing pass: left halves of ``sources`` (M, 2 D) are heard by right halves of ``targets`` (n, 2 D)."""
    shape = (len(out), len(layer.attention), index.shape[1])
    weights = room("weights", len(out), shape[1] * shape[2], torch.float32).numpy().reshape(shape)
    kept = _Kept(weights, room("stats", len(out), 2, torch.float32).numpy())
    by_rows(
        len(out), compiled.mix, array(sources), array(targets), *layer.mixing(index, elu, dropout),
        array(base), array(out), kept.weights, kept.stats,
    )  # fmt: skip
    return kept


def _mix_backward(
    y: Tensor, index: Tensor, lists: tuple[Array, Array], layer: _Layer, elu: bool, dropout: Dropout, kept: _Kept,
    grad: Tensor, x: Tensor,
) -> tuple[Tensor, _Layer, Tensor]:  # fmt: skip
    """Gradients of both halves (N, 2 D), of the layer whose input was ``x``, and of the base's bias."""
    dim = grad.shape[1]
    mixed, grad_y, grad_scores = torch.empty_like(grad), torch.empty_like(y), np.empty_like(kept.weights)
    rows, mixing = array(y), layer.mixing(index, elu, dropout)
    sums = by_rows_summed(
        (6, dim), len(y), compiled.mix_rows_backward, rows, rows, *mixing, kept.weights, kept.stats, array(grad),
        array(mixed), array(grad_y), grad_scores,
    )  # fmt: skip
    source_bias = by_rows_summed(
        (dim,), len(y), compiled.mix_sources_backward, rows, rows, *mixing[1:3], kept.weights, grad_scores,
        array(mixed), *lists, array(grad_y),
    )  # fmt: skip
    attention, bias, gamma, beta, target_bias, base_bias = torch.from_numpy(sums.astype(np.float32))
    weight = _products_backward(grad_y, x)
    own = _Layer(
        weight[:dim], torch.from_numpy(source_bias.astype(np.float32)), weight[dim:], target_bias,
        attention.view_as(layer.attention), bias, gamma, beta,
    )  # fmt: skip
    return grad_y, own, base_bias


def _around(rows: NDArray[np.int64], neighbours: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """Whom rows hear, ascending; their neighbours, and they themselves, as places in that."""
    index = neighbours[rows]
    place = np.zeros(len(neighbours) + 1, np.int64)  # the last entry answers for -1
    place[index.ravel()] = 1
    place[-1] = 0
    ring = np.flatnonzero(place)
    place[ring] = np.arange(len(ring))
    place[-1] = -1
    return ring, torch.from_numpy(place[index]), torch.from_numpy(place[rows])
