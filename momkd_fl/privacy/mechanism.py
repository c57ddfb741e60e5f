"""The private release of a memory's statistics: bounded patients, noise over all blocks, and what it is worth.

A release is one vector: for every part (a modality of a task), class and slot the sum of unit embeddings and, times
lambda, the count. One patient's vector has norm at most Delta = C sqrt(parts (1 + lambda^2)) (PRIVACY.md). It is
rounded *towards zero* to a grid of 2^-20, which lengthens no vector: the bound holds for the whole numbers as it is,
and is checked on them exactly.

One patient's vector must not depend on other patients. :func:`~momkd_fl.privacy.statistics.assign` keeps to that with
``hard`` only: ``soft`` takes its temperature, and ``balanced`` also its offsets, from all patients together.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from momkd_fl.privacy.noise import Integers, RandomBytes, discrete_gaussian
from momkd_fl.privacy.statistics import MemoryStatistics

GRID_BITS = 20
_INSIDE = 1 - 2.0**-40
"""Clipped vectors are shortened by this much, more than double precision errs, so that none is over the bound."""
_SCALE_MAX = 1024
MINIMUM_COUNT = 20
PUBLICATION_DEVIATIONS = 2.0
USEFUL_COSINE = 0.4
"""Below it a slot points mostly where the noise does: its noise is 2.3 times its signal."""
USEFUL_SHARE = 0.1
"""Below it the memory is as good as frozen: private, and of no use."""


@dataclass(frozen=True)
class Release:
    """What is released and how: public, the same at every site, fixed before any patient is looked at.

    Attributes
    ----------
    parts : name to (classes, slots, dim); a part is a modality, or a modality of a task. All parts leave together
    sigma : noise multiplier, see :func:`~momkd_fl.privacy.accountant.sigma_for`
    clip : C, the largest norm of a patient's embedding
    count_weight : lambda, how heavy counts are beside embeddings
    noise_sites : h; each site adds an h-th of the variance, so that the sum over h of them carries the whole
    joint_parts : parts that some other site of the sum releases together; shares are of the noise that those need
    """

    parts: Mapping[str, tuple[int, int, int]]
    sigma: float
    clip: float = 1.0
    count_weight: float = 0.5
    noise_sites: int = 1
    joint_parts: int = 0
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        positive = (self.sigma, self.clip, self.count_weight)
        if not self.parts or not all(math.isfinite(x) and x > 0 for x in positive):
            raise ValueError("a release has at least one part, and sigma, clip and count_weight above 0")
        if max(self.clip, self.count_weight) > _SCALE_MAX:
            raise ValueError(f"clip and count_weight of a release are at most {_SCALE_MAX}: whole numbers have 64 bits")
        if self.noise_sites < 1:
            raise ValueError("the noise of a release is made by at least one site")
        object.__setattr__(self, "names", tuple(sorted(self.parts)))

    @property
    def sensitivity(self) -> float:
        """Delta: how far one patient more or less moves the sum, in L2 norm."""
        return self.clip * math.sqrt(self._parts_together * (1 + self.count_weight**2))

    @property
    def _parts_together(self) -> int:
        return max(len(self.parts), self.joint_parts)

    @property
    def noise_sd(self) -> float:
        """Standard deviation of the noise that one site adds to each coordinate of a sum."""
        return self.sigma * self.sensitivity / math.sqrt(self.noise_sites)

    @property
    def count_sd(self) -> float:
        """Standard deviation of the noise that one site adds to a count, in patients."""
        return self.noise_sd / (self.count_weight * self.clip)

    @property
    def size(self) -> int:
        """Numbers in one release."""
        return sum(classes * slots * (dim + 1) for classes, slots, dim in self.parts.values())

    @property
    def sensitivity_squared_steps(self) -> Fraction:
        """Delta^2 in squared grid steps, exactly."""
        per_part = Fraction(self.clip) ** 2 * (1 + Fraction(self.count_weight) ** 2)
        return self._parts_together * per_part * (1 << 2 * GRID_BITS)

    @property
    def variance_steps(self) -> int:
        """(sigma Delta)^2 / h in squared grid steps, rounded up: of what one site adds."""
        return math.ceil(Fraction(self.sigma) ** 2 * self.sensitivity_squared_steps / self.noise_sites)


def contribution(slides: Sequence[MemoryStatistics], release: Release) -> Integers:
    """One patient's vector in grid steps: its slides averaged, clipped, rounded towards zero. Parts may be absent.

    Its norm is at most Delta whatever the slides hold, which is checked in whole numbers. What is not finite counts
    as zero: to fail on it would tell.

    Raises
    ------
    ValueError
        For no slide, a part that is not in the release, or another shape.
    """
    if not slides:
        raise ValueError("a patient has at least one slide")
    average = np.zeros(release.size)
    for slide in slides:
        average += _flat(slide, release) / len(slides)
    vector = np.trunc(average * (1 << GRID_BITS)).astype(np.int64)
    if sum(int(x) ** 2 for x in vector[vector != 0]) > release.sensitivity_squared_steps:
        raise AssertionError("a patient's vector is over the bound that the noise was chosen for")
    return vector


def noisy_sum(
    patients: Iterable[Integers], release: Release, random_bytes: RandomBytes = os.urandom
) -> MemoryStatistics:
    """The release: sum of :func:`contribution` over patients plus discrete Gaussian noise on every number of it.

    Empty blocks get noise as well, and no patient at all still gives a release. Each value is a whole number of grid
    steps (times 1/lambda for counts), so that no bit of it tells more than the accountant knows.
    """
    total = np.zeros(release.size, np.int64)
    for vector in patients:
        total += vector
    noisy = total + discrete_gaussian(release.size, release.variance_steps, random_bytes)
    return _unflattened(noisy.astype(np.float64) * 2.0**-GRID_BITS, release)


def publication_threshold(release: Release, sites: int = 1, minimum_count: float = MINIMUM_COUNT) -> float:
    """The noisy count, summed over ``sites``, from which a slot may move: the minimum plus two deviations."""
    return minimum_count + PUBLICATION_DEVIATIONS * release.count_sd * math.sqrt(sites)


def published(
    noisy: MemoryStatistics, release: Release, sites: int = 1, minimum_count: float = MINIMUM_COUNT
) -> dict[str, NDArray[np.bool_]]:
    """Which slots (classes, slots) of each part may move. Post-processing of the release: it costs nothing."""
    threshold = publication_threshold(release, sites, minimum_count)
    return {part: noisy.counts[part] >= threshold for part in release.names}


@dataclass(frozen=True)
class Worth:
    """What to expect of one slot of one release.

    Attributes
    ----------
    cosine : mean cosine between the noisy and the true direction
    noise_to_signal : noise's norm over the true sum's
    released : probability that the slot passes its threshold
    """

    cosine: float
    noise_to_signal: float
    released: float


def worth(release: Release, dim: int, count: float, concentration: float, *, sites: int = 1) -> Worth:
    """What noise leaves of a slot, from numbers that are public or assumed, before anything is run.

    Parameters
    ----------
    dim : int
        Size S of the memory's space.
    count : float
        Patients expected in the slot, over all sites.
    concentration : float
        Norm of the slot's mean embedding before noise: 1 where all patients agree, 0 where none do.
    sites : int
        Each adds its own noise.
    """
    noise_sd = release.noise_sd * math.sqrt(sites)
    signal = release.clip * concentration * count
    margin = (count - publication_threshold(release, sites)) / (release.count_sd * math.sqrt(sites))
    return Worth(
        expected_cosine(signal / noise_sd, dim),
        noise_sd * math.sqrt(dim) / signal if signal > 0 else math.inf,
        math.erfc(-margin / math.sqrt(2)) / 2,
    )


def expected_cosine(signal: float, dim: int) -> float:
    """E[cos(s + z, s)] for a vector s of norm ``signal`` and z ~ N(0, I) in ``dim`` dimensions.

    With 1/|x| = 2/sqrt(pi) times the integral of exp(-u^2 |x|^2) over u > 0, the mean is signal sqrt(2/pi) times the
    integral over [0, 1] of (1 - v^2)^((dim-1)/2) exp(-signal^2 v^2 / 2).
    """
    end = min(1.0, 12 / math.sqrt(signal**2 + dim))
    nodes, weights = np.polynomial.legendre.leggauss(200)
    v = end * (nodes + 1) / 2
    inner = np.exp((dim - 1) / 2 * np.log1p(-v * v) - (signal * v) ** 2 / 2)
    return float(signal * math.sqrt(2 / math.pi) * end / 2 * (weights @ inner))


def _flat(slide: MemoryStatistics, release: Release) -> NDArray[np.float64]:
    """Sums, clipped to C a part, then counts, clipped to lambda C a part, in the release's order of parts."""
    if not (slide.sums.keys() == slide.counts.keys() <= release.parts.keys()):
        raise ValueError(f"parts {sorted(slide.sums)} and {sorted(slide.counts)} are not those of the release")
    pieces = []
    for part in release.names:
        classes, slots, dim = release.parts[part]
        sums = slide.sums.get(part, np.zeros((classes, slots, dim)))
        counts = slide.counts.get(part, np.zeros((classes, slots)))
        if sums.shape != (classes, slots, dim) or counts.shape != (classes, slots):
            raise ValueError(f"part {part}: shapes {sums.shape} and {counts.shape} are not those of the release")
        pieces.append(_clipped(sums, release.clip))
        pieces.append(release.count_weight * _clipped(release.clip * counts, release.clip))
    return np.concatenate(pieces)


def _clipped(values: NDArray[np.float64], norm_max: float) -> NDArray[np.float64]:
    flat = np.nan_to_num(values.ravel(), nan=0.0, posinf=0.0, neginf=0.0)
    flat = np.clip(flat, -norm_max, norm_max)  # first, so that the norm cannot overflow
    norm = float(np.linalg.norm(flat))
    return flat * min(_INSIDE, norm_max * _INSIDE / norm) if norm > 0 else flat


def _unflattened(values: NDArray[np.float64], release: Release) -> MemoryStatistics:
    found = MemoryStatistics({}, {})
    at = 0
    for part in release.names:
        classes, slots, dim = release.parts[part]
        middle, end = at + classes * slots * dim, at + classes * slots * (dim + 1)
        found.sums[part] = values[at:middle].reshape(classes, slots, dim)
        found.counts[part] = values[middle:end].reshape(classes, slots) / (release.count_weight * release.clip)
        at = end
    return found
