"""Attention over a fixed number of neighbours: a plain version, and one that recomputes instead of storing.

The plain version keeps several (N, k + 1, D) tensors for the backward pass. The other walks tiles of rows and keeps
only the attention weights, so its memory is O(N D). On a CPU training takes a faster path still:
``momkd_fl.training.kernels``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_VALUES = {"cpu": 1 << 18, "cuda": 1 << 28}
"""Values of a tile's (rows, k + 1, D) tensors by device: 1 MB, so that a few of them stay in the second-level cache;
1 GB where launches cost more than memory."""


def neighbour_attention(source: Tensor, target: Tensor, attention: Tensor, neighbours: Tensor, slope: float) -> Tensor:
    """GATv2's mixing step, in the precision of ``attention`` (fp32 even where products are taken in bf16).

    Parameters
    ----------
    source, target : (N, H * E), W_l x and W_r x
    attention : (H, E)
    neighbours : (N, k + 1) rows of ``source``, -1 where there is none; column 0 is never -1
    slope : of the leaky ReLU

    Returns
    -------
    Tensor (N, H * E)
    """
    mixed: Tensor = _NeighbourAttention.apply(  # type: ignore[no-untyped-call]
        source.to(attention.dtype), target.to(attention.dtype), attention, neighbours, slope
    )
    return mixed


def neighbour_attention_plain(
    source: Tensor, target: Tensor, attention: Tensor, neighbours: Tensor, slope: float
) -> Tensor:
    """The same, written as the equation; the twin that tests compare with."""
    heads, width = attention.shape
    absent = neighbours < 0
    gathered = source[neighbours.clamp(min=0)].view(*neighbours.shape, heads, width)
    scores = (F.leaky_relu(gathered + target.view(-1, 1, heads, width), slope) * attention).sum(-1)
    weights = torch.softmax(scores.masked_fill(absent[..., None], -torch.inf), dim=1)
    return (weights[..., None] * gathered).sum(1).flatten(1)


class _NeighbourAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, source: Tensor, target: Tensor, attention: Tensor, neighbours: Tensor, slope: float
    ) -> Tensor:
        source, target = source.contiguous(), target.contiguous()
        heads, width = attention.shape
        index = neighbours.clamp(min=0)
        scores = source.new_empty(*index.shape, heads)
        for rows in _tiles(index, heads * width):
            mixed = _gather(source, index[rows]).add_(target[rows, None])
            mixed = F.leaky_relu_(mixed, slope).view(*index[rows].shape, heads, width).mul_(attention)
            torch.sum(mixed, -1, out=scores[rows])
        weights = torch.softmax(scores.masked_fill_((neighbours < 0)[..., None], -torch.inf), dim=1)
        ctx.save_for_backward(source, target, attention, index, weights)
        ctx.slope = slope
        return _weighted_sum(source, index, weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        source, target, attention, index, weights = ctx.saved_tensors
        heads, width = attention.shape
        grad = gradients[0].contiguous().view(-1, 1, heads, width)
        grad_source, grad_target = torch.zeros_like(source), torch.empty_like(target)
        grad_attention = torch.zeros_like(attention)
        middle, half = (1.0 + ctx.slope) / 2.0, (1.0 - ctx.slope) / 2.0
        for rows in _tiles(index, heads * width):
            split = (*index[rows].shape, heads, width)
            gathered, weight = _gather(source, index[rows]), weights[rows]
            mixed = gathered + target[rows, None]
            grad_weight = gathered.view(split).mul_(grad[rows]).sum(-1)
            # softmax: dL/ds = w (dL/dw - sum_j w_j dL/dw_j), with the same rounded weights on both sides
            grad_score = weight * (grad_weight - (weight * grad_weight).sum(1, keepdim=True))
            # the leaky ReLU's derivative as middle + half * sign: a tenth of the time of a selection
            down = mixed.sign().mul_(half).add_(middle)
            every = grad_score.view(-1, heads).T @ mixed.mul_(down).view(-1, heads * width)
            for head in range(heads):
                grad_attention[head] += every[head, head * width : (head + 1) * width]
            inner = down.view(split).mul_(attention).mul_(grad_score[..., None])
            torch.sum(inner.flatten(2), 1, out=grad_target[rows])
            inner = inner.addcmul_(weight[..., None], grad[rows])
            grad_source.index_add_(0, index[rows].reshape(-1), inner.view(-1, heads * width))
        return grad_source, grad_target, grad_attention, None, None


def _tiles(index: Tensor, width: int) -> list[slice]:
    rows = max(1, TILE_VALUES.get(index.device.type, TILE_VALUES["cpu"]) // (index.shape[1] * width))
    return [slice(start, start + rows) for start in range(0, len(index), rows)]


def _gather(source: Tensor, index: Tensor) -> Tensor:
    """Rows of ``source`` (N, D) at ``index`` (R, k + 1): (R, k + 1, D)."""
    return source.index_select(0, index.reshape(-1)).view(*index.shape, -1)


def _weighted_sum(source: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sum over neighbours of weight times row, head by head, without a (N, k + 1, D) tensor."""
    rows, columns, heads = weights.shape
    by_head = index[:, None] * heads + torch.arange(heads, device=index.device)[:, None]
    return F.embedding_bag(
        by_head.view(-1, columns),
        source.view(len(source) * heads, -1),
        mode="sum",
        per_sample_weights=weights.transpose(1, 2).reshape(-1, columns),
    ).view(rows, -1)
