"""Steps of DP-SGD inside the training loop: one patient's gradient at a time, noise from whoever guards the site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from momkd_fl.data.cohort import Patient
from momkd_fl.model.batch import PackedBags
from momkd_fl.training.loader import training_packs
from momkd_fl.training.sampling import Packer

Bag = tuple[PackedBags, int]
"""One patient's pack and the seed of its dropout."""


class PatientGradients(Protocol):
    """Poisson sampling and the noisy mean gradient, as :mod:`momkd_fl.privacy.dpsgd` has them."""

    def sample(self, patients: int) -> list[int]:
        """Rows of one step's patients; possibly none."""
        ...

    def mean(self, parameters: Sequence[Tensor], bags: Iterable[Bag], loss_of: Callable[[Bag], Tensor]) -> list[Tensor]:
        """The private mean gradient of one step, shaped as ``parameters``."""
        ...


def private_steps(
    steps: int,
    patients: Sequence[Patient],
    packer: Packer,
    rng: np.random.Generator,
    max_patches: int | None,
    optimiser: torch.optim.Optimizer,
    gradients: PatientGradients,
    loss_of: Callable[[PackedBags], Tensor],
    device: torch.device,
) -> None:
    """``steps`` steps; the bags of all of them are read ahead in one line. Nothing is reported: it would leave.

    ``loss_of`` sees one patient's pack, so no term of it can compare patients.
    """
    parameters = [each for group in optimiser.param_groups for each in group["params"]]
    sampled = [gradients.sample(len(patients)) for _ in range(steps)]
    alone = [[patients[row]] for rows in sampled for row in rows]
    packs = training_packs(packer, patients, steps, 1, rng, max_patches, device, torch.float32, batches=alone)

    def seeded(bag: Bag) -> Tensor:
        torch.manual_seed(bag[1])
        return loss_of(bag[0])

    with closing(packs):
        for rows in sampled:
            found = gradients.mean(parameters, islice(packs, len(rows)), seeded)
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
            optimiser.step()
