"""DP-SGD by patient: one example is one patient with all its slides (Abadi and others 2016).

Each step takes every patient with the same probability, independently; each one's gradient is clipped, rounded towards
zero to a grid and added up in whole numbers; noise is added and the sum divided by the *expected* number of patients,
so that how many there were does not show. An empty step gives noise, like any other.

Class-balanced sampling, early stopping on private patients and a memory that changes within a round break the
accounting; what steps cost is :class:`~momkd_fl.privacy.accountant.PoissonSteps`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from momkd_fl.privacy.accountant import PoissonSteps
from momkd_fl.privacy.noise import Integers, RandomBytes, rounded_gaussian

GRID_BITS = 24
"""A gradient as long as the clip has 2^24 grid steps: fine enough for its millions of small parts."""
_INSIDE = 1 - 2.0**-40

Patient = TypeVar("Patient")


@dataclass(frozen=True)
class Steps:
    """How a site trains privately: public, fixed before the first step.

    Attributes
    ----------
    sigma : noise multiplier; noise has deviation sigma * clip
    rate : probability q with which each patient is in a step
    clip : largest L2 norm of one patient's gradient
    patients_expected : q times a *public* number of patients, not the site's exact one
    """

    sigma: float
    rate: float
    clip: float
    patients_expected: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) and x > 0 for x in (self.clip, self.patients_expected)):
            raise ValueError("clip and patients_expected must be above 0")
        self.charge(1)

    def charge(self, steps: int) -> PoissonSteps:
        """What ``steps`` of these cost."""
        return PoissonSteps(self.sigma, self.rate, steps)


def poisson_sample(patients: int, rate: float, random_bytes: RandomBytes = os.urandom) -> list[int]:
    """The rows in one step: each of ``patients`` with probability ``rate``, rounded down to 2^-53; possibly none."""
    words = np.frombuffer(random_bytes(8 * patients), "<u8") >> np.uint64(11)
    return [int(row) for row in np.flatnonzero(words < int(rate * 2.0**53))]


def private_gradients(
    parameters: Sequence[Tensor],
    sampled: Iterable[Patient],
    loss_of: Callable[[Patient], Tensor],
    steps: Steps,
    random_bytes: RandomBytes = os.urandom,
) -> list[Tensor]:
    """The private mean gradient of one step, in the shapes, types and places of ``parameters``.

    One patient at a time: memory is that of one patient's bag, whatever number is sampled. ``loss_of`` must look at
    nothing of another patient: no batch statistics, no contrast within a batch, no mean over the patients. A
    gradient that is not finite counts as zero: to fail on it would tell.

    Parameters
    ----------
    parameters : those that are trained; ones the loss does not reach get noise as well
    sampled : as drawn by :func:`poisson_sample`
    loss_of : the scalar loss of one patient
    """
    size = sum(each.numel() for each in parameters)
    total = np.zeros(size, np.int64)
    for patient in sampled:
        found = torch.autograd.grad(loss_of(patient), list(parameters), allow_unused=True)
        total += _clipped(found, parameters, steps.clip)
    noisy = total + rounded_gaussian(size, steps.sigma * (1 << GRID_BITS), random_bytes)
    mean = torch.from_numpy(noisy.astype(np.float64) * (steps.clip * 2.0**-GRID_BITS / steps.patients_expected))
    ends = np.cumsum([each.numel() for each in parameters])
    return [
        mean[end - each.numel() : end].reshape(each.shape).to(each) for end, each in zip(ends, parameters, strict=True)
    ]


def _clipped(found: Sequence[Tensor | None], parameters: Sequence[Tensor], clip: float) -> Integers:
    """One patient's gradient in grid steps of clip / 2^24: as whole numbers its norm is at most 2^24, exactly."""
    flat = torch.cat(
        [
            torch.zeros(each.numel(), dtype=torch.float64) if part is None else part.detach().double().cpu().ravel()
            for part, each in zip(found, parameters, strict=True)
        ]
    ).numpy()
    if not np.isfinite(flat).all():
        return np.zeros(len(flat), np.int64)
    scaled = flat / clip
    norm = float(np.linalg.norm(scaled))
    if not math.isfinite(norm):
        return np.zeros(len(flat), np.int64)
    whole = np.trunc(scaled * ((1 << GRID_BITS) * _INSIDE / max(1.0, norm))).astype(np.int64)
    if int(whole @ whole) > 1 << 2 * GRID_BITS:
        raise AssertionError("a patient's gradient is over the bound that the noise was chosen for")
    return whole
