"""The MoMKD student: histology branch, memory attention, genomic branch, and its losses (METHOD sections 2-5)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_fl.model import losses
from momkd_fl.model.batch import PackedBags, segment_softmax, segment_sum
from momkd_fl.model.genomics import GenomicBranch
from momkd_fl.model.histology import HistologyEncoder
from momkd_fl.model.memory import Memory

TAU_INIT, TAU_MIN, TAU_MAX = 0.2, 0.01, 2.0
MATHEMATICS = 1
"""Raised whenever the same weights would mean another function; part of the architecture's hash."""


@dataclass(frozen=True)
class StudentShape:
    """All that determines the student's tensors. ``genes`` and ``anchor_dim`` are None without genomics."""

    dim_in: int
    hidden: int
    heads: int
    memory_dim: int
    neighbours: int
    classes: int
    slots: int
    genes: int | None
    anchor_dim: int | None
    dropout: float
    architecture: Literal["momkd", "gated_attention"] = "momkd"
    memory_mode: Literal["anchors", "momentum", "gradient", "frozen"] = "anchors"
    decoupled: bool = True


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; METHOD section 4's are the defaults.

    ``match_labels``, ``batch`` and ``logits`` are what the method is compared with: matching by class alone,
    batch-local alignment, and a teacher's logits. ``soft_labels`` is the share of the label that a teacher's class
    probabilities replace where there is genomics.
    """

    classification: float = 0.5
    memory: float = 0.1
    align_histology: float = 0.2
    align_genomics: float = 0.05
    reconstruction: float = 0.05
    match: float = 0.5
    margin: float = 0.3
    match_temperature: float = 0.1
    match_labels: bool = False
    batch: float = 0.0
    batch_distance: Literal["cosine", "mse"] = "cosine"
    logits: float = 0.0
    logits_temperature: float = 2.0
    soft_labels: float = 0.0


@dataclass(frozen=True)
class Output:
    """What a forward pass gives for B patients with N patches.

    Attributes
    ----------
    logits : (B, C)
    attention : (N, 1), or (N, C) for more than two classes; sums to 1 over each patient's patches
    patches : (N, S) unit patch embeddings, None where the student has no projected space
    slide : (B, S) unit embedding of the pooled slide, None likewise
    anchor : (B, A) unit embedding of the slide in the genomic space, None without anchors
    genome : (M, S) unit embeddings of the M patients with genomics, None without a genomic branch
    rebuilt : (M, G) reconstruction of their panels, None likewise
    """

    logits: Tensor
    attention: Tensor
    patches: Tensor | None = None
    slide: Tensor | None = None
    anchor: Tensor | None = None
    genome: Tensor | None = None
    rebuilt: Tensor | None = None


class Student(nn.Module):
    """What both architectures share: the head in the genomic space and the terms that any student may have."""

    anchor_head: nn.Linear | None

    def __init__(self, shape: StudentShape) -> None:
        super().__init__()
        self.shape = shape

    def anchor_embedding(self, pooled: Tensor) -> Tensor | None:
        """Pooled slides (B, D) in the genomic space, (B, A); None without anchors."""
        return None if self.anchor_head is None else F.normalize(self.anchor_head(pooled), dim=-1)

    def add_anchor_head(self) -> None:
        """Draw the head last: with one seed, a student with and one without genomics start as the same student."""
        self.anchor_head = nn.Linear(self.shape.hidden, self.shape.anchor_dim) if self.shape.anchor_dim else None

    def shared_terms(
        self, output: Output, batch: PackedBags, memory: Memory, weights: LossWeights
    ) -> dict[str, Tensor]:
        """Weighted classification and slot matching; patients without genomics have no part in the second."""
        rows = batch.gene_rows
        if weights.soft_labels and batch.teacher is not None:
            classified = losses.softened_classification(
                output.logits, batch.labels, batch.teacher, rows, weights.soft_labels
            )
        else:
            classified = F.cross_entropy(output.logits, batch.labels)
        terms = {"classification": weights.classification * classified}
        if batch.genes is None or not len(rows):
            return terms
        share = len(rows) / batch.patients
        if output.anchor is not None and memory.anchors is not None and memory.space is not None:
            student, genome = output.anchor[rows], memory.space.embed(batch.genes[rows])
            anchors, temperature = memory.anchors.detach(), weights.match_temperature
            if weights.match and weights.match_labels:
                matched = losses.class_matching(student, batch.labels[rows], anchors, temperature)
                terms["match"] = weights.match * share * matched
            elif weights.match:
                terms["match"] = weights.match * share * losses.slot_matching(student, genome, anchors, temperature)
            if weights.batch and weights.batch_distance == "mse":
                terms["batch"] = weights.batch * share * losses.squared_distance(student, genome)
        if weights.logits and batch.teacher is not None:
            taught = losses.taught(output.logits[rows], batch.teacher[rows], weights.logits_temperature)
            terms["logits"] = weights.logits * share * taught
        return terms


class MoMKD(Student):
    """The student of METHOD sections 2-4 on packed bags.

    With ``memory_mode='gradient'`` the slots are a parameter, as released; in every other mode they come with the
    memory and no loss reaches them.
    """

    def __init__(self, shape: StudentShape) -> None:
        super().__init__(shape)
        self.encoder = HistologyEncoder(shape.dim_in, shape.hidden, shape.heads, shape.dropout)
        self.patch_projection = nn.Linear(shape.hidden, shape.memory_dim)
        self.slide_projection = nn.Linear(shape.hidden, shape.memory_dim)
        self.tau = nn.Parameter(torch.tensor(TAU_INIT))
        self.classifier = nn.Sequential(
            nn.LayerNorm(shape.hidden),
            nn.Linear(shape.hidden, shape.hidden),
            nn.ReLU(),
            nn.Dropout(shape.dropout),
            nn.Linear(shape.hidden, shape.classes),
        )
        if shape.memory_mode == "gradient":
            directions = F.normalize(torch.randn(shape.classes, shape.slots, shape.memory_dim), dim=-1)
            self.slots = nn.Parameter(directions)
        self.add_anchor_head()
        self.genomics = GenomicBranch(shape.genes, shape.hidden, shape.memory_dim) if shape.genes else None

    def slots_of(self, memory: Memory) -> Tensor:
        """Unit slots (C, K, S): the memory's, or this student's own."""
        if self.shape.memory_mode == "gradient":
            return F.normalize(self.slots, dim=-1)
        if memory.slots is None:
            raise ValueError("this student needs a memory with slots")
        return memory.slots.detach()

    def forward(self, batch: PackedBags, memory: Memory) -> Output:
        """One pass over packed bags, the same in training and inference."""
        features = self.encoder(batch.features, batch.neighbours)
        patches = self.project(features)
        attention = self.attend(patches, memory, batch)
        pooled = torch.stack(
            [segment_sum(attention[:, [a]] * features, batch.bag, batch.patients) for a in range(attention.shape[1])],
            dim=1,
        )
        return self.decide(pooled, attention, patches, batch)

    def project(self, features: Tensor) -> Tensor:
        """Contextual features (N, D) as unit patch embeddings (N, S)."""
        return F.normalize(self.patch_projection(features).to(self.tau.dtype), dim=-1)

    def decide(self, pooled: Tensor, attention: Tensor, patches: Tensor | None, batch: PackedBags) -> Output:
        """The output of bags pooled under each attention, (B, A, D)."""
        scores = self.classifier(pooled)
        mean = pooled.mean(dim=1)
        genome, rebuilt = None, None
        if self.genomics is not None and batch.genes is not None:
            genome, rebuilt = self.genomics(batch.genes[batch.gene_rows])
        return Output(
            logits=scores[:, 0] if self.shape.classes == 2 else scores.diagonal(dim1=1, dim2=2),
            attention=attention,
            patches=patches,
            slide=F.normalize(self.slide_projection(mean), dim=-1),
            anchor=self.anchor_embedding(mean),
            genome=genome,
            rebuilt=rebuilt,
        )

    def temperature(self) -> Tensor:
        """tau within its bounds; the gradient passes, so that a tau that ran out of them can come back."""
        return self.tau + (self.tau.clamp(TAU_MIN, TAU_MAX) - self.tau).detach()

    def loss(self, output: Output, batch: PackedBags, memory: Memory, weights: LossWeights) -> dict[str, Tensor]:
        """The weighted terms; their sum is the loss. A missing modality has no terms."""
        if output.patches is None or output.slide is None:
            raise ValueError("this output is not of a MoMKD student")
        slots = self.slots_of(memory)
        terms = self.shared_terms(output, batch, memory, weights)
        stay = losses.commitment(output.patches, batch.bag, batch.patches, batch.labels, slots, self.shape.decoupled)
        if self.shape.memory_mode == "gradient":
            stay = stay + losses.orthogonality(slots, batch.labels)
        terms["memory"] = weights.memory * stay
        terms["align_histology"] = weights.align_histology * losses.alignment(
            output.slide, batch.labels, slots, weights.margin
        )
        if output.genome is not None and output.rebuilt is not None and batch.genes is not None and len(output.genome):
            rows = batch.gene_rows
            share = len(rows) / batch.patients
            aligned = losses.alignment(output.genome, batch.labels[rows], slots, weights.margin)
            terms["align_genomics"] = weights.align_genomics * share * aligned
            rebuilt = losses.reconstruction(output.rebuilt, batch.genes[rows])
            terms["reconstruction"] = weights.reconstruction * share * rebuilt
            if weights.batch and weights.batch_distance == "cosine":
                drawn = losses.cosine_distance(output.slide[rows], output.genome.detach())
                terms["batch"] = weights.batch * share * drawn
        return terms

    def attend(self, patches: Tensor, memory: Memory, batch: PackedBags) -> Tensor:
        """softmax over each bag of :meth:`contrast`: (N, 1), or (N, C) for C > 2."""
        return segment_softmax(self.contrast(patches, memory), batch.bag, batch.patients)

    def contrast(self, patches: Tensor, memory: Memory) -> Tensor:
        """(best slot of the class - best slot of any other) / tau: (N, 1), or (N, C) for C > 2.

        In fp32 whatever the products are taken in: at tau = 0.01 bf16's rounding would move weights by half.
        """
        slots = self.slots_of(memory)
        if self.shape.decoupled:
            slots = slots.detach()
        with torch.autocast(patches.device.type, enabled=False):
            best = torch.einsum("ns,cks->nck", patches, slots).amax(dim=-1)
        if self.shape.classes == 2:
            contrast = best[:, 1:] - best[:, :1]
        else:
            others = best[:, None, :].masked_fill(torch.eye(best.shape[1], dtype=torch.bool, device=best.device), -2.0)
            contrast = best - others.amax(dim=-1)
        return contrast / self.temperature()


def branch_of(name: str) -> Literal["histology", "genomics"]:
    """The branch a weight belongs to; the genomic one is averaged over genomic sites only.

    The head into the genomic space is among it: only patients with genomics train it.
    """
    return "genomics" if name.startswith(("genomics.", "anchor_head.")) else "histology"


def weights(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The model's weights by name, float32 copies on the CPU."""
    return {name: value.detach().cpu().float().numpy().copy() for name, value in model.state_dict().items()}


def load_weights(model: nn.Module, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Put weights back, in place, exactly the names the model has."""
    model.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in tensors.items()}, strict=True)


def architecture_hash(shape: StudentShape) -> str:
    """SHA-256 of everything that gives the weights their meaning."""
    described = {**asdict(shape), "mathematics": MATHEMATICS}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
