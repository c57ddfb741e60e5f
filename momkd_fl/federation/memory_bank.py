"""The coordinator's memory: slots moved by momentum, one direction per modality (METHOD section 8).

    M_{t+1}[c,k] = l2norm( mu M_t[c,k] + (1 - mu) (w_g u_g + w_h u_h) ),   u_m = l2norm(sum over sites of s_m[c,k])

Counts only gate: a slot whose summed count in a modality is under the minimum ignores that modality, and a slot
that no modality moves keeps its value. One direction per modality means that many histology-only sites cannot
drown the genomic one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Sums = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Movement:
    """How one update moved the memory.

    ``slot_movement_rad`` is the mean angle between old and new slots, ``moved_share`` the share of slots that any
    modality moved, ``effective_slots`` exp of the entropy of the summed histology counts, mean over classes, and
    ``slot_cosine`` the mean cosine between slots of one class: near 1, they have collapsed, whatever the counts say.
    """

    slot_movement_rad: float
    moved_share: float
    effective_slots: float
    slot_cosine: float


def move_slots(
    slots: NDArray[np.float32],
    sums: Sums,
    counts: Sums,
    *,
    momentum: float,
    genomic_weight: float,
    min_count: float | Mapping[str, float],
) -> tuple[NDArray[np.float32], Movement]:
    """One momentum step.

    Parameters
    ----------
    slots : (C, K, S) unit vectors
    sums, counts : mapping of modality (``histology``, ``genomics``) to (C, K, S) and (C, K)
        Sums over all sites, for the modalities that any site has.
    momentum, genomic_weight, min_count
        mu, w_g (w_h = 1 - w_g) and the smallest summed count that moves a slot, one for all modalities or by modality.
    """
    classes, per_class, _ = slots.shape
    direction = np.zeros(slots.shape, np.float64)
    total = np.zeros((classes, per_class, 1))
    for modality, weight in (("histology", 1.0 - genomic_weight), ("genomics", genomic_weight)):
        if modality not in sums:
            continue
        norm = np.linalg.norm(sums[modality], axis=-1, keepdims=True)
        present = moving(sums, counts, modality, min_count)[..., None]
        direction += weight * np.where(present, sums[modality] / np.maximum(norm, 1e-12), 0.0)
        total += weight * present
    moved = (total[..., 0] > 0) & (momentum < 1.0)  # a frozen slot is not even rounded
    mixed = momentum * slots + (1.0 - momentum) * direction / np.maximum(total, 1e-12)
    length = np.linalg.norm(mixed, axis=-1, keepdims=True)
    new = np.where(moved[..., None] & (length > 1e-6), mixed / np.maximum(length, 1e-6), slots).astype(np.float32)
    cosine = np.clip(np.sum(new.astype(np.float64) * slots, axis=-1), -1.0, 1.0)
    movement = Movement(
        float(np.arccos(cosine).mean()), float(moved.mean()), effective_slots(counts["histology"]), slot_cosine(new)
    )
    return new, movement


def moving(sums: Sums, counts: Sums, modality: str, min_count: float | Mapping[str, float]) -> NDArray[np.bool_]:
    """Which slots (C, K) a modality's sums move: those with the least count and any direction."""
    least = min_count[modality] if isinstance(min_count, Mapping) else min_count
    return np.asarray((counts[modality] >= least) & (np.linalg.norm(sums[modality], axis=-1) > 1e-12))


def slot_cosine(slots: NDArray[np.float32]) -> float:
    """Mean cosine between different slots of one class; 0 where a class has one slot."""
    _, per_class, _ = slots.shape
    if per_class < 2:
        return 0.0
    gram = slots @ slots.transpose(0, 2, 1)
    return float((gram.sum(axis=(1, 2)) - per_class).mean() / (per_class * (per_class - 1)))


def effective_slots(counts: NDArray[np.float64]) -> float:
    """exp of the entropy of each class's counts (C, K), mean over the classes that have any."""
    per_class = []
    for row in counts:
        if row.sum() > 0:
            share = row[row > 0] / row.sum()
            per_class.append(float(np.exp(-(share * np.log(share)).sum())))
    return float(np.mean(per_class)) if per_class else 0.0
