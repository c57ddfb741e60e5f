"""The students' fast paths: the same functions as the plain ones in :mod:`momkd_fl.model`, on a CPU much faster.

Products are torch's matrix products, in bf16 with fp32 master weights where asked. Everything between two products is
one compiled pass over the rows (:mod:`momkd_fl.training.compiled`), computed again in the backward pass rather than
kept. Kept are the products' results alone: 6 D numbers a patch for MoMKD, 2 D for gated attention; in evaluation
nothing but a tile.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from momkd_fl.model.baselines import GatedAttention, build
from momkd_fl.model.batch import PackedBags, pack
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import LossWeights, MoMKD, Output, StudentShape
from momkd_fl.training import compiled
from momkd_fl.training.encoder_kernel import Scratch, encode, encode_tile
from momkd_fl.training.gated_kernel import gated_pool
from momkd_fl.training.precision import DTYPES, Precision, autocast
from momkd_fl.training.rows import OnlineSoftmax, array, by_rows, by_rows_summed

SCORE_ROWS = 8192
"""Patches of a larger pack are encoded by tiles of so many where nothing is learnt: memory is that of a tile."""


def student_output(
    model: MoMKD | GatedAttention, batch: PackedBags, memory: Memory, precision: Precision, *, patches: bool = True
) -> Output:
    """What ``model(batch, memory)`` gives: by the fast path on a CPU, by the plain one elsewhere.

    ``patches`` False: a large pack that is only scored may leave its patches' embeddings out. All is fp32 whatever
    the products were taken in, for losses, softmax and memory are.
    """
    with autocast(precision, batch.features.device):
        if not has_fast_path(batch.features.device):
            return _full_precision(model(batch, memory))
        if isinstance(model, GatedAttention):
            return _full_precision(model.decide(*gated_pool(model, batch, DTYPES[precision])))
        if not torch.is_grad_enabled() and len(batch.features) > SCORE_ROWS:
            return _full_precision(_scored_by_tiles(model, batch, memory, DTYPES[precision], patches))
        features = encode(model.encoder, batch.features, batch.neighbours, DTYPES[precision])
        embedded = model.project(features)
        attention = model.attend(embedded, memory, batch)
        return _full_precision(model.decide(pool(attention, features, batch), attention, embedded, batch))


def compile_kernels(architecture: Literal["momkd", "gated_attention"], precision: Precision) -> None:
    """Compile what a student's step needs, into the cache on disk where there is a place for one.

    A step does so by itself; processes that start together on a new machine would each do it.
    """
    shape = StudentShape(8, 8, 1, 4, 1, 2, 1, None, None, 0.5, architecture=architecture, memory_mode="momentum")
    student = build(shape, 0)
    memory = Memory(slots=torch.ones(2, 1, 4)) if architecture == "momkd" else Memory()
    batch = pack([(np.ones((2, 8), np.float32), np.array([[0, 1], [1, 0]], np.int32))], [0], [None], None)
    output = student_output(student, batch, memory, precision)
    torch.autograd.backward(student.loss(output, batch, memory, LossWeights())["classification"])


def has_fast_path(device: torch.device) -> bool:
    """Whether there are kernels for a device; elsewhere the plain student computes, in torch's own operations."""
    return device.type == "cpu"


def pool(attention: Tensor, features: Tensor, batch: PackedBags) -> Tensor:
    """Attention (N, A) times features (N, D), summed over each patient's patches: (B, A, D) fp32."""
    pooled: Tensor = _Pool.apply(attention, features, batch.bag, batch.patients)  # type: ignore[no-untyped-call]
    return pooled


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attention: Tensor, features: Tensor, bag: Tensor, patients: int) -> Tensor:
        ctx.save_for_backward(attention, features, bag)
        shape = (patients, attention.shape[1], features.shape[1])
        pooled = by_rows_summed(shape, len(bag), compiled.pool, array(features), array(attention), array(bag))
        return torch.from_numpy(pooled.astype(np.float32))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        attention, features, bag = ctx.saved_tensors
        grad = array(grads[0].contiguous())
        to_attention, to_features = torch.empty_like(attention), torch.empty_like(features)
        by_rows(len(bag), compiled.pool_backward, array(features), grad, array(bag), array(to_attention))
        by_rows(len(bag), compiled.spread, array(attention), grad, array(bag), array(to_features))
        return to_attention, to_features, None, None


def _scored_by_tiles(model: MoMKD, batch: PackedBags, memory: Memory, dtype: torch.dtype, keep_patches: bool) -> Output:
    """The student without its training, by an online softmax over tiles; kept of each patch are its scores, and its
    embedding where asked."""
    neighbours, bag, count = array(batch.neighbours), array(batch.bag), len(batch.bag)
    attentions = 1 if model.shape.classes == 2 else model.shape.classes
    scores = np.empty((count, attentions), np.float32)
    patches = torch.empty(count, model.shape.memory_dim) if keep_patches else None
    scratch = Scratch()
    state = OnlineSoftmax(batch.patients, attentions, model.shape.hidden)
    for start in range(0, count, SCORE_ROWS):
        tile = slice(start, min(start + SCORE_ROWS, count))
        features = encode_tile(model.encoder, batch.features, neighbours, tile, dtype, scratch)
        embedded = model.project(features)
        scores[tile] = array(model.contrast(embedded, memory))
        state.add(array(features), scores[tile], bag[tile])
        if patches is not None:
            patches[tile] = embedded
    attention, pooled = state.close(scores, bag)
    return model.decide(torch.from_numpy(pooled), torch.from_numpy(attention), patches, batch)


def _full_precision(output: Output) -> Output:
    raised: dict[str, Any] = {name: None if value is None else value.float() for name, value in vars(output).items()}
    return Output(**raised)
