"""The dense-neighbour GATv2 against torch_geometric's, on random graphs, forward and backward."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import GATv2Conv

from momkd_fl.model.histology import NEGATIVE_SLOPE, NeighbourAttention


def random_graph(rows: int, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Index (N, k + 1) with 0 to ``most`` distinct others in a row, in any column, and the same as edges (2, E)."""
    draw = torch.Generator().manual_seed(seed)
    index = torch.full((rows, most + 1), -1)
    index[:, 0] = torch.arange(rows)
    for row in range(rows):
        others = torch.randperm(rows, generator=draw)
        others = others[others != row]
        degree = int(torch.randint(0, min(most, rows - 1) + 1, (), generator=draw))
        columns = 1 + torch.randperm(most, generator=draw)[:degree]
        index[row, columns] = others[:degree]
    hearer, column = (index >= 0).nonzero(as_tuple=True)
    return index, torch.stack([index[hearer, column], hearer])


def twins(dim_in: int, width: int, heads: int, loops: bool, dtype: torch.dtype) -> tuple[NeighbourAttention, object]:
    """Our layer and theirs with the same random weights; ``loops``: theirs adds each node to its own neighbours."""
    layer = NeighbourAttention(dim_in, heads * width, heads).to(dtype)
    peer = GATv2Conv(dim_in, width, heads, negative_slope=NEGATIVE_SLOPE, add_self_loops=loops).to(dtype)
    with torch.no_grad():
        for own, theirs in pairs(layer, peer):
            own.normal_()
            theirs.copy_(own.view_as(theirs))
    return layer, peer


def pairs(layer: NeighbourAttention, peer: object) -> list[tuple[Tensor, Tensor]]:
    return [
        (layer.source.weight, peer.lin_l.weight),
        (layer.source.bias, peer.lin_l.bias),
        (layer.target.weight, peer.lin_r.weight),
        (layer.target.bias, peer.lin_r.bias),
        (layer.attention, peer.att),
        (layer.bias, peer.bias),
    ]


def both(
    rows: int, most: int, heads: int, seed: int, loops: bool, dtype: torch.dtype
) -> list[tuple[str, Tensor, Tensor]]:
    """Result and all gradients of both layers under one random gradient of the result."""
    index, edges = random_graph(rows, most, seed)
    if loops:  # they are added; of those already there only every third is given, and must not count twice
        others = edges[0] != edges[1]
        edges = edges[:, others | (edges[0] % 3 == 0)]
    torch.manual_seed(seed)
    layer, peer = twins(6, 5, heads, loops, dtype)
    x, grad = torch.randn(rows, 6, dtype=dtype), torch.randn(rows, heads * 5, dtype=dtype)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, want = layer(mine, index), peer(theirs, edges)
    out.backward(grad)
    want.backward(grad)
    gradients = [("parameter", own.grad, other.grad.view_as(own)) for own, other in pairs(layer, peer)]
    return [("result", out.detach(), want.detach()), ("input", mine.grad, theirs.grad), *gradients]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 30),
    most=st.integers(1, 9),
    heads=st.integers(1, 3),
    seed=st.integers(0, 2**31 - 1),
    loops=st.booleans(),
)
def test_results_and_gradients_are_theirs(rows: int, most: int, heads: int, seed: int, loops: bool) -> None:
    for what, got, want in both(rows, most, heads, seed, loops, torch.float64):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11, msg=lambda text, what=what: f"{what}: {text}")


def test_single_precision_agrees_to_one_in_a_hundred_thousand() -> None:
    for what, got, want in both(500, 8, 2, 3, True, torch.float32):
        assert float((got - want).abs().max() / want.abs().max()) < 1e-5, what
