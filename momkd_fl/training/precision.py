"""Whether bf16 is worth it on this device: tried once, kept only where it is faster and close enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]
TOLERANCE = 0.05
GAIN = 1.1
_ROWS = 2048


def choose_precision(asked: Literal["auto", "fp32", "bf16"], device: torch.device, width: int) -> Precision:
    """fp32 or bf16: as asked, or by a self-test of products of the student's width on ``device``.

    fp16 is never used: on CPUs its products are a hundred times slower than fp32's.
    """
    if asked != "auto":
        return asked
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(_ROWS, width, generator=generator).to(device)
    right = torch.randn(width, width, generator=generator).to(device)
    exact = left @ right

    def rounded() -> torch.Tensor:
        with autocast("bf16", device):
            return left @ right

    error = (rounded().float() - exact).norm() / exact.norm()
    faster = _seconds(lambda: left @ right, device) > GAIN * _seconds(rounded, device)
    return "bf16" if faster and float(error) < TOLERANCE else "fp32"


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
