"""A run's privacy from its configuration alone: how often what is released, with which noise, and what that is worth.

Coordinator and sites compute the same plan from the same public numbers; no site has to be asked, and none can be told
another noise than the one that its own copy of the configuration gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.federation.noise_shares import must_add_up
from momkd_fl.privacy.accountant import Charge, GaussianReleases, PoissonSteps, joint_epsilon, sigma_for
from momkd_fl.privacy.dpsgd import Steps
from momkd_fl.privacy.mechanism import PUBLICATION_DEVIATIONS, USEFUL_COSINE, USEFUL_SHARE, Release, Worth, worth

CONCENTRATION = 0.6
"""Assumed norm of the mean embedding of a slot's patients."""
DPSGD_PATIENTS = 100
"""Under it DP-SGD learns nothing at any ε worth the name; such a site gives the memory its sums, or evaluates."""

Part = Literal["means", "anchors", "slots"]


@dataclass(frozen=True)
class PrivatePlan:
    """Noise and number of everything that leaves a site with noise.

    Attributes
    ----------
    releases : part to how often it is released; empty where the memory has no noise
    sigma : noise multiplier of each of these releases
    steps : how weights are trained, None without DP-SGD
    steps_count : steps in the whole run
    noise_sites : honest sites whose shares make up the noise of a release; 1: every site adds all of it
    """

    releases: Mapping[Part, int]
    sigma: float | None
    steps: Steps | None
    steps_count: int
    noise_sites: int = 1

    def charge(self, part: Part, releases: int = 1) -> GaussianReleases:
        """What ``releases`` of a part cost."""
        assert self.sigma is not None
        return GaussianReleases(self.sigma, releases, self.noise_sites)

    @property
    def charges(self) -> list[Charge]:
        """What the whole run costs a training site."""
        found: list[Charge] = [self.charge(part, count) for part, count in self.releases.items()]
        return [*found, self.steps.charge(self.steps_count)] if self.steps else found


def private_plan(config: FederationConfig) -> PrivatePlan:
    """The plan: σ is the smallest with which everything planned stays at or under ``privacy.epsilon`` together.

    Raises
    ------
    UserError
        As :func:`~momkd_fl.federation.noise_shares.must_add_up`.
    """
    privacy = config.privacy
    releases = _releases(config)
    both = bool(releases) and privacy.weights == "dpsgd"
    epsilon = privacy.epsilon or math.inf
    sigma = None
    if releases:
        own = (privacy.memory_epsilon or epsilon / 2) if both else epsilon
        sigma = sigma_for(own, privacy.delta, sum(releases.values()))
        if privacy.noise_shares > 1:
            must_add_up(config, [*_releases_of(config, releases, sigma)])
    steps = None
    if privacy.weights == "dpsgd" and privacy.steps is not None:
        spent = (sigma, sum(releases.values())) if sigma is not None else None
        noise = dpsgd_sigma(epsilon, privacy.delta, privacy.sampling_rate, privacy.steps, spent)
        expected = privacy.sampling_rate * privacy.site_patients
        steps = Steps(noise, privacy.sampling_rate, privacy.gradient_clip, expected)
    return PrivatePlan(releases, sigma, steps, privacy.steps or 0, privacy.noise_shares)


@lru_cache(maxsize=64)
def dpsgd_sigma(epsilon: float, delta: float, rate: float, steps: int, spent: tuple[float, int] | None) -> float:
    """Smallest noise multiplier, to 0.5 %, with which ``steps`` and what is ``spent`` (σ, releases) stay under ε."""
    before: list[Charge] = [GaussianReleases(*spent)] if spent else []

    def fits(sigma: float) -> bool:
        return joint_epsilon([*before, PoissonSteps(sigma, rate, steps)], delta) <= epsilon

    low, high = 0.3, 1.0
    while not fits(high):
        low, high = high, 2 * high
    while high / low > 1.005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def slots_release(config: FederationConfig, sigma: float, *, genomic: bool) -> Release:
    """What a site releases of its slots: histology, and its genomics where it has any.

    A share of noise is one of what a patient with both needs: the shares of sites without genomics hide it too.
    """
    shape = (config.classes, config.memory.slots, config.model.memory_dim)
    modalities = ["histology", *(["genomics"] if genomic else [])]
    others_genomic = config.memory.genomics and config.privacy.share == "all"
    return _release(config, dict.fromkeys(modalities, shape), sigma, joint_parts=2 if others_genomic else 1)


def anchors_release(config: FederationConfig, sigma: float, dim: int) -> Release:
    """One step of the anchors' k-means, in ``dim`` dimensions."""
    return _release(config, {"genomics": (config.classes, config.memory.slots, dim)}, sigma)


def means_release(config: FederationConfig, sigma: float, genes: int) -> Release:
    """The genes' means: one slot of one class."""
    return _release(config, {"means": (1, 1, genes)}, sigma)


def released_in(config: FederationConfig, round: int) -> bool:
    """Whether the slots' sums leave in ``round`` (1 is the first)."""
    privacy = config.privacy
    if not privacy.memory_noisy:
        return True
    if config.memory.source == "random":
        return False
    number, rest = divmod(round - 1, privacy.release_every)
    return rest == 0 and number < privacy.releases


def least_counts(config: FederationConfig, sites: Iterable[Release]) -> dict[str, float]:
    """By part, the noisy count over ``sites`` from which a slot may move: the minimum plus two deviations."""
    variance: dict[str, float] = {}
    for release in sites:
        for part in release.names:
            variance[part] = variance.get(part, 0.0) + release.count_sd**2
    least = config.privacy.minimum_count
    return {part: least + PUBLICATION_DEVIATIONS * math.sqrt(value) for part, value in variance.items()}


def expected_worth(config: FederationConfig, plan: PrivatePlan) -> dict[Part, Worth]:
    """What noise leaves of a slot and of an anchor, of equally frequent classes at all training sites together."""
    if plan.sigma is None:
        return {}
    sites = sum(member.role == "train" for member in config.members.values())
    privacy = config.privacy
    count = privacy.site_patients * sites / (config.classes * config.memory.slots)
    found: dict[Part, Worth] = {}
    if "anchors" in plan.releases:
        dim = config.memory.anchor_dim
        found["anchors"] = worth(anchors_release(config, plan.sigma, dim), dim, count, CONCENTRATION, sites=sites)
    if "slots" in plan.releases:
        release = slots_release(config, plan.sigma, genomic=config.memory.genomics and privacy.share == "all")
        found["slots"] = worth(release, config.model.memory_dim, count, CONCENTRATION, sites=sites)
    return found


def must_be_useful(config: FederationConfig) -> None:
    """Refuse a run whose noise would drown what it protects, by the public numbers of the configuration.

    By those and not by a site's own patients: a refusal that depends on their exact number would tell it.

    Raises
    ------
    UserError
        ``noise-shares-sites``; ``privacy-plan-useless`` with the number; ``privacy-site-small``; ``privacy-rounds``
        where releases or steps do
        not fit the rounds.
    """
    privacy, rounds = config.privacy, config.rounds.count
    training = sum(member.role == "train" for member in config.members.values())
    if privacy.noise_shares > 1 and training <= privacy.noise_sites:
        raise UserError(
            "noise-shares-sites",
            f"privacy.noise_sites is {privacy.noise_sites}, and a sum is opened only over one site more, but "
            f"{training} members train. Lower it (2 is the least), or use privacy.memory: local.",
        )
    if privacy.memory_noisy and (privacy.releases - 1) * privacy.release_every >= rounds:
        raise UserError(
            "privacy-rounds",
            f"privacy.releases is {privacy.releases}, one every {privacy.release_every} round(s), but rounds.count is "
            f"{rounds}. Ask for fewer releases: each that is planned costs noise in all others.",
        )
    asked = (config.training.local_steps or 0) * rounds
    if privacy.weights == "dpsgd" and privacy.steps != asked:
        raise UserError(
            "privacy-rounds",
            f"privacy.steps is {privacy.steps}, but training.local_steps times rounds.count is {asked}. Write {asked}.",
        )
    if privacy.weights == "dpsgd" and privacy.site_patients < DPSGD_PATIENTS:
        raise UserError(
            "privacy-site-small",
            f"privacy.site_patients is {privacy.site_patients}; with fewer than {DPSGD_PATIENTS} patients a site, "
            "DP-SGD learns nothing. Use privacy.share: memory, or let small sites evaluate only.",
        )
    for part, found in expected_worth(config, private_plan(config)).items():
        if found.cosine < USEFUL_COSINE or found.released < USEFUL_SHARE:
            raise UserError(
                "privacy-plan-useless",
                f"With {privacy.site_patients} patients a site and ε = {privacy.epsilon:g}, the memory's {part} would "
                f"be noise: expected cosine {found.cosine:.2f} (at least {USEFUL_COSINE:g} is needed), expected share "
                f"of slots released {found.released:.1%} (at least {USEFUL_SHARE:.0%}). Release less often, in fewer "
                "slots or a smaller space, or with more sites.",
            )


def _releases(config: FederationConfig) -> dict[Part, int]:
    if not config.privacy.memory_noisy:
        return {}
    memory, found = config.memory, dict[Part, int]()
    if memory.genomics:
        if config.privacy.gene_reference is None:
            found["means"] = 1
        if memory.mode == "anchors" and memory.source == "genomics":
            found["anchors"] = memory.anchor_iterations
    if memory.source != "random":
        found["slots"] = config.privacy.releases
    return found


def _releases_of(config: FederationConfig, planned: Mapping[Part, int], sigma: float) -> Iterator[Release]:
    """One release of each planned part, of the least size and noise that a site may add."""
    if "means" in planned:
        yield means_release(config, sigma, 1)
    if "anchors" in planned:
        yield anchors_release(config, sigma, config.memory.anchor_dim)
    if "slots" in planned:
        yield slots_release(config, sigma, genomic=False)


def _release(
    config: FederationConfig, parts: Mapping[str, tuple[int, int, int]], sigma: float, *, joint_parts: int = 1
) -> Release:
    privacy = config.privacy
    shares = privacy.noise_shares
    together = joint_parts if shares > 1 else 0
    return Release(parts, sigma, privacy.embedding_clip, privacy.count_weight, shares, together)
