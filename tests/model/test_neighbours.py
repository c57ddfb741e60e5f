"""The recomputing attention against its plain twin: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from momkd_fl.model import neighbours as module
from momkd_fl.model.histology import HistologyEncoder
from momkd_fl.model.neighbours import neighbour_attention, neighbour_attention_plain

SLOPE = 0.2


def case(dtype: torch.dtype, rows: int = 23, k: int = 4, heads: int = 2, width: int = 5) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(3)
    index = torch.randint(0, rows, (rows, k + 1), generator=draw)
    index[:, 0] = torch.arange(rows)
    index[4, 2:] = -1
    index[9, 1:] = -1  # a slide of one patch
    source, target, grad = (torch.randn(rows, heads * width, generator=draw, dtype=dtype) for _ in range(3))
    attention = torch.randn(heads, width, generator=draw, dtype=dtype)
    return source, target, attention, index, grad


def gradients(function: object, source: Tensor, target: Tensor, attention: Tensor, index: Tensor, grad: Tensor):
    leaves = [value.clone().requires_grad_() for value in (source, target, attention)]
    out = function(*leaves, index, SLOPE)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("tile_values", [1, 120, 1 << 18])
def test_values_and_gradients_are_the_equation_s_in_float64(monkeypatch: pytest.MonkeyPatch, tile_values: int) -> None:
    monkeypatch.setattr(module, "TILE_VALUES", {"cpu": tile_values})
    inputs = case(torch.float64)
    for fast, plain in zip(
        gradients(neighbour_attention, *inputs), gradients(neighbour_attention_plain, *inputs), strict=True
    ):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    source, target, attention, index, _ = case(torch.float64, rows=11)
    leaves = [value.requires_grad_() for value in (source, target, attention)]
    assert torch.autograd.gradcheck(lambda *given: neighbour_attention(*given, index, SLOPE), leaves)


def test_float32_stays_within_one_in_ten_thousand() -> None:
    exact = gradients(neighbour_attention_plain, *case(torch.float64, rows=300, width=32))
    single = (v.float() if v.is_floating_point() else v for v in case(torch.float64, rows=300, width=32))
    fast = gradients(neighbour_attention, *single)
    for got, want in zip(fast, exact, strict=True):
        assert float((got - want).norm() / want.norm()) < 1e-4


def test_a_patch_alone_hears_only_itself() -> None:
    source, target, attention, index, _ = case(torch.float64)
    out = neighbour_attention(source, target, attention, index, SLOPE)
    torch.testing.assert_close(out[9], source[9])


def test_what_a_patch_does_not_list_does_not_reach_it() -> None:
    source, target, attention, index, _ = case(torch.float64)
    index[:, 1:] = torch.where(index[:, 1:] == 7, -1, index[:, 1:])
    before = neighbour_attention(source, target, attention, index, SLOPE)
    source[7] += 1.0
    after = neighbour_attention(source, target, attention, index, SLOPE)
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == [7]


def test_bf16_inputs_keep_every_gradient_within_five_percent() -> None:
    source, target, attention, index, grad = case(torch.float64, rows=300, width=32)
    attention = attention / 4  # the scale it is drawn at; a sharper softmax makes more of the inputs' own rounding
    exact = gradients(neighbour_attention_plain, source, target, attention, index, grad)
    rounded = source.bfloat16(), target.bfloat16(), attention.float(), index, grad.float()
    for got, want in zip(gradients(neighbour_attention, *rounded), exact, strict=True):
        assert float((got.double() - want).norm() / want.norm()) < 0.05


def test_scores_and_softmax_are_fp32_under_autocast() -> None:
    encoder = HistologyEncoder(48, 64, 2, dropout=0.0)
    index = torch.arange(30)[:, None].expand(30, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder.first(torch.randn(30, 48), index).dtype == torch.float32
