"""The file of one hospital: ``momkd-client --site config.yaml``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from momkd_fl.config.base import FilePath, Strict

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Scale = Literal["tpm", "log2tpm", "zscore", "signedlog"]
Layout = Literal["patients-in-rows", "genes-in-rows", "long", "porpoise", "gdc-star", "npy"]


class Tls(Strict):
    """Certificates of one party. One EC P-384 key serves TLS and Flower's node authentication."""

    ca: FilePath = Field(description="Certificate of the consortium's root (PEM).")
    certificate: FilePath = Field(description="This party's certificate, signed by that root (PEM).")
    private_key: FilePath = Field(description="This party's private key (PEM, mode 0600). It never travels.")
    passphrase_env: str | None = Field(
        None, description="Name of the environment variable that holds the private key's passphrase."
    )
    passphrase_file: FilePath | None = Field(
        None, description="File of mode 0600 whose first line is that passphrase; instead of passphrase_env."
    )

    @model_validator(mode="after")
    def _one_passphrase(self) -> Tls:
        if self.passphrase_env is not None and self.passphrase_file is not None:
            raise ValueError("give passphrase_env or passphrase_file, not both")
        return self


class Seal(Strict):
    """The key under which this party's files are sealed (AES-256-GCM): 32 bytes, as 64 hexadecimal digits."""

    key_file: FilePath | None = Field(
        None, description="File of mode 0600 with the key; 'momkd provision request' makes one beside the others."
    )
    key_env: str | None = Field(None, description="Name of the environment variable with the key; instead of key_file.")

    @model_validator(mode="after")
    def _one_key(self) -> Seal:
        if (self.key_file is None) == (self.key_env is None):
            raise ValueError("give key_file or key_env, one of the two")
        return self


class Consortium(Strict):
    """Who is in: the consortium's word, not the coordinator's. Made with 'momkd provision'."""

    charter: FilePath = Field(description="The consortium's charter (consortium.json): whose signatures count.")
    allow_list: FilePath = Field(description="The newest allow-list at hand, signed as the charter says.")
    seen: FilePath = Field(
        description="File in which this party remembers the newest list it has seen; an older one is refused from then."
    )


class Connection(Strict):
    """How the site reaches the coordinator. Connections are outbound only."""

    url: str = Field(pattern=r"^https://[^/\s]+(:\d+)?/?$", description="The coordinator's address, https://host:port.")
    proxy: str | None = Field(
        None,
        pattern=r"^http://[^/@\s]+:\d+/?$",
        description="A proxy that tunnels (HTTP CONNECT), http://host:port; TLS with the coordinator passes through it "
        "unopened. The environment's HTTPS_PROXY is not looked at.",
    )
    proxy_auth_env: str | None = Field(
        None, description="Name of the environment variable that holds 'user:password' for the proxy."
    )
    poll_max_s: float = Field(
        1.0, gt=0, le=60, description="Longest pause between two questions to the server when idle, in seconds."
    )
    give_up_after_s: float = Field(
        86400.0, gt=0, description="How long to keep trying a server that does not answer, in seconds."
    )


class TaskLabels(Strict):
    """Which values of which column are positive and negative. All other values are excluded and counted."""

    column: str = Field(description="Column of the label table.")
    classes: list[list[str]] | None = Field(
        None,
        description="For more than two classes: the values of each class, in the federation's order.",
    )
    positive: list[str] = Field(default_factory=list, description="Values that mean class 1.")
    negative: list[str] = Field(default_factory=list, description="Values that mean class 0.")
    definition: str | None = Field(
        None, description="How the label was made (assay, cut-off), e.g. 'IHC, >= 1%'. Compared between sites."
    )
    class_names: list[str] | None = Field(
        None,
        description="What the classes mean, class 0 first, in the federation's words (e.g. [PR negative, PR positive]),"
        " whatever the table calls them. Compared between sites.",
    )

    @field_validator("positive", "negative", mode="before")
    @classmethod
    def _as_text(cls, values: object) -> object:
        return [str(value) for value in values] if isinstance(values, list) else values

    @model_validator(mode="after")
    def _two_sides(self) -> TaskLabels:
        if self.classes is None and not (self.positive and self.negative):
            raise ValueError("name at least one positive and one negative value, or 'classes'")
        if self.classes is not None and (self.positive or self.negative):
            raise ValueError("give either 'classes' or 'positive' and 'negative', not both")
        values = [value for group in self.values_by_class for value in group]
        if len(values) != len(set(values)):
            raise ValueError("a value stands in two classes")
        if self.class_names is not None and len(self.class_names) != len(self.values_by_class):
            raise ValueError(
                f"class_names lists {len(self.class_names)} classes, the values are of {len(self.values_by_class)}"
            )
        return self

    @property
    def values_by_class(self) -> list[list[str]]:
        """Values of each class, class 0 first."""
        return self.classes if self.classes is not None else [self.negative, self.positive]


class LabelTable(Strict):
    """The table of labels: one row a patient, or one row a slide with the patient repeated (CLAM)."""

    path: FilePath = Field(description="csv, tsv or xlsx file.")
    sheet: str | None = Field(None, description="Sheet of an xlsx file; default: the first.")
    patient: str | None = Field(
        None, description="Column of patient ids; default: patient, PATIENT, case_id or the like, if there is one."
    )
    slide: str | None = Field(
        None,
        description="Column of slide ids, where the label table has them; several separated by ';'. Default, without "
        "data.slides: slide_id, FILENAME or slide, if there is one.",
    )


class SlideTable(Strict):
    """Which slides belong to which patient, when the label table does not say."""

    path: FilePath = Field(description="csv, tsv or xlsx file, one row a slide.")
    sheet: str | None = Field(None, description="Sheet of an xlsx file; default: the first.")
    patient: str | None = Field(
        None, description="Column of patient ids; default: PATIENT, patient, case_id or the like, if there is one."
    )
    slide: str | None = Field(
        None, description="Column of slide ids or file names; default: FILENAME, slide_id or slide, if there is one."
    )


class Genomics(Strict):
    """The site's expression. Leave the section out where the site has none."""

    path: FilePath = Field(
        description="csv or tsv (also .gz) of any layout, or a folder of GDC STAR tsv files or of one .npy per patient."
    )
    layout: Layout | None = Field(None, description="How the genes and patients stand; default: recognised.")
    patient: str | None = Field(None, description="Column of patient ids; default: recognised, else the first column.")
    gene: str | None = Field(None, description="Column of gene names where genes stand in rows; default: recognised.")
    value: str | None = Field(
        None, description="Column of values of a long table or of GDC STAR files; default: recognised."
    )
    genes: FilePath | None = Field(None, description="Text file, one gene a line: the genes of a folder of .npy.")
    samples: FilePath | None = Field(
        None, description="For a folder: table file,patient, or the GDC's sample sheet. Default: the file's name."
    )
    scale: Scale = Field(
        description="Scale of the values in the file. Declared, never guessed: double logging is silent."
    )
    duplicates: Literal["highest_mean", "refuse"] = Field(
        "highest_mean", description="Of several columns of one gene: keep that with the highest mean, or refuse."
    )


class Data(Strict):
    """Where the site's files are. They are read, never written to."""

    features: list[FilePath] = Field(
        min_length=1, description="Folders searched recursively for one feature file (.h5, .pt or .npy) per slide."
    )
    format: Literal["trident", "clam", "clam-pt", "uni2-h", "stamp", "stamp-old", "torchmil", "slideflow"] | None = (
        Field(None, description="Tool that wrote all feature files; overrides detection, which goes by file.")
    )
    encoder: str | None = Field(
        None, description="Name of the patch encoder, where the files do not say (e.g. 'uni2-h')."
    )
    patch_um: float | None = Field(
        None, gt=0, description="Edge of a patch in micrometres, where the files do not say."
    )
    preparation: Literal["ffpe", "frozen"] | None = Field(
        None, description="How the tissue was prepared. Compared between sites."
    )
    magnification: float | None = Field(
        None, gt=0, description="Magnification at which the patches were cut, e.g. 20. Compared between sites."
    )
    preprocessing: str | None = Field(
        None,
        description="How patches were prepared for the encoder, e.g. '224 px, ImageNet mean and sd'. "
        "Compared between sites.",
    )
    scanner: str | None = Field(None, description="Scanner. Compared between sites, as a warning.")
    labels: LabelTable
    slides: SlideTable | None = Field(None, description="Table of slides, when the label table has none.")
    tasks: dict[str, TaskLabels] = Field(min_length=1, description="Tasks by name (e.g. PR, HER2, ODX).")
    genomics: Genomics | None = None
    splits: FilePath | None = Field(
        None,
        description="csv with columns patient,split (train or validation). Default: a seeded stratified split.",
    )
    store: FilePath | None = Field(
        None,
        description="Folder made by 'momkd ingest'; a slide whose file has not changed since is read from there.",
    )
    minimum_per_class: int = Field(
        5, ge=1, description="Fewest patients with slides of each class that pass the preflight without a warning."
    )
    cache_mb: int = Field(2048, ge=0, description="Memory for features kept between epochs, in MB.")


class Telemetry(Strict):
    """What can be watched while it runs. Nothing of it leaves the machine by itself."""

    metrics_port: Port | None = Field(None, description="Prometheus port on loopback; none: no metrics.")
    log: FilePath | None = Field(None, description="JSON-lines log with allow-listed fields; none: no file.")


class Egress(Strict):
    """The site's contract, key and books. Without this section nothing leaves: momkd-client refuses to start."""

    policy: FilePath = Field(
        description="The contract (YAML), with its signature beside it ('.sig'); written, explained and signed by "
        "'momkd policy'."
    )
    signing_key: FilePath = Field(
        description="The site's Ed25519 private key (PEM, mode 0600): signs ledger and messages, and the contract "
        "unless policy_key names another signer."
    )
    policy_key: FilePath | None = Field(
        None, description="Public key (PEM) of who signs the contract, where that is not the site's own key."
    )
    ledger: FilePath = Field(description="Ledger of all that left, over all runs; made once by 'momkd policy write'.")
    odometer: FilePath = Field(
        description="What the site has spent of its privacy budget, over all runs; made once by 'momkd policy write'."
    )
    publications: FilePath = Field(
        description="Counts that left, and those withheld beside them, over all runs: exact, for this site's eyes."
    )


class SiteConfig(Strict):
    """One hospital's part in a federation."""

    site: Name = Field(description="The site's name in the federation, as on the coordinator's allow-list.")
    role: Literal["train", "evaluate"] = Field(
        "train", description="'evaluate' sites receive models and return metrics; they never train."
    )
    state_dir: FilePath = Field(description="Folder for the site's own state and results (predictions stay here).")
    connection: Connection | None = Field(None, description="Needed by momkd-client; 'momkd simulate' has no network.")
    tls: Tls | None = Field(None, description="Needed by momkd-client; 'momkd simulate' has no network.")
    consortium: Consortium | None = Field(
        None, description="Needed by momkd-client; 'momkd simulate' has no consortium."
    )
    egress: Egress | None = Field(None, description="Needed by momkd-client; 'momkd simulate' sends nothing.")
    seal: Seal | None = Field(
        None,
        description="Seals what momkd-client keeps in state_dir, and egress.publications; none: they lie in the clear. "
        "'momkd simulate' seals nothing.",
    )
    data: Data
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to compute.")
    cuda_graphs: bool = Field(
        False,
        description="On a GPU, record steps whose shapes come again (training.max_patches makes them) and replay them. "
        "Not yet run on a GPU.",
    )
    threads: int = Field(0, ge=0, description="CPU threads for computing; 0: as many as there are cores.")
    telemetry: Telemetry = Field(default_factory=lambda: Telemetry())
