"""The memory's space where no weights leave: foundation embeddings under a public orthogonal projection.

    u_i = l2norm(W x_i),   s[c,k] = sum over patients of 1/n sum over its n patches of z_ik u_i

x_i are the patches as the student takes them, W (S, D) orthonormal rows from a public seed: no weight of any student
is in it, so what is said of these sums does not depend on how anything was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from momkd_fl.config.federation import FederationConfig
from momkd_fl.data.cohort import Patient
from momkd_fl.federation.initialise import public_axes
from momkd_fl.federation.site_statistics import assign_by_class, genomic_assignment
from momkd_fl.model.memory import Memory
from momkd_fl.privacy.statistics import Assignment, MemoryStatistics, summed
from momkd_fl.training.sampling import Packer

Floats = NDArray[np.float64]


def public_statistics(
    config: FederationConfig, memory: Memory, packer: Packer, patients: Sequence[Patient], how: Assignment
) -> MemoryStatistics:
    """Histology sums and counts over ``patients``; those with genomics are assigned by their genome's anchor."""
    if memory.slots is None:
        return MemoryStatistics({}, {})
    slots = memory.slots.double().numpy()
    axes = _projection(config.model.memory_dim, config.encoder.dim, config.seed)
    labels = np.array([patient.label for patient in patients], np.int64)
    by_genome = genomic_assignment(memory, packer, patients, labels, how)
    total = MemoryStatistics({}, {})
    for row, patient in enumerate(patients):
        embedded = embed(packer.bag(patient)[0], axes)
        mass = np.full(len(embedded), 1.0 / len(embedded))
        label = np.full(len(embedded), labels[row])
        if np.isnan(by_genome[row, 0]):
            weights = assign_by_class(embedded, slots, label, how, mass)
        else:
            weights = by_genome[row][None] * mass[:, None]
        total += summed("histology", embedded, weights, label, len(slots))
    return total


def embed(features: NDArray[np.float32], axes: Floats) -> Floats:
    """Features (P, D) as unit vectors (P, S)."""
    projected = features.astype(np.float64) @ axes.T
    length = np.linalg.norm(projected, axis=1, keepdims=True)
    return np.asarray(projected / np.maximum(length, 1e-12))


@lru_cache(maxsize=4)
def _projection(dim: int, dim_in: int, seed: int) -> Floats:
    return public_axes(dim, dim_in, seed).astype(np.float64)
