"""The coordinator's file: ``momkd-server --config federation.yaml``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from momkd_fl.config.aggregation import TRIMMED_SITES_MIN, Aggregation
from momkd_fl.config.base import FilePath, Strict
from momkd_fl.config.privacy import Privacy, breaks_privacy
from momkd_fl.config.site import Consortium, Name, Port, Seal, Telemetry, Tls

Share = Annotated[float, Field(ge=0, le=1)]
Severity = Literal["required", "must", "warn", "ignore"]


class Member(Strict):
    """One site of the run."""

    certificate: FilePath | None = Field(
        None, description="The site's certificate (PEM); its key is allowed in. Needed by momkd-server."
    )
    role: Literal["train", "evaluate"] = Field("train", description="What the coordinator expects the site to do.")
    config: FilePath | None = Field(
        None, description="The site's own file; used by 'momkd simulate' only, where one machine holds all data."
    )


class Listen(Strict):
    """Where the server listens."""

    host: str = Field("0.0.0.0", description="Address to listen at.")
    port: Port = Field(9443, description="TCP port.")
    max_message_mb: int = Field(
        256, ge=1, le=1024, description="Largest request body accepted, in MB; larger ones are refused unread."
    )


class Encoder(Strict):
    """The patch embeddings every site must have."""

    name: str = Field(description="Encoder name; aliases are normalised (e.g. 'UNI2-h', 'uni_v2').")
    dim: int = Field(ge=1, le=16384, description="Embedding dimension.")
    patch_um: float | None = Field(None, gt=0, description="Edge of a patch in micrometres; none: not compared.")
    magnification: float | None = Field(
        None, gt=0, description="Magnification of the patches (e.g. 20); none: that of the first listed site counts."
    )
    preprocessing: str | None = Field(
        None, description="How patches were prepared for the encoder; none: the first listed site's words count."
    )


class Compared(Strict):
    """What follows where a site's fingerprint differs (docs/data-formats.md, "Compared between sites").

    'required': must match and must be stated; 'must': a difference stops the site, what is not stated is not
    compared; 'warn': the run goes on and the report says so; 'ignore': not compared.
    """

    preprocessing: Severity = Field("warn", description="How patches were prepared for the encoder (free words).")
    magnification: Severity = Field("must", description="Magnification of the patches, within 10 %.")
    preparation: Severity = Field("must", description="FFPE or frozen.")
    scanner: Severity = Field("warn", description="Scanner (free words).")
    definition: Severity = Field("warn", description="How the label was made: assay, cut-off (free words).")
    class_names: Severity = Field("must", description="What the classes mean, in their order.")
    gene_scale: Severity = Field("must", description="Scale of the expression; of sites with genomics.")
    software: Severity = Field("warn", description="Version of momkd-fl.")


class Model(Strict):
    """The student."""

    architecture: Literal["momkd", "gated_attention"] = Field("momkd", description="Which student.")
    hidden_dim: int = Field(512, ge=8, description="Width D of the patch features (release: 512).")
    heads: int = Field(2, ge=1, description="Attention heads of the graph layers (release: 2).")
    memory_dim: int = Field(64, ge=4, description="Width S of the projected space (release: 64).")
    neighbours: int = Field(8, ge=1, le=32, description="Spatial neighbours k of each patch (release: 8).")
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout of graph layers and classifier (release: 0.5).")

    @property
    def graph_neighbours(self) -> int:
        """Neighbours that the student looks at: none where it has no graph, and then none are searched for."""
        return self.neighbours if self.architecture == "momkd" else 0


class Memory(Strict):
    """The memory of class prototypes (METHOD sections 8 and 10)."""

    mode: Literal["anchors", "momentum", "gradient", "frozen"] = Field(
        "anchors",
        description="'anchors': genomic anchors in a fixed space beside histology slots moved by momentum; "
        "'momentum': one memory moved by momentum; 'gradient': a parameter, as released; 'frozen': never moved.",
    )
    genomics: bool = Field(
        True, description="False: the control whose memory never sees genomics (no genomic statistics or losses)."
    )
    source: Literal["genomics", "random", "labels"] = Field(
        "genomics",
        description="What the anchors are made of; two are for comparison. 'random': anchors and slots are orthogonal "
        "directions that nothing moves; 'labels': a patient's target is its class, whatever its genome.",
    )
    decoupled: bool = Field(
        True,
        description="False, in mode 'gradient' only: attention and commitment reach the slots too.",
    )
    slots: int = Field(4, ge=1, le=64, description="Slots K per class.")
    momentum: Share = Field(0.9, description="Share of the old slot kept at each update.")
    genomic_weight: Share = Field(0.5, description="Weight of the genomic direction; histology has the rest.")
    min_count: float = Field(1.0, ge=0, description="Slots with a smaller summed count keep their value.")
    assignment: Literal["balanced", "soft", "hard"] = Field(
        "balanced", description="How statistics are assigned to slots; 'balanced' keeps slots from collapsing."
    )
    init_iterations: int = Field(4, ge=1, le=50, description="Iterations of the federated spherical k-means.")
    anchor_dim: int = Field(16, ge=2, le=256, description="Dimensions of the fixed genomic space.")
    anchor_iterations: int = Field(5, ge=1, le=50, description="Iterations that place the genomic anchors.")
    match_weight: float = Field(0.5, ge=0, description="Weight of the slot-matching loss.")
    match_temperature: float = Field(0.1, gt=0, description="Temperature of the slot-matching distributions.")


class Losses(Strict):
    """Weights of METHOD section 4."""

    classification: float = Field(0.5, ge=0, description="Cross-entropy.")
    memory: float = Field(0.1, ge=0, description="Commitment of patches to their slots.")
    align_histology: float = Field(0.2, ge=0, description="Alignment of the slide with its class's slots.")
    align_genomics: float = Field(0.05, ge=0, description="Alignment of the genome with its class's slots.")
    reconstruction: float = Field(0.05, ge=0, description="Reconstruction of the gene panel.")
    margin: float = Field(0.3, ge=0, description="Margin m of the alignment losses.")
    batch: float = Field(
        0.0, ge=0, description="Batch-local distillation, for comparison: a slide is drawn to its own patient's genome."
    )
    batch_distance: Literal["cosine", "mse"] = Field(
        "cosine",
        description="'cosine' in the projected space, to the genomic branch; 'mse' in the fixed genomic space.",
    )
    logits: float = Field(
        0.0, ge=0, description="Distillation of a local teacher's logits, out of fold, that knows genomics alone."
    )
    logits_temperature: float = Field(2.0, gt=0, description="Temperature of both sides of that distillation.")
    soft_labels: Share = Field(
        0.0,
        description="Share of the label that, for a patient with genomics, a genomic teacher's class probabilities "
        "replace. The teacher follows from the sums that place the anchors, without the patient itself.",
    )

    @model_validator(mode="after")
    def _one_teacher(self) -> Losses:
        if self.logits and self.soft_labels:
            raise ValueError("losses.logits and losses.soft_labels are two teachers; set one of them to 0")
        return self


class Training(Strict):
    """What a site does in one round."""

    local_epochs: float = Field(1.0, gt=0, description="Passes over the site's training patients in one round.")
    local_steps: int | None = Field(None, ge=1, description="Steps in one round; replaces local_epochs.")
    patients_per_step: int = Field(1, ge=1, description="Patients packed into one step (release: 1).")
    learning_rate: float = Field(2e-4, gt=0, description="AdamW's learning rate.")
    learning_rate_end: Share = Field(
        1.0, description="The last round's learning rate as a share of the first's, by half a cosine; 1: constant."
    )
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's weight decay.")
    clip_norm: float = Field(5.0, gt=0, description="Largest gradient norm, per branch.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="'auto' keeps bf16 only where a self-test finds it faster and accurate."
    )
    score_precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Precision of scores and of the memory's statistics, one for all sites, so that they compare. "
        "bf16 takes little more than half the time where the processor has it (make bench ONLY=evaluate).",
    )
    standardise: Literal["none", "site", "slide"] = Field(
        "site", description="Features are standardised by the site's or slide's own unlabelled patches."
    )
    validation_fraction: float = Field(0.2, gt=0, lt=1, description="Share of patients kept for validation.")
    max_patches: int | None = Field(
        None, ge=16, description="Patches per patient and step, sampled at random when there are more; none: all."
    )


class Genes(Strict):
    """The gene panel, agreed before round 1. Labels have a part in it only where it is 'learnt'."""

    panel: str = Field(
        "shared",
        description="'shared': the genes every genomic site has; 'odx21', 'pam50': named panels; 'learnt': the genes "
        "that tell the classes apart in the training patients, by sums over the sites; or a text file.",
    )
    count: int = Field(64, ge=1, description="Genes of a learnt panel.")
    candidates: str | None = Field(
        None,
        description="Where the panel is learnt: a named panel or a text file it is taken from; none: the genes every "
        "genomic site has.",
    )
    minimum: int = Field(5, ge=1, description="Fewest genes of the panel a genomic site must have.")

    @model_validator(mode="after")
    def _learnt(self) -> Genes:
        if self.candidates is not None and self.panel != "learnt":
            raise ValueError("genes.candidates counts only with genes.panel: learnt; remove one of the two")
        if self.panel == "learnt" and self.count < self.minimum:
            raise ValueError(f"genes.count is {self.count}, fewer than genes.minimum, which is {self.minimum}")
        return self


class Strategy(Strict):
    """How the coordinator aggregates. Sites count equally or by public weights, never by exact counts."""

    name: Literal["fedavg", "fedprox", "fedadam"] = Field("fedavg", description="Aggregation of the weights.")
    proximal_mu: float = Field(0.01, ge=0, description="FedProx's proximal term.")
    server_learning_rate: float = Field(0.01, gt=0, description="FedAdam's server learning rate.")
    site_weights: dict[str, float] = Field(
        default_factory=dict, description="Public weights by site, agreed beforehand; default 1 each."
    )


class Rounds(Strict):
    """How the run goes on."""

    count: int = Field(20, ge=1, description="Rounds of training.")
    quorum: int = Field(2, ge=1, description="Fewest training sites whose replies make a round.")
    deadline_s: float = Field(600.0, gt=0, description="How long a round waits for its sites, in seconds.")
    gather_s: float = Field(
        600.0, gt=0, description="How long to wait for every listed site at the start, then go on with a quorum."
    )
    repeats: int = Field(
        20,
        ge=0,
        description="How often a round that too few answered is begun again, after a pause that doubles up to a "
        "minute; then the run stops, and the same command goes on with it.",
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after this many rounds without a better validation AUROC; none: never."
    )


class FederationConfig(Strict):
    """One federated run, as the coordinator describes it."""

    name: Name = Field(description="Name of the run; part of every checkpoint and result.")
    task: str = Field(description="The task all sites train: a key of their 'tasks'.")
    classes: int = Field(2, ge=2, le=32, description="Number of classes.")
    class_names: list[str] | None = Field(
        None, description="What the classes mean, class 0 first (e.g. [PR negative, PR positive]); compared with sites."
    )
    rule_out: bool = Field(
        False,
        description="Whether a low score may spare a patient a test; the report then shows sensitivity, NPV and the "
        "share spared. ODX tasks show it in any case.",
    )
    encoder: Encoder
    fingerprint: Compared = Field(default_factory=lambda: Compared())
    model: Model = Field(default_factory=lambda: Model())
    memory: Memory = Field(default_factory=lambda: Memory())
    losses: Losses = Field(default_factory=lambda: Losses())
    training: Training = Field(default_factory=lambda: Training())
    genes: Genes = Field(default_factory=lambda: Genes())
    privacy: Privacy = Field(default_factory=lambda: Privacy())
    aggregation: Aggregation = Field(default_factory=lambda: Aggregation())
    strategy: Strategy = Field(default_factory=lambda: Strategy())
    rounds: Rounds = Field(default_factory=lambda: Rounds())
    seed: int = Field(0, ge=0, description="Seed of everything that is not a key or noise.")
    output_dir: FilePath = Field(description="Folder for checkpoints, results and the report.")
    members: dict[Name, Member] = Field(
        min_length=1, description="Every site of this run by name; the consortium's list must have it too."
    )
    listen: Listen = Field(default_factory=lambda: Listen())
    tls: Tls | None = Field(None, description="The server's certificates. Needed by momkd-server.")
    consortium: Consortium | None = Field(
        None, description="The consortium's allow-list, held against 'members'. Needed by momkd-server."
    )
    signing_key: FilePath | None = Field(
        None,
        description="The coordinator's Ed25519 private key (PEM, mode 0600), as its certificate names it. Needed by "
        "momkd-server with aggregation 'secagg'.",
    )
    seal: Seal | None = Field(
        None,
        description="Seals checkpoint and model of momkd-server; none: they lie in the clear. 'momkd simulate' seals "
        "nothing.",
    )
    telemetry: Telemetry = Field(default_factory=lambda: Telemetry())

    @model_validator(mode="after")
    def _consistent(self) -> FederationConfig:
        training = [name for name, member in self.members.items() if member.role == "train"]
        if not training:
            raise ValueError("no member has role 'train'")
        if self.rounds.quorum > len(training):
            raise ValueError(f"rounds.quorum is {self.rounds.quorum}, but only {len(training)} members train")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"class_names lists {len(self.class_names)} classes, but classes is {self.classes}")
        if not self.memory.decoupled and self.memory.mode != "gradient":
            raise ValueError("memory.decoupled: false counts only with memory.mode: gradient, whose slots are trained")
        if self.model.hidden_dim % self.model.heads:
            raise ValueError("model.hidden_dim must be a multiple of model.heads")
        stray = sorted(set(self.strategy.site_weights) - set(training))
        if stray:
            raise ValueError(f"strategy.site_weights names {stray[0]!r}, which is no training member")
        trimmed = self.aggregation.kind == "robust" and self.aggregation.rule == "trimmed_mean"
        if trimmed and (self.rounds.quorum < TRIMMED_SITES_MIN or len(set(self.strategy.site_weights.values())) > 1):
            raise ValueError(
                f"aggregation.rule: trimmed_mean needs rounds.quorum of {TRIMMED_SITES_MIN} or more and sites of equal "
                "weight; use geometric_median"
            )
        forbidden = next((sentence for broken, sentence in breaks_privacy(self) if broken), None)
        if forbidden:
            raise ValueError(forbidden)
        return self
