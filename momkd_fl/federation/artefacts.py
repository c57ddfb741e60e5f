"""Everything that a run lets out of a site, as configured: public, with noise and charged, or neither.

One artefact that depends on patients and carries no noise makes the run's ε infinite. Whoever lets something new out of
a site adds it here; a test compares the list with the messages' schemas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from momkd_fl.config.federation import FederationConfig
from momkd_fl.federation.private_plan import PrivatePlan, private_plan
from momkd_fl.privacy.accountant import Artefact, GaussianReleases, epsilon_of_run, joint_epsilon, uncharged

Role = Literal["train", "evaluate"]

SOURCES: Final[Mapping[str, str]] = {
    "hello": "site's description",
    "select": "gene panel",
    "plan": "hash of the architecture",
    "initialise.statistics": "start of the memory and genomic space",
    "train.update": "weights",
    "train.statistics": "sums and counts for the memory",
    "train.scores": "validation scores",
    "train.seconds": "seconds by phase",
    "train.losses": "losses and monitors",
    "train.loss_sum": "validation losses",
    "train.monitors": "losses and monitors",
    "evaluate.scores": "scores of the final model",
    "evaluate.loss_sum": "scores of the final model",
    "evaluate.cohort": "description of the cohort",
    **dict.fromkeys(("join", "deal", "mask", "consent", "unmask"), "keys, shares and masked vectors of secure sums"),
    "finish": "farewell",
}
"""Each kind of reply, field by field where it has several, and which line of the list stands for it."""
HOLDERS: Final = "which classes and splits the site has enough patients of"
"""Told beforehand where sums are secure, so that no sum is over fewer than three sites."""


@dataclass(frozen=True)
class Account:
    """What a run costs one site of a role.

    Attributes
    ----------
    epsilon : of all artefacts together; infinite if one is uncharged
    memory_epsilon : of the memory's releases alone, None where they carry no noise
    conditional : whether that holds only given the weights, which leave without noise
    noise_sites : honest sites on which every ε of the memory is conditional; None where each site adds all noise
    alone_epsilon : of the memory where all other sites join against this one, and its own share is all there is
    """

    artefacts: tuple[Artefact, ...]
    epsilon: float
    memory_epsilon: float | None
    anchors_epsilon: float | None
    conditional: bool
    noise_sites: int | None = None
    alone_epsilon: float | None = None

    @property
    def uncharged(self) -> list[Artefact]:
        """What makes ``epsilon`` infinite."""
        return uncharged(self.artefacts)


def account(config: FederationConfig, role: Role = "train") -> Account:
    """The account of a site of ``role`` for the run as configured."""
    plan, delta = private_plan(config), config.privacy.delta
    listed = tuple(_training(config, plan) if role == "train" else _evaluating(config))
    memory = [plan.charge(part, count) for part, count in plan.releases.items()] if role == "train" else []
    fixed = [plan.charge(part, count) for part, count in plan.releases.items() if part != "slots"]
    weights_leave = config.privacy.share == "all" and config.privacy.weights == "none"
    return Account(
        listed,
        epsilon_of_run(listed, delta),
        joint_epsilon(memory, delta) if memory else None,
        joint_epsilon(fixed, delta) if memory and fixed else None,
        weights_leave and "slots" in plan.releases,
        plan.noise_sites if memory and plan.noise_sites > 1 else None,
        joint_epsilon([each.alone for each in memory], delta) if memory and plan.noise_sites > 1 else None,
    )


def spoken(artefact: Artefact, config: FederationConfig) -> str:
    """How an artefact leaves, in a few words: with noise or without, and whether anybody sees one site's."""
    if not artefact.depends_on_data:
        return "public"
    how = "without noise" if artefact.charge is None else "with noise, charged"
    if isinstance(artefact.charge, GaussianReleases) and artefact.charge.noise_sites > 1:
        how = f"with a share of noise, charged on the condition of {artefact.charge.noise_sites} honest sites"
    if config.aggregation.kind != "secagg":
        return how
    return f"{how}, in the clear" if artefact.name == HOLDERS else f"{how}, summed over sites"


def sentences(config: FederationConfig) -> list[str]:
    """The account of both roles, line by line, for people."""
    lines = []
    for role in ("train", "evaluate"):
        if not any(member.role == role for member in config.members.values()):
            continue
        found = account(config, role)
        lines.append(f"What leaves a site with role '{role}':")
        lines += [f"- {each.name}: {spoken(each, config)}" for each in found.artefacts]
        lines.append(_headline(found, config.privacy.delta))
    return lines


def _headline(found: Account, delta: float) -> str:
    at, condition = f"at δ = {delta:g}", _condition(found)
    if not math.isinf(found.epsilon):
        told = f"All of it together: ε = {found.epsilon:.3f} {at}. Times of messages and error codes are not counted."
        return told + condition
    names = ", ".join(each.name for each in found.uncharged)
    said = f"All of it together: ε is ∞, because these depend on patients and carry no noise: {names}."
    if found.memory_epsilon is not None:
        kind = "conditional on the weights, which leave without noise" if found.conditional else "whatever the weights"
        said += f" The memory alone: ε = {found.memory_epsilon:.3f} {at}, {kind}."
    if found.anchors_epsilon is not None and found.conditional:
        said += f" Its genomic anchors alone: ε = {found.anchors_epsilon:.3f}, whatever the weights."
    return said + condition


def _condition(found: Account) -> str:
    """What an ε of noise in shares hangs on, and what is left without it."""
    if found.noise_sites is None or found.alone_epsilon is None:
        return ""
    return (
        f" CONDITIONAL on at least {found.noise_sites} honest sites in every sum (this one among them), each of which "
        f"adds its share of the noise and keeps it to itself, and on secure aggregation. If all others join against "
        f"one site, its own share alone bounds what the memory tells of its patients: {_about(found.alone_epsilon)}."
    )


def _about(epsilon: float) -> str:
    return "ε is ∞" if math.isinf(epsilon) else f"ε = {epsilon:.1f}"


def _training(config: FederationConfig, plan: PrivatePlan) -> list[Artefact]:
    privacy, memory = config.privacy, config.memory
    found = [
        Artefact(SOURCES["hello"], False),
        Artefact(SOURCES["plan"], False),
        Artefact(SOURCES["select"], config.genes.panel == "learnt"),
    ]
    noisy = privacy.memory_noisy
    if memory.genomics and noisy:
        means = plan.releases.get("means")
        found.append(Artefact("scale of the genes", means is not None, plan.charge("means", means) if means else None))
        found.append(Artefact("axes of the genomic space, from a public seed", False))
    elif memory.genomics:
        found.append(Artefact("scale of the genes and second moments", True))
    if memory.genomics and memory.mode == "anchors":
        count = plan.releases.get("anchors")
        depends = memory.source == "genomics"
        found.append(Artefact("genomic anchors", depends, plan.charge("anchors", count) if count else None))
        if depends and config.losses.soft_labels:
            found.append(Artefact("class sums of genomes, back to the sites", True))
    if memory.mode != "gradient" and config.model.architecture == "momkd":
        public = noisy or privacy.share == "memory" or memory.source == "random"
        found.append(Artefact("slots at the start", not public))
        released = plan.releases.get("slots")
        charge = plan.charge("slots", released) if released else None
        found.append(Artefact(SOURCES["train.statistics"], not noisy or charge is not None, charge))
    if privacy.share == "all":
        steps = plan.steps.charge(plan.steps_count) if plan.steps else None
        found.append(Artefact(SOURCES["train.update"], True, steps))
    measured = privacy.measured
    found += [
        Artefact(SOURCES["train.scores"], measured),
        Artefact(SOURCES["train.loss_sum"], measured),
        Artefact(SOURCES["train.losses"], measured),
        Artefact(SOURCES["train.seconds"], measured),
        Artefact("choice of the round, early stopping", measured),
        Artefact("threshold and calibration", measured),
    ]
    return [*found, *_secure(config), *_measurements(config)]


def _evaluating(config: FederationConfig) -> list[Artefact]:
    found = [Artefact(SOURCES["hello"], False), Artefact(SOURCES["plan"], False)]
    return [*found, *_secure(config), *_measurements(config)]


def _secure(config: FederationConfig) -> list[Artefact]:
    """What secure sums themselves let out: in a run with noise no site says which classes it has enough of."""
    if config.aggregation.kind != "secagg":
        return []
    return [Artefact(HOLDERS, not config.privacy.active), Artefact(SOURCES["mask"], False)]


def _measurements(config: FederationConfig) -> list[Artefact]:
    measured = config.privacy.measured
    described = measured and config.aggregation.kind != "secagg"  # no count of one site leaves then
    return [
        Artefact(SOURCES["evaluate.scores"], measured),
        Artefact(SOURCES["evaluate.cohort"], described),
        Artefact(SOURCES["finish"], False),
    ]
