"""Which patients make a step: class-balanced with replacement, seeded; and their bags as one pack."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from momkd_fl.data.cohort import Cohort, Patient
from momkd_fl.model.batch import PackedBags, pack
from momkd_fl.model.memory import gene_scores
from momkd_fl.training.resident import DeviceCache


class Packer:
    """Patients of one cohort as packs for the student.

    Parameters
    ----------
    cohort : Cohort
        On the agreed panel.
    mean, scale : (G,) or None
        Gene scaling of the federation; None where the student has no panel.
    resident : DeviceCache or None
        Bags that stay on the device between steps, and between the packers that are given the same cache.
    teacher : mapping of a patient's key to logits (C,), or None
    """

    def __init__(
        self,
        cohort: Cohort,
        mean: NDArray[np.float32] | None,
        scale: NDArray[np.float32] | None,
        resident: DeviceCache | None = None,
        teacher: Mapping[Hashable, NDArray[np.float32]] | None = None,
    ) -> None:
        self.cohort, self.mean, self.scale, self.resident = cohort, mean, scale, resident
        self.teacher = teacher

    def genes(self, patient: Patient) -> NDArray[np.float32] | None:
        """Z-scores of a patient's panel (G,), or None where it has none."""
        if patient.genes is None or self.mean is None or self.scale is None:
            return None
        return gene_scores(patient.genes, self.mean, self.scale)

    def pack(
        self, patients: Sequence[Patient], rng: np.random.Generator | None = None, max_patches: int | None = None
    ) -> PackedBags:
        """One pack; with ``max_patches``, bags that are larger are sampled (their graph stays inside the sample)."""
        bags = [self.bag(patient, rng, max_patches) for patient in patients]
        return pack(bags, *self.targets(patients))

    def bag(
        self, patient: Patient, rng: np.random.Generator | None = None, max_patches: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Features and neighbours of one patient, sampled where the bag is larger than ``max_patches``."""
        bag = self.cohort.bag(patient)
        if max_patches is not None and rng is not None and len(bag.features) > max_patches:
            return sample_patches(bag.features, bag.neighbours, max_patches, rng)
        return bag.features, bag.neighbours

    def targets(
        self, patients: Sequence[Patient]
    ) -> tuple[
        list[int | None],
        list[NDArray[np.float32] | None],
        int | None,
        list[NDArray[np.float32] | None] | None,
    ]:
        """Labels and genes of patients, the panel's size, and a teacher's logits, as a pack takes them."""
        genes = [self.genes(patient) for patient in patients]
        taught = None if self.teacher is None else [self.teacher.get(patient.key) for patient in patients]
        return [patient.label for patient in patients], genes, None if self.mean is None else len(self.mean), taught


def balanced_batches(
    patients: Sequence[Patient], steps: int, per_step: int, rng: np.random.Generator
) -> Iterator[list[Patient]]:
    """``steps`` batches in which every class is expected equally often (METHOD section 6)."""
    labels = np.array([patient.label for patient in patients])
    present, counts = np.unique(labels, return_counts=True)
    chance = (1.0 / (len(present) * counts))[np.searchsorted(present, labels)]
    for _ in range(steps):
        yield [patients[row] for row in rng.choice(len(patients), size=per_step, p=chance)]


def sample_patches(
    features: NDArray[np.float32], neighbours: NDArray[np.int32], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """A random ``count`` of a bag's patches, in their order; see :func:`sample_rows`."""
    kept, near = sample_rows(neighbours, count, rng)
    return features[kept], near


def sample_rows(
    neighbours: NDArray[np.int32], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A random ``count`` of a graph's rows, ascending, and their graph; neighbours outside the sample become -1.

    Patches are taken as whole neighbourhoods of random centres: of patches taken one by one, most would lose all
    their neighbours, and the graph layers would be trained on another kind of graph than they are used on.
    """
    reached = neighbours[rng.permutation(len(neighbours))[:count]].ravel()
    reached = reached[reached >= 0]
    first = np.unique(reached, return_index=True)[1]  # a centre reaches itself, so there are at least ``count``
    kept = np.sort(reached[np.sort(first)[:count]])
    place = np.full(len(neighbours) + 1, -1, np.int32)  # the last entry answers for the index -1
    place[kept] = np.arange(count, dtype=np.int32)
    return kept, place[neighbours[kept]]
