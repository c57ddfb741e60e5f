"""Gated-attention MIL, the second architecture, and the one place that builds a student."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from momkd_fl.model.batch import PackedBags, segment_softmax, segment_sum
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import LossWeights, MoMKD, Output, Student, StudentShape


class GatedAttention(Student):
    """a_i = softmax_i( w (tanh(V h_i) * sigmoid(U h_i)) ), pooled and classified; no graph, no histology slots.

    Genomic knowledge reaches it through the anchors only. Source: Ilse et al., "Attention-based deep multiple
    instance learning", equation 9.
    """

    def __init__(self, shape: StudentShape) -> None:
        super().__init__(shape)
        self.embedding = nn.Sequential(nn.Linear(shape.dim_in, shape.hidden), nn.ReLU(), nn.Dropout(shape.dropout / 2))
        self.gates = nn.Linear(shape.hidden, shape.hidden)  # tanh half and sigmoid half, as one product
        self.score = nn.Linear(shape.hidden // 2, 1)
        self.classifier = nn.Sequential(nn.Dropout(shape.dropout / 2), nn.Linear(shape.hidden, shape.classes))
        self.add_anchor_head()

    def forward(self, batch: PackedBags, memory: Memory) -> Output:
        """One pass over packed bags; the graph is not looked at."""
        features = self.embedding(batch.features)
        left, right = self.gates(features).chunk(2, dim=-1)
        scores = self.score(torch.tanh(left) * torch.sigmoid(right))
        attention = segment_softmax(scores, batch.bag, batch.patients)
        pooled = segment_sum(attention * features, batch.bag, batch.patients)
        return self.decide(pooled, attention)

    def decide(self, pooled: Tensor, attention: Tensor) -> Output:
        """The output of pooled bags (B, D)."""
        return Output(self.classifier(pooled), attention, anchor=self.anchor_embedding(pooled))

    def loss(self, output: Output, batch: PackedBags, memory: Memory, weights: LossWeights) -> dict[str, Tensor]:
        """Classification, and slot matching where there are anchors."""
        return self.shared_terms(output, batch, memory, weights)


def build(shape: StudentShape, seed: int) -> MoMKD | GatedAttention:
    """A student with seeded initial weights; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MoMKD(shape) if shape.architecture == "momkd" else GatedAttention(shape)
