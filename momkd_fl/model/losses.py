"""The losses of METHOD section 4 and the slot matching of section 10, each a function of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from momkd_fl.model.batch import segment_mean
from momkd_fl.model.memory import slot_distribution, smooth_maximum

ALIGN_SCALE = 20.0
ORTHOGONALITY_WEIGHT = 10.0


def alignment(embeddings: Tensor, labels: Tensor, slots: Tensor, margin: float) -> Tensor:
    """softplus(20 (m - (phi_y - best other phi))), mean over patients.

    For two classes this is softplus(20 (m - (2y - 1) delta)). Shapes: embeddings (B, S), slots (C, K, S).
    """
    phi = smooth_maximum(embeddings, slots)
    own = phi.gather(1, labels[:, None])[:, 0]
    others = phi.scatter(1, labels[:, None], -torch.inf)
    return F.softplus(ALIGN_SCALE * (margin - (own - others.amax(dim=1)))).mean()


def commitment(
    patches: Tensor, bag: Tensor, counts: Tensor, labels: Tensor, slots: Tensor, decoupled: bool = True
) -> Tensor:
    """MSE between each patch and the nearest slot of its bag's class, by cosine; mean by patient.

    Shapes: patches (N, S) unit vectors, counts (B,) patches per patient, slots (C, K, S), which get no gradient where
    they are ``decoupled``.
    """
    per_class = slots.detach() if decoupled else slots
    similarity = torch.einsum("ns,cks->nck", patches, per_class)
    own = similarity[torch.arange(len(bag), device=bag.device), labels[bag]]
    nearest = per_class[labels[bag], own.detach().argmax(dim=1)]
    return segment_mean((patches - nearest).square().mean(dim=1), bag, counts).mean()


def orthogonality(slots: Tensor, labels: Tensor) -> Tensor:
    """10 (sum_jk cos^2(c_j, c_k) / K^2 - 1/K) of the classes present, mean over patients; gradient memory only."""
    unit = F.normalize(slots[labels], dim=-1)
    gram = unit @ unit.transpose(1, 2)
    slots_per_class = slots.shape[1]
    return ORTHOGONALITY_WEIGHT * (gram.square().mean(dim=(1, 2)) - 1.0 / slots_per_class).mean()


def slot_matching(student: Tensor, genome: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """-sum q log p: where among the anchors of *all* classes a patient lies, from its genome (no gradient).

    Shapes: student and genome (B, A) unit vectors of patients with genomics, anchors (C, K, A).
    """
    target = slot_distribution(genome, anchors, temperature).exp().detach()
    return -(target * slot_distribution(student, anchors, temperature)).sum(dim=1).mean()


def class_matching(student: Tensor, labels: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """:func:`slot_matching` towards the anchors of a patient's own class, all alike: what labels alone would teach."""
    classes, per_class, _ = anchors.shape
    found = slot_distribution(student, anchors, temperature).view(-1, classes, per_class)
    return -found[torch.arange(len(labels), device=labels.device), labels].mean(dim=1).mean()


def cosine_distance(student: Tensor, genome: Tensor) -> Tensor:
    """1 - cosine of unit vectors (B, S), mean over patients."""
    return (1.0 - (student * genome).sum(dim=1)).mean()


def squared_distance(student: Tensor, genome: Tensor) -> Tensor:
    """Squared distance of unit vectors (B, A), mean over patients."""
    return (student - genome).square().sum(dim=1).mean()


def taught(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the cross-entropy of softened logits (B, C) to the teacher's (Hinton et al., arXiv 1503.02531)."""
    target = torch.softmax(teacher / temperature, dim=1)
    return -(temperature**2) * (target * torch.log_softmax(logits / temperature, dim=1)).sum(dim=1).mean()


def softened_classification(logits: Tensor, labels: Tensor, teacher: Tensor, rows: Tensor, share: float) -> Tensor:
    """Cross-entropy of logits (B, C), mean over patients; ``rows`` learn (1 - share) label + share softmax(teacher).

    The teacher's logits (B, C) are read at ``rows`` (M,) alone; every other patient keeps its label whole.
    """
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    taught_by = torch.softmax(teacher[rows].detach().to(logits.dtype), dim=1)
    softened = torch.lerp(target[rows], taught_by, share)
    return F.cross_entropy(logits, target.index_copy(0, rows, softened))


def reconstruction(rebuilt: Tensor, z: Tensor) -> Tensor:
    """MSE between the panel's z-scores (B, G) and their reconstruction."""
    return F.mse_loss(rebuilt, z)
