"""The histology branch: two graph attention layers over each patch's spatial neighbours (METHOD section 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_fl.model.neighbours import neighbour_attention

NEGATIVE_SLOPE = 0.2


class NeighbourAttention(nn.Module):
    """GATv2 over a fixed number of neighbours, as a dense (N, k + 1) index instead of edge lists.

    out_i = sum_j softmax_j( a . leaky_relu(W_l x_j + W_r x_i) ) W_l x_j + b,   j over i itself and its k nearest

    Shapes: x (N, dim_in), neighbours (N, k + 1) with -1 where there is none; result (N, dim_out), heads side by
    side. Source: Brody et al., "How attentive are graph attention networks?", equation 7.
    """

    def __init__(self, dim_in: int, dim_out: int, heads: int) -> None:
        super().__init__()
        if dim_out % heads:
            raise ValueError("dim_out must be a multiple of heads")
        self.source = nn.Linear(dim_in, dim_out)
        self.target = nn.Linear(dim_in, dim_out)
        self.attention = nn.Parameter(torch.empty(heads, dim_out // heads))
        self.bias = nn.Parameter(torch.zeros(dim_out))
        nn.init.xavier_uniform_(self.source.weight)
        nn.init.xavier_uniform_(self.target.weight)
        nn.init.xavier_uniform_(self.attention)

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """See the class."""
        mixed = neighbour_attention(self.source(x), self.target(x), self.attention, neighbours, NEGATIVE_SLOPE)
        return mixed + self.bias


class HistologyEncoder(nn.Module):
    """Contextual patch features.

    h1 = Drop(ELU(LN(GATv2(X)))) + W_r X;  h2 = Drop(ELU(LN(GATv2(h1)))) + h1;  F = max(h1, h2)
    """

    def __init__(self, dim_in: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.first = NeighbourAttention(dim_in, hidden, heads)
        self.first_norm = nn.LayerNorm(hidden)
        self.residual = nn.Linear(dim_in, hidden)
        self.second = NeighbourAttention(hidden, hidden, heads)
        self.second_norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, neighbours: Tensor) -> Tensor:
        """Features (N, D_in) and neighbours (N, k + 1) to contextual features (N, D)."""
        h1 = self.dropout(F.elu(self.first_norm(self.first(features, neighbours)))) + self.residual(features)
        h2 = self.dropout(F.elu(self.second_norm(self.second(h1, neighbours)))) + h1
        return torch.maximum(h1, h2)
