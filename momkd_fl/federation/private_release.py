"""A site's private releases: one vector a patient, each made without a look at any other patient, and noise.

A patient's vector must not depend on the others, or the noise would be too small for what one patient moves. So every
patient is embedded alone (in a shared pack even the rounding of a product may depend on the company), assigned hard,
and scaled by public numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from momkd_fl.config.federation import FederationConfig
from momkd_fl.data.cohort import Patient
from momkd_fl.federation.private_plan import (
    Part,
    PrivatePlan,
    anchors_release,
    means_release,
    private_plan,
    slots_release,
)
from momkd_fl.federation.public_space import public_statistics
from momkd_fl.federation.site_statistics import anchor_statistics, genomes, memory_statistics
from momkd_fl.model.memory import Memory
from momkd_fl.privacy.accountant import Charge
from momkd_fl.privacy.dpsgd import Steps, poisson_sample, private_gradients
from momkd_fl.privacy.mechanism import Release, contribution, noisy_sum
from momkd_fl.privacy.noise import RandomBytes
from momkd_fl.privacy.statistics import MemoryStatistics
from momkd_fl.training.loop import Model
from momkd_fl.training.private_loop import Bag
from momkd_fl.training.sampling import Packer

NOTHING = MemoryStatistics({}, {})
"""What a patient without the modality contributes: zeros, to which the noise is added all the same."""


@dataclass(frozen=True)
class NoisyGradients:
    """DP-SGD as the training loop takes it."""

    steps: Steps
    random_bytes: RandomBytes

    def sample(self, patients: int) -> list[int]:
        """Rows of one step's patients, by Poisson sampling."""
        return poisson_sample(patients, self.steps.rate, self.random_bytes)

    def mean(self, parameters: Sequence[Tensor], bags: Iterable[Bag], loss_of: Callable[[Bag], Tensor]) -> list[Tensor]:
        """The private mean gradient of one step."""
        return private_gradients(parameters, bags, loss_of, self.steps, self.random_bytes)


@dataclass
class PrivateSite:
    """The private releases of one site in one run; ``charges`` are those of what was made since they were taken.

    Parameters
    ----------
    random_bytes : the noise's source; only an audit replaces it
    """

    config: FederationConfig
    random_bytes: RandomBytes = os.urandom
    plan: PrivatePlan = field(init=False)
    charges: list[Charge] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = private_plan(self.config)

    def take_charges(self) -> tuple[Charge, ...]:
        """The charges of what was made since the last call, for the budget to debit before anything is sent."""
        taken, self.charges = tuple(self.charges), []
        return taken

    def gene_means(self, patients: Sequence[Patient], genes: int) -> MemoryStatistics:
        """Part ``means``, (1, 1, G): sums of (x - centre) / range, clipped to [-1, 1], over sqrt(G): norm <= 1."""
        privacy = self.config.privacy

        def of(patient: Patient) -> MemoryStatistics:
            if patient.genes is None:
                return NOTHING
            place = (np.asarray(patient.genes, np.float64) - privacy.gene_centre) / privacy.gene_range
            unit = np.clip(place, -1.0, 1.0) / np.sqrt(genes)
            return MemoryStatistics({"means": unit[None, None]}, {"means": np.ones((1, 1))})

        return self._released("means", patients, of, means_release(self.config, self._sigma, genes))

    def anchors(
        self, anchors: NDArray[np.float64], memory: Memory, packer: Packer, patients: Sequence[Patient]
    ) -> MemoryStatistics:
        """One step of the anchors' k-means; no weight and no other patient has a part in it."""

        def of(patient: Patient) -> MemoryStatistics:
            embedded, rows = genomes(memory, packer, [patient])
            if not len(rows):
                return NOTHING
            return anchor_statistics(anchors, embedded, np.array([patient.label], np.int64), "hard")

        return self._released("anchors", patients, of, anchors_release(self.config, self._sigma, anchors.shape[-1]))

    def slots(
        self, model: Model, memory: Memory, packer: Packer, patients: Sequence[Patient], device: torch.device, *,
        genomic: bool,
    ) -> MemoryStatistics:  # fmt: skip
        """A round's sums. With ``share: memory``, of patches in the public space; else under the weights received."""
        alone = self.config.privacy.share == "memory"

        def of(patient: Patient) -> MemoryStatistics:
            if alone:
                return public_statistics(self.config, memory, packer, [patient], "hard")
            return memory_statistics(
                model, memory, packer, [patient], device, "hard",
                genomics=genomic, precision=self.config.training.score_precision,
            )  # fmt: skip

        release = slots_release(self.config, self._sigma, genomic=genomic and not alone)
        return self._released("slots", patients, of, release)

    def gradients(self) -> NoisyGradients | None:
        """How weights are trained; None without DP-SGD."""
        return None if self.plan.steps is None else NoisyGradients(self.plan.steps, self.random_bytes)

    def trained(self, steps: int) -> None:
        """Charge ``steps`` of DP-SGD, where there is any."""
        if self.plan.steps is not None:
            self.charges.append(self.plan.steps.charge(steps))

    @property
    def dtype(self) -> type[np.floating[Any]]:
        """Of what leaves: a share of noise stays exact, since a sum of rounded shares is not the rounded sum."""
        return np.float64 if self.plan.noise_sites > 1 else np.float32

    @property
    def _sigma(self) -> float:
        if self.plan.sigma is None:
            raise ValueError("this run's memory carries no noise")
        return self.plan.sigma

    def _released(
        self, part: Part, patients: Sequence[Patient], of: Callable[[Patient], MemoryStatistics], release: Release
    ) -> MemoryStatistics:
        vectors = (contribution([of(patient)], release) for patient in patients)
        noisy = noisy_sum(vectors, release, self.random_bytes)
        self.charges.append(self.plan.charge(part))
        return noisy
