"""The file of a study: ``momkd study --plan study.yaml``, a grid of methods over tasks, sites left out and seeds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from momkd_fl.config.base import FilePath, Strict
from momkd_fl.config.federation import Encoder
from momkd_fl.config.site import Name

Genomics = Literal["real", "shuffled_within_class", "shuffled"]
SplitKind = Literal["leave_one_site_out", "external"]
LOCAL = "local"
"""The method that a site's own model counts as; no method of a plan may have this name."""
RELEASED = "released"
"""What a target compares with to ask for a share of slots, instead of a difference of AUROCs."""


class StudyCohort(Strict):
    """The hospitals of a study."""

    kind: Literal["semi_real", "demo", "sites"] = Field(
        description="'semi_real': real breast cancer tables under synthetic slides; 'demo': the synthetic consortium; "
        "'sites': the files of sites that are there already."
    )
    brca: FilePath | None = Field(
        None,
        description="semi_real: folder of the real tables; none: tcga-brca in the folder that the environment variable "
        "MOMKD_REAL_DATA names.",
    )
    gain: float = Field(1.0, ge=0, description="Synthetic slides: how strongly molecular programmes show.")
    stain: float = Field(0.6, ge=0, description="Synthetic slides: how far hospitals' stains lie apart.")
    warp: float = Field(
        0.0, ge=0, description="Synthetic slides: strength of a hospital's own smooth non-affine distortion."
    )
    mean_patches: int = Field(80, ge=8, description="Synthetic slides: median patches of a slide.")
    dim: int = Field(256, ge=16, description="Synthetic slides: width of the embeddings.")
    patients: int | None = Field(None, ge=4, description="demo: patients of each site; none: the demo's own numbers.")
    sites: dict[Name, FilePath] = Field(
        default_factory=dict,
        description="sites: each site's own file; those with role 'evaluate' are the external cohort.",
    )
    encoder: Encoder | None = Field(None, description="sites: the patch embeddings every site must have.")

    @model_validator(mode="after")
    def _complete(self) -> StudyCohort:
        if self.kind == "sites" and not (self.sites and self.encoder):
            raise ValueError("kind 'sites' needs 'sites' and 'encoder'")
        if self.kind != "sites" and (self.sites or self.encoder):
            raise ValueError("'sites' and 'encoder' belong to kind 'sites'")
        return self


class StudyMethod(BaseModel):
    """One method: what differs from ``base``. Any further key is a section of the federation's file.

    A list in place of a single value makes one method of each: ``slots: {memory: {slots: [1, 4]}}`` stands for the
    methods ``slots_1`` and ``slots_4``.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    pooled: bool = Field(False, description="Trained on the patients of all training sites in one place.")
    architecture: Literal["momkd", "gated_attention"] | None = Field(
        None, description="Short for model.architecture; none: that of 'base'."
    )
    genomics: Genomics = Field(
        "real",
        description="'shuffled': every patient has another one's expression, of the same site; "
        "'shuffled_within_class': of the same site and class.",
    )
    without_genomics: list[Name] | None = Field(
        None, description="Training sites whose expression is not used; none: as the cohort has it."
    )
    random_memory: bool = Field(
        False,
        description="Score a second time with the slots replaced by random orthogonal ones, as '<name>.random_memory'.",
    )
    cohort: dict[str, Any] = Field(
        default_factory=dict, description="What differs from the study's cohort, e.g. {stain: 1.2}."
    )

    @property
    def overrides(self) -> dict[str, Any]:
        """Sections of the federation's file."""
        sections = dict(self.model_extra or {})
        if self.architecture is not None:
            sections["model"] = {**sections.get("model", {}), "architecture": self.architecture}
        return sections


class Target(Strict):
    """What a comparison should come to; ``summary`` says whether it holds."""

    method: str = Field(description="The method.")
    reference: str = Field(
        description="What it is compared with: another method; 'every_local', each site's own model; 'median_local', "
        "the median of them at every held-out site; 'released': instead of a difference, the share of its anchors and "
        "slots that any private release moved."
    )
    at_least: float = Field(description="Smallest difference of AUROC (or ratio) that is good enough.")
    ratio: bool = Field(False, description="Compare the ratio, not the difference.")
    tasks: list[str] | None = Field(None, description="Tasks it is asked of; none: all.")
    splits: list[SplitKind] | None = Field(None, description="Splits it is asked of; none: all.")
    group: str = Field(
        "all",
        description="Patients it is asked of: 'all' held-out ones; another group of the results, such as "
        "'sites_without_genomics'; or 'trainers_without_over_with', the gain at sites that train without genomics less "
        "that at sites that train with it, on their validation patients.",
    )


class StudyPlan(Strict):
    """A study: every method on every task, split and seed, over the same patients."""

    name: Name = Field(description="Name of the study; part of every figure.")
    cohort: StudyCohort
    tasks: list[str] = Field(min_length=1, description="Tasks: keys of the sites' 'tasks'.")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1,
        description="Each seeds the synthetic slides, the split for validation, and training.",
    )
    splits: list[Literal["leave_one_site_out", "external", "all"]] = Field(
        ["all"],
        min_length=1,
        description="'leave_one_site_out': every training site is held out once; 'external': all train, sites with "
        "role 'evaluate' are held out; 'all': both.",
    )
    methods: dict[Name, StudyMethod] = Field(min_length=1, description="Methods by name.")
    local_sites: bool = Field(True, description="Also train each site's own model and test it at all others.")
    local: dict[str, Any] = Field(
        default_factory=dict, description="Sections of the federation's file that only the sites' own models have."
    )
    base: dict[str, Any] = Field(
        default_factory=dict, description="Sections of the federation's file that all methods share."
    )
    references: list[str] = Field(
        default_factory=list,
        description="Methods that every other one is compared with, in pairs of patients, sites and seeds.",
    )
    targets: list[Target] = Field(default_factory=list, description="Comparisons with a target.")
    class_minimum: int = Field(11, ge=1, description="Fewest patients of a class for an AUROC.")
    resamples: int = Field(2000, ge=100, description="Resamples of the bootstrap.")
    jobs: int = Field(2, ge=1, description="Processes, one thread each; --jobs overrides it.")
    seconds_per_cell: float = Field(15.0, gt=0, description="Expected seconds of a cell, until one has finished.")
    version: int = Field(
        1, ge=1, description="Part of every cell's key: raise it when the code has come to compute something else."
    )

    @model_validator(mode="after")
    def _consistent(self) -> StudyPlan:
        if LOCAL in self.methods:
            raise ValueError(f"'{LOCAL}' is the name of the sites' own models; give the method another name")
        if RELEASED in self.methods:
            raise ValueError(f"'{RELEASED}' is what a target asks a share of slots by; give the method another name")
        for what, values in (("tasks", self.tasks), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} lists a value twice")
        return self

    @property
    def split_kinds(self) -> tuple[SplitKind, ...]:
        """The splits, each once."""
        kinds: tuple[SplitKind, ...] = ("leave_one_site_out", "external")
        return tuple(kind for kind in kinds if kind in self.splits or "all" in self.splits)
