"""bf16 only where it is faster and close enough."""

from __future__ import annotations

import pytest
import torch

from momkd_fl.training import precision
from momkd_fl.training.precision import Step, autocast, choose_precision

CPU = torch.device("cpu")


def step(error: float) -> Step:
    """A step whose logits differ by ``error`` in bf16."""
    return lambda chosen: torch.ones(4, 2) * (1 + error * (chosen == "bf16"))


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(asked: str) -> None:
    assert choose_precision(asked, CPU, step(1.0)) == asked


@pytest.mark.parametrize(("fp32_s", "bf16_s", "want"), [(1.0, 0.5, "bf16"), (1.0, 0.99, "fp32"), (1.0, 3.0, "fp32")])
def test_auto_takes_the_faster_by_a_margin(
    monkeypatch: pytest.MonkeyPatch, fp32_s: float, bf16_s: float, want: str
) -> None:
    times = iter([fp32_s, bf16_s])
    monkeypatch.setattr(precision, "_seconds", lambda work, device: next(times))
    assert choose_precision("auto", CPU, step(0.01)) == want


def test_auto_refuses_what_is_fast_and_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 0.1])
    monkeypatch.setattr(precision, "_seconds", lambda work, device: next(times))
    assert choose_precision("auto", CPU, step(0.2)) == "fp32"


def test_products_are_bf16_inside_the_context_only() -> None:
    left = torch.randn(4, 4)
    with autocast("bf16", CPU):
        assert (left @ left).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert (left @ left).dtype == torch.float32
