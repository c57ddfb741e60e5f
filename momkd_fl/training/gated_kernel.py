"""Gated attention and its pooling as one operation on the CPU, tile by tile."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from momkd_fl.model.baselines import GatedAttention
from momkd_fl.model.batch import PackedBags
from momkd_fl.training import compiled
from momkd_fl.training.rows import Array, Dropout, OnlineSoftmax, array, by_rows, by_rows_summed, tiles


def gated_pool(model: GatedAttention, batch: PackedBags, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pooled values (B, D) fp32 and attention (N, 1); no gradient goes through the attention that is returned."""
    linear, _, dropout = cast(tuple[nn.Linear, nn.ReLU, nn.Dropout], tuple(model.embedding))
    pooled, attention = _GatedPool.apply(  # type: ignore[no-untyped-call]
        batch.features, batch.bag, batch.patients, dtype, Dropout.draw(dropout.p, model.training),
        torch.is_grad_enabled(),
        linear.weight, linear.bias, model.gates.weight, model.gates.bias, model.score.weight, model.score.bias,
    )  # fmt: skip
    return pooled, attention


class _GatedPool(torch.autograd.Function):
    """H = Drop(ReLU(W1 X)); a = softmax(w (tanh(l) * sigmoid(r))) with (l, r) = W2 H; pooled = a H, bag by bag."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bag: Tensor, patients: int, dtype: torch.dtype, dropout: Dropout, keep: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        w1, b1, w2, b2 = (value.detach().to(dtype) for value in weights[:4])
        along, bias = array(weights[4]).reshape(-1), array(weights[5])[0]
        kept: list[tuple[Tensor, Tensor]] = []
        scores, state = np.empty((len(x), 1), np.float32), OnlineSoftmax(patients, 1, len(w1))
        for rows in tiles(len(x)):
            hidden = torch.addmm(b1, x[rows].to(dtype), w1.T)
            drop = (dropout.seed, dropout.threshold, dropout.scale, rows.start)
            by_rows(len(hidden), compiled.rectify, array(hidden), *drop)
            gates = torch.addmm(b2, hidden, w2.T)
            by_rows(len(hidden), compiled.gate_scores, array(gates), along, bias, scores[rows, 0])
            state.add(array(hidden), scores[rows], array(bag[rows]))
            if keep:
                kept.append((hidden, gates))
        attention, pooled = state.close(scores, array(bag))
        ctx.save_for_backward(x, bag, *weights)
        ctx.kept = (kept, attention, dtype, dropout.scale)
        shown = torch.from_numpy(attention)
        ctx.mark_non_differentiable(shown)
        return torch.from_numpy(pooled[:, 0]), shown

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, bag, *weights = ctx.saved_tensors
        kept, attention, dtype, scale = ctx.kept
        del ctx.kept
        w2, along = weights[2].detach().to(dtype), array(weights[4]).reshape(-1)
        grad_pooled, bags = array(grads[0].float().contiguous()), array(bag)
        grad_scores = _softmax_backward(kept, attention, grad_pooled, bags)
        d_w1, d_w2 = torch.zeros_like(weights[0]), torch.zeros_like(weights[2])
        d_b1, d_gates = np.zeros(w2.shape[1], np.float64), np.zeros((3, len(along)), np.float64)
        for rows in tiles(len(x)):
            hidden, gates = kept.pop(0)
            back = torch.empty_like(gates)
            d_gates += by_rows_summed(
                d_gates.shape, len(gates), compiled.gates_backward, array(gates), along, grad_scores[rows], array(back)
            )
            d_w2 += back.T @ hidden
            back = back @ w2
            d_b1 += by_rows_summed(
                d_b1.shape, len(back), compiled.rectify_backward, array(hidden), array(back), attention[rows, 0],
                grad_pooled, bags[rows], scale,
            )  # fmt: skip
            d_w1 += back.T @ x[rows].to(dtype)
        small = (d_b1, d_gates[1:].ravel(), d_gates[:1])
        bias1, bias2, score = (torch.from_numpy(value.astype(np.float32)) for value in small)
        # a softmax does not see what is added to all of its scores: the score's bias has no gradient
        return None, None, None, None, None, None, d_w1, bias1, d_w2, bias2, score, torch.zeros_like(weights[5])


def _softmax_backward(kept: list[tuple[Tensor, Tensor]], attention: Array, grad_pooled: Array, bag: Array) -> Array:
    """dL/ds_i = a_i (h_i . dL/dpooled - its mean under a), centred with the very same rounded dots."""
    dots, start = np.empty_like(attention), 0
    for hidden, _ in kept:
        rows = slice(start, start + len(hidden))
        by_rows(len(hidden), compiled.pool_backward, array(hidden), grad_pooled[:, None], bag[rows], dots[rows])
        start = rows.stop
    mean = np.bincount(bag, (attention * dots)[:, 0], len(grad_pooled))
    grad: Array = attention[:, 0] * (dots[:, 0] - mean[bag].astype(np.float32))
    return grad
