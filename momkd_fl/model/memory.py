"""The memory of class prototypes, as the student sees it, and how embeddings are assigned to its slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SMOOTHNESS = 5.0
"""Sharpness of the smooth maximum over slots (METHOD section 4)."""
GENE_NORM_PER_SQRT_GENE = 1.5
"""A patient's z-scores are clipped to the norm 1.5 sqrt(G): one patient's influence on any sum is bounded."""
AXIS_LIMIT = 3.0
SPACE = ("mean", "scale", "axes", "sd")
"""Arrays that place a genome; what else a run fixed at its start travels beside them."""


@dataclass(frozen=True)
class GenomicSpace:
    """The fixed genomic space (METHOD section 10): it depends on no weight and on no label.

    Attributes
    ----------
    mean, scale : (G,) of each gene over the federation
    axes : (A, G) leading axes of the panel's second moment
    sd : (A,) standard deviation along them
    """

    mean: Tensor
    scale: Tensor
    axes: Tensor
    sd: Tensor

    def embed(self, z: Tensor) -> Tensor:
        """g = l2norm(clip(W z / sd, +-3)); z-scores (B, G) to unit vectors (B, A)."""
        return F.normalize(self.coordinates(z), dim=-1)

    def coordinates(self, z: Tensor) -> Tensor:
        """clip(W z / sd, +-3): z-scores (B, G) along the axes, (B, A)."""
        return (z @ self.axes.T / self.sd).clamp(-AXIS_LIMIT, AXIS_LIMIT)


def gene_scores(values: NDArray[np.float32], mean: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.float32]:
    """Z-scores of a patient's panel (G,), clipped in norm."""
    z = (values - mean) / scale
    limit = GENE_NORM_PER_SQRT_GENE * np.sqrt(len(z))
    return np.asarray(z * min(1.0, limit / max(float(np.linalg.norm(z)), 1e-12)), np.float32)


@dataclass(frozen=True)
class Memory:
    """What a round's losses refer to; nothing here is a parameter and no gradient reaches it.

    Attributes
    ----------
    slots : (C, K, S) unit vectors shared by both modalities; None where the student has none or trains its own
    anchors : (C, K, A) unit vectors in the genomic space; None without genomics
    space : the genomic space; None without genomics
    """

    slots: Tensor | None = None
    anchors: Tensor | None = None
    space: GenomicSpace | None = None

    @classmethod
    def from_arrays(cls, memory: Mapping[str, NDArray[Any]], space: Mapping[str, NDArray[Any]]) -> Memory:
        """From the arrays of messages and checkpoints."""

        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.tensor(np.asarray(array, np.float32))

        return cls(
            slots=tensor(memory["slots"]) if "slots" in memory else None,
            anchors=tensor(memory["anchors"]) if "anchors" in memory else None,
            space=GenomicSpace(**{name: tensor(space[name]) for name in SPACE}) if "axes" in space else None,
        )

    def to(self, device: torch.device) -> Memory:
        """The same memory on another device."""

        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        space = self.space and GenomicSpace(**{name: value.to(device) for name, value in vars(self.space).items()})
        return Memory(moved(self.slots), moved(self.anchors), space)


def smooth_maximum(embeddings: Tensor, slots: Tensor) -> Tensor:
    """phi(f, C) = 1/5 ln sum_k exp(5 f.c_k): embeddings (B, S), slots (C, K, S) to (B, C)."""
    similarity = torch.einsum("bs,cks->bck", embeddings, slots)
    return torch.logsumexp(SMOOTHNESS * similarity, dim=-1) / SMOOTHNESS


def slot_distribution(embeddings: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """Log-probabilities over the slots of all classes: embeddings (B, A), anchors (C, K, A) to (B, C * K)."""
    return torch.log_softmax(embeddings @ anchors.flatten(0, 1).T / temperature, dim=-1)


def effective_patches(attention: Tensor, bag: Tensor, patients: int) -> Tensor:
    """exp of the entropy of each patient's attention, mean over patients: () float."""
    share = attention.mean(dim=1)
    entropy = -(share * share.clamp_min(1e-12).log())
    per_patient = torch.zeros(patients, device=share.device).index_add(0, bag, entropy)
    return per_patient.exp().mean()
