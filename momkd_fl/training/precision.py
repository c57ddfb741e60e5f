"""Whether bf16 is worth it on this device: tried once, kept only where it is faster and close enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of features and products; sums over a bag, losses and weights are float32 whatever it is."""
TOLERANCE = 0.05
GAIN = 1.1

Step = Callable[[Precision], torch.Tensor]
"""One step of the student in a precision, forward and backward; returns its logits."""


def choose_precision(asked: Literal["auto", "fp32", "bf16"], device: torch.device, step: Step) -> Precision:
    """fp32 or bf16: as asked, or by trying ``step`` in both on ``device``.

    A whole step is tried, not a product alone: for a narrow student the casts cost more than the products gain.
    fp16 is never used: on CPUs its products are a hundred times slower than fp32's.
    """
    if asked != "auto":
        return asked
    exact, rounded = step("fp32").float(), step("bf16").float()
    error = float((rounded - exact).norm() / exact.norm().clamp_min(1e-12))
    fp32_s = _seconds(lambda: step("fp32"), device)
    bf16_s = _seconds(lambda: step("bf16"), device)
    return "bf16" if error < TOLERANCE and fp32_s > GAIN * bf16_s else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which the student computes."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def _seconds(work: Callable[[], torch.Tensor], device: torch.device, repeats: int = 5) -> float:
    """Shortest of a few runs: what the machine can do, whatever else it is doing."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
