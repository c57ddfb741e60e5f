"""A site's sums for the memory: outputs of the student over its training patients, joined with bounded statistics.

A patient's histology contribution is s[c,k] = sum_i a_i z_ik p_i over its patches, with attention a and assignment
z under the weights and memory that came with the round (METHOD section 8). Patients with genomics are assigned by
where their genome lies among the anchors of their class, so that histology slots share the anchors' indices
(METHOD section 10). Only the most attended patches count; their attention is made to sum to 1 again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from momkd_fl.data.cohort import Patient
from momkd_fl.model.memory import Memory
from momkd_fl.privacy.statistics import Assignment, MemoryStatistics, assign, summed
from momkd_fl.training.loop import Model, embed
from momkd_fl.training.precision import Precision
from momkd_fl.training.sampling import Packer

PATCHES_PER_PATIENT = 64
"""Most attended patches of a patient that form its contribution: bounds the site's memory, hardly its sums."""

Floats = NDArray[np.float64]


def memory_statistics(
    model: Model,
    memory: Memory,
    packer: Packer,
    patients: Sequence[Patient],
    device: torch.device,
    how: Assignment,
    *,
    genomics: bool,
    precision: Precision = "fp32",
) -> MemoryStatistics:
    """Sums over the site's training patients, in inference mode; ``genomics`` False leaves that modality out."""
    if memory.slots is None:
        return MemoryStatistics({}, {})
    slots = memory.slots.double().numpy()
    classes = len(slots)
    patch, mass, owner, genome, genome_owner = [], [], [], [], []
    done = 0
    for chosen, batch, output in embed(model, memory, packer, patients, device, precision):
        if output.patches is None:
            return MemoryStatistics({}, {})
        attention = output.attention.mean(dim=1).double().cpu().numpy()
        embedded = output.patches.double().cpu().numpy()
        for row, (start, end) in enumerate(itertools.pairwise(batch.starts)):
            inside = attention[start:end]
            top = np.argsort(-inside, kind="stable")[:PATCHES_PER_PATIENT]
            patch.append(embedded[start + top])
            mass.append(inside[top] / inside[top].sum())
            owner.append(np.full(len(top), done + row))
        if output.genome is not None and genomics:
            genome.append(output.genome.double().cpu().numpy())
            genome_owner.append(done + batch.gene_rows.cpu().numpy())
        done += len(chosen)
    labels = np.array([patient.label for patient in patients], np.int64)
    by_genome = genomic_assignment(memory, packer, patients, labels, how)
    rows, owners, masses = np.concatenate(patch), np.concatenate(owner), np.concatenate(mass)
    weights = assign_by_class(rows, slots, labels[owners], how, masses)
    known = ~np.isnan(by_genome[owners, 0])
    weights[known] = by_genome[owners[known]] * masses[known, None]
    total = summed("histology", rows, weights, labels[owners], classes)
    if genome:
        embedded, genome_owners = np.concatenate(genome), np.concatenate(genome_owner)
        theirs = by_genome[genome_owners]
        unknown = np.isnan(theirs[:, 0])
        theirs[unknown] = assign_by_class(embedded, slots, labels[genome_owners], how)[unknown]
        total += summed("genomics", embedded, theirs, labels[genome_owners], classes)
    return total


def anchor_statistics(
    anchors: Floats, embedded: Floats, labels: NDArray[np.int64], how: Assignment
) -> MemoryStatistics:
    """One iteration of the anchors' k-means: embedded (n, A) in the fixed space, anchors (C, K, A)."""
    weights = assign_by_class(embedded, anchors, labels, how)
    return summed("genomics", embedded, weights, labels, len(anchors))


def genomes(memory: Memory, packer: Packer, patients: Sequence[Patient]) -> tuple[Floats, NDArray[np.int64]]:
    """Embeddings (n, A) in the fixed space and the rows of ``patients`` they belong to."""
    found = [(row, packer.genes(patient)) for row, patient in enumerate(patients)]
    have = [(row, z) for row, z in found if z is not None]
    if not have or memory.space is None:
        return np.zeros((0, 0)), np.zeros(0, np.int64)
    z = torch.from_numpy(np.stack([z for _, z in have]))
    return memory.space.embed(z).double().numpy(), np.array([row for row, _ in have])


def genomic_assignment(
    memory: Memory, packer: Packer, patients: Sequence[Patient], labels: NDArray[np.int64], how: Assignment
) -> Floats:
    """(patients, K) assignment of each patient's genome to its class's anchors; NaN rows where there is none."""
    assert memory.slots is not None
    assigned = np.full((len(patients), memory.slots.shape[1]), np.nan)
    if memory.anchors is not None:
        embedded, rows = genomes(memory, packer, patients)
        if len(rows):
            assigned[rows] = assign_by_class(embedded, memory.anchors.double().numpy(), labels[rows], how)
    return assigned


def assign_by_class(
    embedded: Floats, slots: Floats, labels: NDArray[np.int64], how: Assignment, mass: Floats | None = None
) -> Floats:
    """Weights (n, K) of rows (n, dim), each among the slots of its class, (C, K, dim); a row sums to its mass."""
    weights = np.zeros((len(embedded), slots.shape[1]))
    for label in range(len(slots)):
        rows = labels == label
        if rows.any():
            weights[rows] = assign(embedded[rows], slots[label], how, None if mass is None else mass[rows])
    return weights
