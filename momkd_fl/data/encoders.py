"""Names of patch encoders: one canonical name for each, whatever the tool that wrote the file calls it."""

from __future__ import annotations

import re
from pathlib import Path

from momkd_fl.errors import UserError

# canonical name: (embedding dimensions its published checkpoints give, other names in use)
_KNOWN: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "uni": ((1024,), ("uni_v1", "uni1", "mahmood-uni", "mahmoodlab/uni")),
    "uni2-h": ((1536,), ("uni_v2", "uni2", "uni2h", "mahmood-uni2-h", "mahmoodlab/uni2-h")),
    "conch": ((512,), ("conch_v1", "conch1", "mahmood-conch", "mahmoodlab/conch")),
    "conch-v1.5": ((768,), ("conch_v15", "conch_v1_5", "conch1_5", "conch15", "mahmoodlab/conchv1_5")),
    "virchow": ((2560, 1280), ("virchow1", "virchow_v1", "virchow-full", "paige-ai/virchow")),
    "virchow2": ((2560, 1280), ("virchow_v2", "paige-ai/virchow2")),
    "phikon": ((768,), ("phikon_v1", "owkin/phikon")),
    "phikon-v2": ((1024,), ("phikon2", "owkin/phikon-v2")),
    "gigapath": ((1536,), ("prov-gigapath", "prov_gigapath", "gigapath-tile-encoder")),
    "h-optimus-0": ((1536,), ("hoptimus0", "h_optimus_0", "h0", "bioptimus/h-optimus-0")),
    "h-optimus-1": ((1536,), ("hoptimus1", "h_optimus_1", "h1", "bioptimus/h-optimus-1")),
    "h0-mini": ((768, 1536), ("h0mini", "bioptimus/h0-mini")),
    "musk": ((1024,), ("xiangjx/musk",)),
    "midnight": ((3072, 1536), ("midnight12k", "midnight-12k", "kaiko-ai/midnight")),
    "keep": ((768,), ("astaxanthin/keep",)),
    "gpfm": ((1024,), ()),
    "hibou-l": ((1024,), ("histai/hibou-l",)),
    "hibou-b": ((768,), ("histai/hibou-b",)),
    "lunit-vits8": ((384,), ("lunit", "lunit-dino", "lunit_vits8")),
    "kaiko-vits8": ((384,), ()),
    "kaiko-vits16": ((384,), ()),
    "kaiko-vitb8": ((768,), ()),
    "kaiko-vitb16": ((768,), ()),
    "kaiko-vitl14": ((1024,), ()),
    "ctranspath": ((768,), ("xiyuewang-ctranspath",)),
    "chief-ctranspath": ((768,), ()),  # CHIEF's own weights for the same network
    "resnet50": ((1024, 2048), ("resnet50_trunc", "resnet50-trunc")),
}


def _key(name: str) -> str:
    """What is left of a name when case, separators and version dots are ignored."""
    return re.sub(r"[^a-z0-9/]+", "", name.strip().lower())


_CANONICAL = {_key(name): canonical for canonical, (_, aliases) in _KNOWN.items() for name in (canonical, *aliases)}


def canonical_encoder(name: str) -> str:
    """One spelling for one encoder.

    A name in the table becomes its canonical name (``UNI_v2`` -> ``uni2-h``); any other is
    lower-cased with every run of other characters turned into one hyphen, so that two
    spellings of a home-made encoder still compare equal.
    """
    known = _CANONICAL.get(_key(name))
    return known if known is not None else re.sub(r"[^a-z0-9.]+", "-", name.strip().lower()).strip("-.")


def is_known(name: str) -> bool:
    """Whether the name, or an alias of it, stands in the table of published encoders."""
    return _key(name) in _CANONICAL


def without_suffix(name: str) -> str:
    """The name without what a tool appended to a published encoder's: ``uni2-1a2b3c4d`` -> ``uni2`` (STAMP's hash),
    ``GigapathTile`` -> ``Gigapath`` (slideflow); any other name as it is."""
    for shorter in (name, name.rpartition("-")[0], name.removesuffix("Tile")):
        if shorter and is_known(shorter):
            return shorter
    return name


def encoder_of_folder(path: Path) -> str | None:
    """The encoder in the nearest parent folder called ``features_{encoder}`` (TRIDENT), or None."""
    for folder in path.parents:
        if folder.name.lower().startswith("features_") and len(folder.name) > len("features_"):
            return folder.name[len("features_") :]
    return None


def resolve_encoder(path: Path, attribute: str | None, configured: str | None) -> str | None:
    """Which encoder made a file's features, as a canonical name; None where nothing says.

    The first that applies:

    1. the file's attribute, or else its folder ``features_{encoder}``, where that is a published
       encoder. A configured name that contradicts it is refused: one of the two is wrong;
    2. the configured name (``data.encoder``). It overrides an attribute or folder that names no
       published encoder, which is how files with a placeholder there are used;
    3. the attribute as it stands, then the folder's name.

    Raises
    ------
    UserError
        ``encoder-conflict``, rule 1.
    """
    folder = encoder_of_folder(path)
    stated = next((name for name in (attribute, folder) if name and is_known(name)), None)
    if stated is not None:
        if configured is not None and canonical_encoder(configured) != canonical_encoder(stated):
            raise UserError(
                "encoder-conflict",
                f"{path}: the file says its features come from '{canonical_encoder(stated)}', but data.encoder says "
                f"'{canonical_encoder(configured)}'. Correct data.encoder, or point data.features at the right folder.",
            )
        return canonical_encoder(stated)
    name = configured or attribute or folder
    return canonical_encoder(name) if name else None


def check_dimension(path: Path, encoder: str, dim: int) -> None:
    """Refuse a published encoder with a dimension it never gives.

    Raises
    ------
    UserError
        ``encoder-dim``.
    """
    dims = _KNOWN[encoder][0] if encoder in _KNOWN else (dim,)
    if dim not in dims:
        wanted = " or ".join(str(size) for size in dims)
        raise UserError(
            "encoder-dim",
            f"{path}: the features have {dim} dimensions, but '{encoder}' gives {wanted}. "
            "The encoder's name is wrong: correct data.encoder or extract the features again.",
        )
