"""The federation's ``privacy`` section, and what in the other sections would make its guarantees untrue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from momkd_fl.config.base import Strict

if TYPE_CHECKING:
    from momkd_fl.config.federation import FederationConfig


class Privacy(Strict):
    """What leaves a site with noise, and what does not leave (docs/privacy.md); public, told to the sites."""

    memory: Literal["none", "local", "distributed"] = Field(
        "none",
        description="'local': sums for the memory leave with noise that the site adds itself, enough by itself. "
        "'distributed', with aggregation 'secagg' only: each site adds a share, the sum carries the whole, and ε is "
        "conditional on noise_sites honest sites.",
    )
    noise_sites: int = Field(
        3,
        ge=2,
        le=49,
        description="memory 'distributed': honest sites whose shares make up the whole noise. No sum is opened over "
        "fewer than one more: who reads it may know its own share.",
    )
    weights: Literal["none", "dpsgd"] = Field(
        "none", description="'dpsgd': weights are trained with noise, one example a patient."
    )
    share: Literal["all", "memory"] = Field(
        "all",
        description="'memory': no weights leave. The memory's slots lie in a public projection of the patches, and "
        "every site trains and keeps a student of its own.",
    )
    metrics: Literal["exact", "none"] | None = Field(
        None,
        description="'none': no score, loss, count or time leaves; the last round is the model, without threshold. "
        "Not given: 'none' where anything above is private, else 'exact'.",
    )
    epsilon: float | None = Field(
        None, gt=0, description="ε of one site for all that leaves it with noise; needed where there is noise."
    )
    delta: float = Field(1e-5, gt=0, lt=0.01, description="δ; well under 1 / patients.")
    memory_epsilon: float | None = Field(
        None, gt=0, description="Of it, for the memory alone; none: half where weights have noise too, else all."
    )
    releases: int = Field(5, ge=1, le=50, description="How often the slots are released in the run.")
    release_every: int = Field(1, ge=1, description="They are released every so many rounds, from the first on.")
    minimum_count: float = Field(
        20.0, ge=20, description="Patients under which a slot stays; two deviations of the noise are added to it."
    )
    site_patients: int = Field(
        100, ge=1, description="Training patients of a site, roughly and publicly: what noise leaves is judged by it."
    )
    embedding_clip: float = Field(1.0, gt=0, le=1024, description="C, the largest norm of a patient in a sum.")
    count_weight: float = Field(0.5, gt=0, le=1024, description="λ, how heavy counts are beside embeddings.")
    gradient_clip: float = Field(1.0, gt=0, description="DP-SGD: the largest norm of a patient's gradient.")
    sampling_rate: float = Field(0.1, gt=0, le=1, description="DP-SGD: chance of each patient to be in a step.")
    steps: int | None = Field(
        None, ge=1, description="DP-SGD: steps in the whole run, training.local_steps times rounds.count."
    )
    gene_reference: str | None = Field(
        None,
        description="Table with the columns gene, mean, sd of a public cohort on the sites' scale; none: the genes' "
        "means are released once with noise, and their scale is gene_sd.",
    )
    gene_centre: float = Field(6.0, description="Middle of the range in which gene values count for those means.")
    gene_range: float = Field(6.0, gt=0, description="Values farther than this from the middle are clipped to it.")
    gene_sd: float = Field(1.5, gt=0, description="A public standard deviation, the same for all genes.")

    @property
    def memory_noisy(self) -> bool:
        """Whether the memory's sums leave with noise, the site's own or a share of it."""
        return self.memory != "none"

    @property
    def noise_shares(self) -> int:
        """Sites that the whole noise of a sum is divided among; 1: each adds all of it."""
        return self.noise_sites if self.memory == "distributed" else 1

    @property
    def noisy(self) -> bool:
        """Whether anything leaves with noise."""
        return self.memory_noisy or self.weights == "dpsgd"

    @property
    def active(self) -> bool:
        """Whether the run differs from a plain one in any way."""
        return self.noisy or self.share == "memory"

    @property
    def measured(self) -> bool:
        """Whether exact scores, losses and counts leave the sites."""
        return (self.metrics or ("none" if self.active else "exact")) == "exact"

    @model_validator(mode="after")
    def _budget(self) -> Privacy:
        if self.noisy and self.epsilon is None:
            raise ValueError("privacy.epsilon is missing; give the ε that all noisy releases of a site may spend")
        both = self.memory_noisy and self.weights == "dpsgd"
        if self.memory_epsilon is not None and self.epsilon is not None:
            if not both:
                raise ValueError("privacy.memory_epsilon divides ε between memory and weights; here only one has noise")
            if self.memory_epsilon >= self.epsilon:
                raise ValueError("privacy.memory_epsilon must be below privacy.epsilon: the weights need the rest")
        if self.weights == "dpsgd" and self.share == "memory":
            raise ValueError("privacy.weights: dpsgd is of no use with privacy.share: memory; no weights leave")
        return self


def breaks_privacy(config: FederationConfig) -> Iterator[tuple[bool, str]]:
    """What makes the guarantees of ``privacy`` untrue, whether it is so, and what to do."""
    privacy, memory, training = config.privacy, config.memory, config.training
    coupled = "one patient more would move the others, and the noise would be too small"
    if privacy.noisy or privacy.share == "memory":
        yield (
            training.standardise == "site",
            f"training.standardise: site is fitted on all patients of a site together: {coupled}. "
            "With privacy, use 'slide' or 'none'",
        )
        yield (
            config.losses.soft_labels > 0,
            "losses.soft_labels sends exact class sums of genomes to the sites; set it to 0 with privacy",
        )
        yield (
            config.genes.panel == "learnt",
            "genes.panel: learnt sends exact sums over labels; name a panel, or use 'shared'",
        )
    if privacy.memory == "distributed":
        yield (
            config.aggregation.kind != "secagg",
            "privacy.memory: distributed needs aggregation: secagg; in any other a site's share of noise is all that "
            "hides it. Use secagg, or privacy.memory: local",
        )
    if privacy.memory_noisy or privacy.share == "memory":
        yield (
            memory.mode not in ("anchors", "momentum") or config.model.architecture != "momkd",
            "privacy of the memory needs model.architecture: momkd and memory.mode 'anchors' or 'momentum'",
        )
        yield memory.assignment != "hard", f"a private memory needs memory.assignment: hard; with others {coupled}"
        yield memory.slots > 4, f"memory.slots is {memory.slots}; a private memory has at most 4 a class"
        widest = max(config.model.memory_dim, memory.anchor_dim)
        yield (
            widest > 64,
            f"model.memory_dim and memory.anchor_dim are at most 64 in a private memory; here {widest}",
        )
    if privacy.share == "memory":
        yield config.strategy.name != "fedavg", "privacy.share: memory averages no weights; use strategy.name: fedavg"
        yield (
            config.model.memory_dim > config.encoder.dim,
            "model.memory_dim exceeds encoder.dim; privacy.share: memory projects patches to fewer dimensions",
        )
    if privacy.weights == "dpsgd":
        yield (
            training.local_steps is None,
            "privacy.weights: dpsgd needs training.local_steps; passes over the patients would tell their number",
        )
        yield (
            privacy.steps is None,
            "privacy.weights: dpsgd needs privacy.steps, which is training.local_steps times rounds.count",
        )
        yield config.strategy.name == "fedprox", "privacy.weights: dpsgd has no proximal term; use fedavg or fedadam"
        yield (
            config.losses.logits > 0,
            f"losses.logits learns a teacher from all patients of a site: {coupled}. Set it to 0 with dpsgd",
        )
    if not privacy.measured:
        yield (
            config.rounds.patience is not None,
            "rounds.patience stops by scores, and privacy.metrics: none sends none; remove it",
        )
