"""How much a set of releases reveals: epsilon at a delta, for adding or removing one patient.

Gaussian releases compose exactly: T of noise multiplier sigma are one Gaussian mechanism with mu = sqrt(T) / sigma
(Balle and Wang 2018, theorem 8). Poisson-subsampled ones (DP-SGD) compose through the privacy loss distribution of
dp-accounting, which rounds losses up, so that its epsilon is a bound from above.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

GRID_INTERVAL = 1e-3
"""Width of the privacy loss distribution's cells; losses are rounded up."""
_MU_MAX = 1e3


@dataclass(frozen=True)
class GaussianReleases:
    """``releases`` sums, each with noise of ``sigma`` times its sensitivity.

    ``noise_sites``: 1 where the site itself adds all of it; else the honest sites that each add a share, on which what
    is reckoned here is conditional.
    """

    sigma: float
    releases: int = 1
    noise_sites: int = 1

    def __post_init__(self) -> None:
        _must_be_positive(self.sigma, self.releases)
        _must_be_positive(1.0, self.noise_sites)

    @property
    def alone(self) -> GaussianReleases:
        """What is left where all other sites take their shares back: the site's own."""
        return GaussianReleases(self.sigma / math.sqrt(self.noise_sites), self.releases)


@dataclass(frozen=True)
class PoissonSteps:
    """``steps`` of DP-SGD: each patient in with probability ``rate``, noise of ``sigma`` times the clip."""

    sigma: float
    rate: float
    steps: int

    def __post_init__(self) -> None:
        _must_be_positive(self.sigma, self.steps)
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate {self.rate} is not in (0, 1]")


Charge = GaussianReleases | PoissonSteps


@dataclass(frozen=True)
class Artefact:
    """Something a run lets out of a site.

    Attributes
    ----------
    name : as a person knows it, such as ``validation scores``
    depends_on_data : False for what is public or drawn from a public seed
    charge : None where it leaves without noise
    """

    name: str
    depends_on_data: bool
    charge: Charge | None = None


def uncharged(artefacts: Iterable[Artefact]) -> list[Artefact]:
    """Those that depend on patients' data and carry no noise: one of them makes the run's epsilon infinite."""
    return [each for each in artefacts if each.depends_on_data and each.charge is None]


def epsilon_of_run(artefacts: Iterable[Artefact], delta: float) -> float:
    """The headline: joint epsilon of all artefacts together; infinite if one is uncharged."""
    listed = list(artefacts)
    if uncharged(listed):
        return math.inf
    return joint_epsilon((each.charge for each in listed if each.depends_on_data and each.charge), delta)


def joint_epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon of all ``charges`` to the same patients together, whatever their order, adaptively chosen or not."""
    _must_be_delta(delta)
    mu_squared = 0.0
    steps: Counter[tuple[float, float]] = Counter()
    for charge in charges:
        if isinstance(charge, GaussianReleases):
            mu_squared += charge.releases / charge.sigma**2
        else:
            steps[charge.sigma, charge.rate] += charge.steps
    if not steps:
        return gaussian_epsilon(math.sqrt(mu_squared), delta)
    return _distribution_epsilon(mu_squared, tuple(sorted(steps.items())), delta)


def sigma_for(epsilon: float, delta: float, releases: int) -> float:
    """The smallest noise multiplier with which ``releases`` sums together stay at or under ``epsilon``."""
    _must_be_positive(epsilon, releases)
    _must_be_delta(delta)
    low, high = 0.0, 1.0
    while gaussian_delta(epsilon, high) < delta:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(epsilon, middle) <= delta else (low, middle)
    return math.sqrt(releases) / low * (1 + 1e-12)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of one Gaussian mechanism of sensitivity / deviation = ``mu``; rounded up."""
    _must_be_delta(delta)
    if mu > _MU_MAX:
        return math.inf
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(high, mu) > delta:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, mu) > delta else (low, middle)
    return high


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu): Balle and Wang 2018, equation 6."""
    if mu == 0:
        return 0.0
    first, second = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    return max(0.0, math.exp(_log_phi(first)) - math.exp(epsilon + _log_phi(second)))


def _log_phi(x: float) -> float:
    """Logarithm of the standard normal's distribution function; where erfc would underflow, its series."""
    if x > -30:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    tail = 1 - 1 / x**2 + 3 / x**4 - 15 / x**6
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log(tail)


@lru_cache(maxsize=256)
def _distribution_epsilon(mu_squared: float, steps: tuple[tuple[tuple[float, float], int], ...], delta: float) -> float:
    composed = None
    parts = [_steps_distribution(sigma, rate).self_compose(count) for (sigma, rate), count in steps]
    if mu_squared:
        parts.append(_gaussian_distribution(1 / math.sqrt(mu_squared)))
    for part in parts:
        composed = part if composed is None else composed.compose(part)
    assert composed is not None
    return float(composed.get_epsilon_for_delta(delta))


@lru_cache(maxsize=32)
def _steps_distribution(sigma: float, rate: float) -> Any:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=GRID_INTERVAL)


def _gaussian_distribution(sigma: float) -> Any:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(sigma, value_discretization_interval=GRID_INTERVAL)


def _must_be_positive(size: float, count: int) -> None:
    if not (math.isfinite(size) and size > 0 and count >= 1):
        raise ValueError(f"{size} must be positive and finite, {count} at least 1")


def _must_be_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta {delta} is not between 0 and 1")
