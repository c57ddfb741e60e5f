"""The results of one run, as frozen values (``results_file.py`` reads and writes them).

Nothing here holds a patient. A number that cannot be estimated is an :class:`Estimate` without a value and with
a reason; it is never a zero. Where the sites' own counts may not leave them, a count from 1 to 10 is the text
``"<11"``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, get_args

from pydantic import ConfigDict, Field

SCHEMA: Final = "momkd-results/1"
MINIMUM_CELL: Final = 11

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Whole = Annotated[int, Field(ge=0)]
Count = Whole | Literal["<11"] | None
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Method = Literal[
    "federated",
    "pooled",
    "local_median",
    "local_best",
    "no_genomics_control",
    "shuffled_within_class",
    "shuffled_genomics",
    "random_memory",
    "random_slots",
    "label_slots",
    "attention_mil",
    "batch_cosine",
    "batch_mse",
    "class_prototypes",
    "out_of_fold_logits",
]
State = Literal["trained", "late", "missing", "refused", "idle"]
Metric = Literal[
    "auroc",
    "auprc",
    "prevalence",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "f1",
    "balanced_accuracy",
    "share_spared",
    "brier",
    "calibration_slope",
    "calibration_intercept",
]
Scaling = Literal["temperature", "platt", "isotonic"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
_CLOSED: Final = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval; ``value`` None: not estimable, and ``reason`` says why."""

    __pydantic_config__ = _CLOSED
    value: Number | None
    low: Number | None = None
    high: Number | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.value is None and (not self.reason or self.low is not None or self.high is not None):
            raise ValueError("an estimate without a value needs a reason and has no interval")
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval needs both ends")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("the low end of an interval is above its high end")

    @staticmethod
    def not_estimable(reason: str) -> Estimate:
        """An estimate without a value, e.g. ``not_estimable("fewer than 11 patients of a class")``."""
        return Estimate(None, reason=reason)


@dataclass(frozen=True)
class HeldOut:
    """AUROC of one method and task on the sites that never trained.

    ``pooled`` ranks all held-out patients together, ``within_site`` is the mean of the sites' own AUROCs,
    ``between_sites_sd`` their spread and ``prediction`` the random-effects interval for a new site (from four
    sites on): three different numbers, all three are reported.
    """

    __pydantic_config__ = _CLOSED
    pooled: Estimate
    within_site: Estimate
    sites: dict[str, Estimate]
    between_sites_sd: Number | None = None
    prediction: Estimate | None = None


@dataclass(frozen=True)
class Difference:
    """``method`` minus ``reference`` on the same held-out patients, paired; ``p_holm`` is adjusted over tasks."""

    __pydantic_config__ = _CLOSED
    task: str
    method: Method
    reference: Method
    difference: Estimate
    site: str | None = None
    p_value: Share | None = None
    p_holm: Share | None = None


@dataclass(frozen=True)
class Operating:
    """Metrics of one method at the threshold frozen on the training sites; ``site`` None: all held-out patients."""

    __pydantic_config__ = _CLOSED
    task: str
    method: Method
    site: str | None
    threshold: Share | None
    metrics: dict[Metric, Estimate]


@dataclass(frozen=True)
class Curve:
    """A curve to draw, with a 95% band where there is one.

    ``roc``: false positive rate against sensitivity.
    ``calibration``: mean predicted probability against observed
    share, ``weight`` the share of patients in each bin; ``calibration_raw``: the same before calibration.
    ``decision``: threshold probability against net benefit; ``decision_all``: the same had every patient been called
    positive. ``binning_error`` bounds what a curve made from binned scores may be off by.
    """

    __pydantic_config__ = _CLOSED
    kind: Literal["roc", "calibration", "calibration_raw", "decision", "decision_all"]
    task: str
    method: Method
    x: list[Number]
    y: list[Number]
    low: list[Number] | None = None
    high: list[Number] | None = None
    weight: list[Share] | None = None
    binning_error: Number | None = None

    def __post_init__(self) -> None:
        parts = (self.y, self.low, self.high, self.weight)
        if not self.x or any(part is not None and len(part) != len(self.x) for part in parts):
            raise ValueError("the parts of a curve differ in length, or it is empty")


@dataclass(frozen=True)
class MemoryHealth:
    """How alive the memory was in one round: mean angle moved (rad), share of slots moved, effective numbers."""

    __pydantic_config__ = _CLOSED
    slot_movement_rad: Number | None
    effective_slots: Number | None
    moved_share: Share | None = None
    effective_patches: Number | None = None
    slot_cosine: Number | None = None


@dataclass(frozen=True)
class Round:
    """One round: seconds, bytes both ways, sites by state (``{"trained": [...], "missing": [...]}``), validation."""

    __pydantic_config__ = _CLOSED
    round: Annotated[int, Field(ge=1)]
    seconds: Number
    bytes: Whole
    sites: dict[State, list[str]]
    validation_auroc: Number | None = None
    validation_loss: Number | None = None
    memory: MemoryHealth | None = None
    bytes_by_site: dict[str, Whole] = field(default_factory=dict)
    seconds_by_phase: dict[str, Number] = field(default_factory=dict)
    outcome: Literal["ok", "below_quorum", "repeated"] = "ok"

    def __post_init__(self) -> None:
        listed = [site for sites in self.sites.values() for site in sites]
        if len(listed) != len(set(listed)):
            raise ValueError("a site is in two states of one round")


@dataclass(frozen=True)
class TaskCohort:
    """A site's labels for one task: labelled patients, share of positives, exclusions by reason."""

    __pydantic_config__ = _CLOSED
    labelled: Count
    prevalence: Share | None
    excluded: dict[str, Count] = field(default_factory=dict)


@dataclass(frozen=True)
class Cohort:
    """One site: who takes part with what. ``with_genomics`` counts patients that have an expression profile."""

    __pydantic_config__ = _CLOSED
    site: str
    role: Literal["train", "evaluate"]
    patients: Count
    slides: Count
    with_genomics: Count
    tasks: dict[str, TaskCohort]


@dataclass(frozen=True)
class Calibration:
    """A frozen, strictly increasing map of probabilities (``calibration.calibrate`` applies it).

    ``temperature`` and ``platt`` put slope and intercept on the logit (temperature: intercept 0); ``isotonic`` joins
    the ``knots`` (score, calibrated share), from score 0 to 1, by straight lines. ``losses``: cross-validated log
    loss (nats) of each kind on the training sites' validation patients, where the choice was made between them.
    """

    __pydantic_config__ = _CLOSED
    slope: Number = 1.0
    intercept: Number = 0.0
    kind: Scaling = "platt"
    knots: list[list[Share]] = field(default_factory=list)
    losses: dict[Scaling, Number] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.kind == "isotonic") != bool(self.knots):
            raise ValueError("an isotonic calibration has knots, and no other has")
        if any(len(knot) != 2 for knot in self.knots):
            raise ValueError("a knot is a score and a share")

    def to_list(self) -> list[float]:
        """Numbers for a message: slope and intercept, or score and share of every knot in turn (six or more)."""
        return [value for knot in self.knots for value in knot] or [self.slope, self.intercept]

    @classmethod
    def from_list(cls, numbers: list[float]) -> Calibration:
        """What :meth:`to_list` gave, but for the name of a map with two numbers: that is Platt's."""
        if len(numbers) == 2:
            return cls(slope=numbers[0], intercept=numbers[1])
        return cls(kind="isotonic", knots=[list(knot) for knot in zip(numbers[::2], numbers[1::2], strict=True)])


@dataclass(frozen=True)
class Selection:
    """What was chosen on the training sites' validation patients and then frozen."""

    __pydantic_config__ = _CLOSED
    round: int
    criterion: str
    threshold: Share | None
    calibration: Calibration = field(default_factory=Calibration)


@dataclass(frozen=True)
class Transfer:
    """Whether the calibration carries over: Brier, slope and intercept of the federated model before and after it.

    ``patients``: ``validation`` are those of the training sites on whom it was fitted (flattering), ``held_out``
    those of sites that never trained; ``site`` None: all of them.
    """

    __pydantic_config__ = _CLOSED
    task: str
    patients: Literal["validation", "held_out"]
    site: str | None
    before: dict[Metric, Estimate]
    after: dict[Metric, Estimate]


@dataclass(frozen=True)
class SlotShare:
    """Share of a class's assignment that one memory slot holds, in one modality, at the end."""

    __pydantic_config__ = _CLOSED
    task: str
    modality: Literal["histology", "genomics"]
    label: str
    slot: Whole
    share: Share


@dataclass(frozen=True)
class Protection:
    """What protected the sites in this run.

    ``epsilon`` by site, of all that left it; None: no bound is claimed. ``memory_epsilon`` of a training site's
    releases of the memory, ``memory_conditional``: it holds only given the weights. ``slots_released``: share of slots
    and of anchors that any release ever moved, to be read beside the AUROC, since a memory that never moves is private
    and useless. ``noise_sites``: honest sites on which these ε are conditional, where each adds a share of the noise;
    ``alone_epsilon``: of the memory, with one site's own share only. ``artefacts`` by role: what left, and how
    (public; with noise, charged; without noise). ``started``: by step of the start (scaling, moments, anchors,
    slots), the training sites whose sums it is of.
    """

    __pydantic_config__ = _CLOSED
    transport: Literal["mutual_tls", "in_process"]
    aggregation: Literal["plain", "robust", "secagg"]
    epsilon: dict[str, Number | None] = field(default_factory=dict)
    delta: Number | None = None
    memory_epsilon: Number | None = None
    anchors_epsilon: Number | None = None
    memory_conditional: bool = False
    noise_sites: Whole | None = None
    alone_epsilon: Number | None = None
    slots_released: dict[str, Share] = field(default_factory=dict)
    artefacts: dict[str, dict[str, str]] = field(default_factory=dict)
    started: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """SHA-256 digests (hex) of what made the result, seeds by purpose, versions by package."""

    __pydantic_config__ = _CLOSED
    configuration: Digest
    code: Digest
    architecture: Digest
    checkpoint: Digest | None
    fingerprint: Digest
    data: Digest | None
    seeds: dict[str, int]
    software: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Something that went wrong: a stable code (never a sentence, which may name a local file)."""

    __pydantic_config__ = _CLOSED
    code: str
    site: str | None = None
    round: int | None = None
    recovered: bool = True


@dataclass(frozen=True)
class Disagreement:
    """A field of a site's fingerprint that is not the federation's, and whether it kept the site out.

    ``here`` None: not stated, or found by the site itself, which tells no value.
    """

    __pydantic_config__ = _CLOSED
    site: str
    field: str
    here: str | None
    federation: str | None
    stopped: bool


@dataclass(frozen=True)
class Seconds:
    """Wall time: of the installation (None where it was not measured) and of the run."""

    __pydantic_config__ = _CLOSED
    install: Number | None
    run: Number
    phases: dict[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """All of one run.

    ``origin`` says where the patients' scores were: ``synthetic`` and ``simulation`` (one machine holds all data)
    or ``federation`` (each site holds its own; ``disclosure.py`` says which counts may be here). ``quorum`` is the
    fewest sites that made a round. ``local_models[task][site]`` is the AUROC of that training site's own model on
    all held-out patients; ``matrix[task][trained][tested]`` that of a site's own model at each site
    (``comparison.matrix``). ``rule_out`` names tasks, besides ODX, whose test the model may spare a patient.
    ``peak_rss_mb`` covers all processes together.
    """

    __pydantic_config__ = _CLOSED
    schema: Literal["momkd-results/1"]
    name: str
    created: str
    origin: Literal["synthetic", "simulation", "federation"]
    tasks: list[str]
    seconds: Seconds
    peak_rss_mb: Number
    quorum: Whole
    rounds: list[Round]
    cohorts: list[Cohort]
    held_out: dict[Method, dict[str, HeldOut]]
    selection: dict[str, Selection]
    provenance: Provenance
    protection: Protection
    differences: list[Difference] = field(default_factory=list)
    operating: list[Operating] = field(default_factory=list)
    local_models: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    memory_map: list[SlotShare] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    differing: list[Disagreement] = field(default_factory=list)
    matrix: dict[str, dict[str, dict[str, Estimate]]] = field(default_factory=dict)
    transfer: list[Transfer] = field(default_factory=list)
    rule_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = {cohort.site for cohort in self.cohorts}
        strangers = {site for one in self.rounds for sites in one.sites.values() for site in sites} - known
        if strangers:
            raise ValueError(f"site {min(strangers)!r} took part in a round but has no cohort")
        unknown = {task for by_task in self.held_out.values() for task in by_task} - set(self.tasks)
        if unknown:
            raise ValueError(f"held_out has task {min(unknown)!r}, which is not among the run's tasks")

    @property
    def training_sites(self) -> list[str]:
        """Sites that train, in the cohorts' order."""
        return [cohort.site for cohort in self.cohorts if cohort.role == "train"]

    @property
    def held_out_sites(self) -> list[str]:
        """Sites that never train, in the cohorts' order."""
        return [cohort.site for cohort in self.cohorts if cohort.role == "evaluate"]
