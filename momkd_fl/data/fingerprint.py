"""What two sites must mean alike before they train together, and a digest of what was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from pydantic import ConfigDict, TypeAdapter, ValidationError

from momkd_fl import __version__
from momkd_fl.config.federation import Compared
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.cohort import Cohort
from momkd_fl.data.encoders import canonical_encoder
from momkd_fl.data.features import same_edge
from momkd_fl.errors import UserError

Value = str | int | float | None


@dataclass(frozen=True)
class Fingerprint:
    """One site's side of the agreement; nothing in it depends on a patient.

    Attributes
    ----------
    patch_um : float or None
        Edge of a patch in micrometres; equal within 10%, since magnifications are nominal.
    magnification : float or None
        Of the patches; equal within 10%.
    preprocessing : str or None
        How patches were prepared for the encoder, in the site's own words.
    class_names : str or None
        What the classes mean, class 0 first, joined by ' | '; not the values of the site's table.
    definition : str or None
        How the label was made, in the site's own words (assay, cut-off).
    gene_scale, genes : str or None
        Scale of the expression, and digest of the agreed panel; None without genomics or before
        the panel is agreed.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    encoder: str
    dim: int
    task: str
    classes: int
    patch_um: float | None = None
    preparation: str | None = None
    scanner: str | None = None
    definition: str | None = None
    gene_scale: str | None = None
    genes: str | None = None
    software: str | None = None
    magnification: float | None = None
    preprocessing: str | None = None
    class_names: str | None = None

    def to_dict(self) -> dict[str, Value]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Fingerprint:
        """Read what :meth:`to_dict` wrote, by this or another party; the encoder's name is made canonical.

        Raises
        ------
        UserError
            ``fingerprint-malformed``: an unknown or missing field, or a value of another type.
        """
        try:
            found = TypeAdapter(cls).validate_python(dict(values))
        except ValidationError as errors:
            place = ".".join(str(part)[:40] for part in errors.errors()[0]["loc"])
            raise UserError(
                "fingerprint-malformed",
                f"The fingerprint's field '{place}' is unknown, missing or of another type. Install one version of "
                "momkd-fl at every site and the coordinator.",
            ) from None
        return replace(found, encoder=canonical_encoder(found.encoder))


SET_IN = {
    "encoder": "data.encoder",
    "dim": "data.features",
    "task": "data.tasks",
    "classes": "data.tasks.<task>.classes",
    "patch_um": "data.patch_um",
    "magnification": "data.magnification",
    "preprocessing": "data.preprocessing",
    "preparation": "data.preparation",
    "scanner": "data.scanner",
    "definition": "data.tasks.<task>.definition",
    "class_names": "data.tasks.<task>.class_names",
    "gene_scale": "data.genomics.scale",
}
"""Where the site's file states a field; those not here follow from the software."""

_NOMINAL = frozenset({"patch_um", "magnification"})
_FREE_WORDS = frozenset({"preprocessing", "scanner", "definition"})


@dataclass(frozen=True)
class Mismatch:
    """One field that differs, and whether it stops the site; ``ours`` None: not stated, though it is required."""

    field: str
    ours: Value
    reference: Value
    must_match: bool


def joined(class_names: Sequence[str]) -> str:
    """Names of classes as the fingerprint compares them: in their order, without case or stray blanks."""
    return " | ".join(_plain(name) for name in class_names)


def fingerprint(site: SiteConfig, cohort: Cohort) -> Fingerprint:
    """The fingerprint of one site's cohort."""
    digest = hashlib.sha256("\n".join(cohort.panel).encode()).hexdigest()[:16]
    task = site.data.tasks[cohort.task]
    return Fingerprint(
        encoder=cohort.encoder,
        dim=cohort.dim,
        task=cohort.task,
        classes=cohort.classes,
        patch_um=cohort.patch_um,
        preparation=site.data.preparation,
        scanner=site.data.scanner,
        definition=task.definition,
        gene_scale=cohort.gene_scale,
        genes=digest if cohort.panel and cohort.genes_available else None,
        software=__version__,
        magnification=site.data.magnification,
        preprocessing=site.data.preprocessing,
        class_names=None if task.class_names is None else joined(task.class_names),
    )


def mismatches(ours: Fingerprint, reference: Fingerprint, compared: Compared | None = None) -> list[Mismatch]:
    """Fields that differ, in the order of the dataclass.

    A field that one side does not state is not compared, but where it is 'required' a site that does not state it
    differs. Fields that ``compared`` does not list (encoder, dimension, task, ...) must always match.
    """
    severity = (compared or Compared()).model_dump()
    found = []
    for field in fields(Fingerprint):
        here, there = getattr(ours, field.name), getattr(reference, field.name)
        asked = severity.get(field.name, "must")
        if here is None and asked == "required":
            found.append(Mismatch(field.name, None, there, True))
        elif asked != "ignore" and here is not None and there is not None and not _same(field.name, here, there):
            found.append(Mismatch(field.name, here, there, asked != "warn"))
    return found


def _same(field: str, here: Value, there: Value) -> bool:
    if field in _NOMINAL and isinstance(here, int | float) and isinstance(there, int | float):
        return same_edge(here, there)
    return here == there or (field in _FREE_WORDS and _plain(str(here)) == _plain(str(there)))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def data_digest(cohort: Cohort) -> str:
    """Hash of what a cohort holds: feature files by name and size, labels, splits and genes.

    Provenance for the site's own records. It depends on labels and ids, so it stays at the site.
    """
    digest = hashlib.sha256(f"{cohort.task}\n{cohort.encoder}\n{cohort.dim}\n".encode())
    digest.update("\n".join(cohort.genes_available).encode())
    for patient in cohort.patients:
        digest.update(f"\n{patient.id}\t{patient.label}\t{patient.split}".encode())
        for path in patient.slides:
            digest.update(f"\t{path.name}:{path.stat().st_size}".encode())
        if patient.genes is not None:
            digest.update(patient.genes.tobytes())
    return digest.hexdigest()
