"""The roof of a step: what its matrix products alone would take at this machine's best rate.

Counted are multiply-adds, two floating-point operations each: forward, the weights' gradient (dW) and the input's
(dX), except dX of the first layer, which nobody needs. Left out, because they are not products of matrices or are
too small to matter: neighbour attention, softmax, norms, activations, classifier, genomic branch, optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median

import torch

from benchmarks.interleaved import Arm, Rounds
from momkd_fl.model.momkd import StudentShape
from momkd_fl.training.precision import Precision

SIZES = (2048, 3072, 4096)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def flop_per_patch(shape: StudentShape) -> int:
    """Floating-point operations of one patch in one training step.

    Gated attention, D to H and two gates H to H / 2: 4 D H + 6 H^2. MoMKD, three products D to H (source, target,
    residual), two H to H and one H to S: 12 D H + 12 H^2 + 6 H S.
    """
    first, hidden = 4 * shape.dim_in * shape.hidden, 6 * shape.hidden**2
    if shape.architecture == "gated_attention":
        return first + hidden
    return 3 * first + 2 * hidden + 6 * shape.hidden * shape.memory_dim


def products(precision: Precision, sizes: Sequence[int] = SIZES) -> list[Arm]:
    """An arm for each size: one product of two square matrices."""
    return [
        Arm(_name(precision, size), partial(torch.mm, *(torch.randn(size, size).to(DTYPES[precision]) for _ in "ab")))
        for size in sizes
    ]


def best(rounds: Rounds, precision: Precision, sizes: Sequence[int] = SIZES) -> list[float]:
    """Floating-point operations per CPU-second of the size with the best median, a value for each round."""
    rates = [[2 * size**3 / seconds for seconds in rounds.of(_name(precision, size))] for size in sizes]
    return max(rates, key=median)


def _name(precision: Precision, size: int) -> str:
    return f"matmul {precision} {size}"
