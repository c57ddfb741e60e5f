"""What all feature files of a site must have in common: encoder, dimension and patch size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from momkd_fl.config.federation import Encoder
from momkd_fl.config.site import Data
from momkd_fl.data.bags import BagHeader, Format, read_header
from momkd_fl.data.encoders import canonical_encoder, check_dimension, resolve_encoder
from momkd_fl.errors import UserError

PATCH_TOLERANCE = 0.1
"""Relative difference of patch edges that still counts as the same: magnifications are nominal."""

_SHOWN = 5

SlidesByPatient = Mapping[str, tuple[Path, ...]]


@dataclass(frozen=True)
class SiteFeatures:
    """Canonical encoder, embedding dimension, the patch edge in µm where anything says it, and how many files
    have which format."""

    encoder: str
    dim: int
    patch_um: float | None
    formats: dict[str, int] = field(default_factory=dict)


def common_features(slides: SlidesByPatient, data: Data) -> SiteFeatures:
    """Read the headers of all slides, at least one, and check that they agree.

    Raises
    ------
    UserError
        As :func:`agreed_features`; as :func:`momkd_fl.data.bags.read_header`, for up to five files at once.
    """
    return agreed_features(_headers(slides, data.format), data)


def agreed_features(headers: Sequence[BagHeader], data: Data) -> SiteFeatures:
    """What headers, at least one, have in common.

    Raises
    ------
    UserError
        ``encoder-unknown``, ``encoder-mixed``, ``dim-mixed``, ``patch-um-mixed``,
        ``patch-um-conflict``; as :func:`momkd_fl.data.encoders.resolve_encoder` and ``check_dimension``.
    """
    first = headers[0]
    encoder = _encoder(first, data)
    patch_um = _patch_um(first, data)
    for header in headers:
        if header.dim != first.dim:
            raise UserError(
                "dim-mixed",
                f"{header.path}: the features have {header.dim} dimensions, but {first.path} has {first.dim}. "
                "A site has one encoder: point data.features at one set of features.",
            )
        other = _encoder(header, data)
        if other != encoder:
            raise UserError(
                "encoder-mixed",
                f"{header.path}: the features come from '{other}', but those of {first.path} from '{encoder}'. "
                "A site has one encoder: point data.features at one set of features.",
            )
        edge = _patch_um(header, data)
        if edge is not None and patch_um is not None and not same_edge(edge, patch_um):
            raise UserError(
                "patch-um-mixed",
                f"{header.path}: patches of {edge:g} µm, but another slide has {patch_um:g} µm. "
                "Extract the site's slides at one patch size.",
            )
        patch_um = edge if patch_um is None else patch_um
    return SiteFeatures(encoder, first.dim, patch_um, dict(Counter(header.format for header in headers)))


def check_expected(site: str, features: SiteFeatures, expected: Encoder) -> None:
    """Compare a site's features with what the federation needs; an unknown patch edge is not compared.

    Raises
    ------
    UserError
        ``encoder-mismatch``, ``dim-mismatch`` or ``patch-um-mismatch``, naming site and field.
    """
    mend = "Extract the features the federation agreed on, or point data.features at them."
    wanted = canonical_encoder(expected.name)
    if features.encoder != wanted:
        raise UserError(
            "encoder-mismatch",
            f"Site '{site}': 'encoder' of the features is '{features.encoder}', the federation needs '{wanted}'. "
            f"{mend}",
        )
    if features.dim != expected.dim:
        raise UserError(
            "dim-mismatch",
            f"Site '{site}': 'dim' of the features is {features.dim}, the federation needs {expected.dim}. {mend}",
        )
    edge, needed = features.patch_um, expected.patch_um
    if edge is not None and needed is not None and not same_edge(edge, needed):
        raise UserError(
            "patch-um-mismatch",
            f"Site '{site}': 'patch_um' of the features is {edge:g}, the federation needs {needed:g}. {mend}",
        )


def same_edge(one: float, other: float) -> bool:
    """Whether two patch edges (µm) differ by no more than :data:`PATCH_TOLERANCE` of the larger."""
    return abs(one - other) <= PATCH_TOLERANCE * max(one, other)


def _headers(slides: SlidesByPatient, format_: Format | None) -> list[BagHeader]:
    headers: list[BagHeader] = []
    problems: list[UserError] = []
    for path in (path for paths in slides.values() for path in paths):
        try:
            headers.append(read_header(path, format_))
        except UserError as problem:
            problems.append(problem)
    if problems:
        lines = [problem.sentence for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"... and {len(problems) - _SHOWN} more feature files have problems.")
        raise UserError(problems[0].code, "\n".join(lines))
    return headers


def _encoder(header: BagHeader, data: Data) -> str:
    encoder = resolve_encoder(header.path, header.encoder, data.encoder)
    if encoder is None:
        raise UserError(
            "encoder-unknown",
            f"{header.path}: neither the file nor its folder says which encoder made it. Name it in data.encoder; "
            "the dimension alone identifies none.",
        )
    check_dimension(header.path, encoder, header.dim)
    return encoder


def _patch_um(header: BagHeader, data: Data) -> float | None:
    """The configured edge where there is one: it is measured, the file's is nominal and must only be near."""
    stated, configured = header.patch_um, data.patch_um
    if stated is not None and configured is not None and not same_edge(stated, configured):
        raise UserError(
            "patch-um-conflict",
            f"{header.path}: the file says its patches are {stated:g} µm, but data.patch_um is {configured:g}. "
            "Correct data.patch_um.",
        )
    return stated if configured is None else configured
