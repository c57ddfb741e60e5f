"""A consortium on disk: one folder per hospital with the files a hospital would have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import pandas as pd
import yaml

from momkd_fl.errors import UserError
from momkd_fl.synth.expression import Profiles, real_brca, synthetic
from momkd_fl.synth.histology import (
    SyntheticBag,
    TissueModel,
    generator,
    site_shift,
    slide_bag,
    tissue_model,
    visible_morphology,
)

TASKS: dict[str, dict[str, Any]] = {
    "PR": {"column": "PR", "positive": ["positive"], "negative": ["negative"]},
    "HER2": {"column": "HER2", "positive": ["positive"], "negative": ["negative"]},
    "ODX": {"column": "ODX", "positive": ["high"], "negative": ["low"]},
    "ODX_HR": {"column": "ODX_HR", "positive": ["high"], "negative": ["low"]},
}
"""Label sections of a site's file, by task. ``ODX_HR`` (real tables only): ODX in HR+/HER2- patients."""

SEMI_REAL_TRAINING = ("BH", "A2", "E2", "D8", "A8", "AR")
SEMI_REAL_WITHOUT_GENOMICS = ("A8", "AR")


@dataclass(frozen=True)
class SynthSite:
    """One hospital to write.

    Attributes
    ----------
    patients : how many; ignored where the consortium is written from a real table
    genomics : whether it has an expression table
    stain : its own strength of stain, instead of the consortium's
    hospitals : codes of a real table whose patients it holds; default: its name
    """

    name: str
    patients: int = 0
    genomics: bool = True
    role: Literal["train", "evaluate"] = "train"
    stain: float | None = None
    hospitals: tuple[str, ...] = field(default=())


DEMO_SITES = (
    SynthSite("aspen", 120),
    SynthSite("birch", 100),
    SynthSite("cedar", 90),
    SynthSite("elm", 80),
    SynthSite("hazel", 80, genomics=False),
    SynthSite("larch", 70, genomics=False),
    SynthSite("maple", 120, genomics=False, role="evaluate"),
    SynthSite("willow", 120, genomics=False, role="evaluate"),
)
"""Six training sites, two of them without genomics, and two that never train."""


@dataclass(frozen=True)
class _Recipe:
    tissue: TissueModel
    seed: int
    gain: float
    stain: float
    mean_patches: int
    tasks: tuple[str, ...]
    warp: float


def write_consortium(
    folder: Path,
    sites: Sequence[SynthSite] = DEMO_SITES,
    *,
    seed: int,
    gain: float = 1.0,
    stain: float = 0.6,
    warp: float = 0.0,
    dim: int = 256,
    mean_patches: int = 80,
    tasks: Sequence[str] = ("PR", "HER2", "ODX"),
    expression: Profiles | None = None,
) -> dict[str, Path]:
    """Write a consortium of hospitals: bags as TRIDENT writes them, labels, expression, ``site.yaml``.

    Parameters
    ----------
    folder : receives one folder per site
    seed : of tissues, hospitals and patients; the same seed writes the same bytes
    gain : how strongly molecular programmes show in the tumour; 0: histology knows nothing of the labels
    stain : how far hospitals' stains lie apart (0, 0.6 and 1.2 are the benchmark's)
    warp : strength of each hospital's distortion that is not affine
    dim, mean_patches : width of the embeddings; median patches of a slide
    tasks : keys of :data:`TASKS`
    expression : real profiles (see :func:`momkd_fl.synth.expression.real_brca`); default: synthetic ones

    Returns
    -------
    dict
        The ``site.yaml`` of each site, without connection and certificates.

    Raises
    ------
    UserError
        ``synth-folder-in-use`` when a site's folder already holds a finished site;
        ``synth-task-unknown``; ``synth-site-empty`` when the real table has no patient of a site.
    """
    folder = Path(folder)
    ids = {site.name: [f"{site.name}-{number + 1:04d}" for number in range(site.patients)] for site in sites}
    profiles = synthetic(ids, seed) if expression is None else expression
    _check(folder, sites, tasks, profiles)
    recipe = _Recipe(tissue_model(seed, dim), seed, gain, stain, mean_patches, tuple(tasks), warp)
    return {site.name: _write_site(folder / site.name, site, profiles, recipe) for site in sites}


def write_semi_real(
    folder: Path,
    brca_folder: Path,
    *,
    seed: int,
    gain: float = 1.0,
    stain: float = 0.6,
    warp: float = 0.0,
    dim: int = 256,
    mean_patches: int = 80,
    tasks: Sequence[str] = ("PR", "HER2", "ODX"),
    without_genomics: Sequence[str] = SEMI_REAL_WITHOUT_GENOMICS,
) -> dict[str, Path]:
    """Write the semi-real benchmark: real expression, labels and hospitals, synthetic slides.

    Six training sites (:data:`SEMI_REAL_TRAINING`), some of them (``without_genomics``) without expression, and
    ``external``, the other tissue source sites together, which never trains. Parameters, result and errors are those of
    :func:`write_consortium`; ``brca_folder`` is that of :func:`momkd_fl.synth.expression.real_brca`.
    """
    profiles = real_brca(Path(brca_folder))
    sites = [SynthSite(name, genomics=name not in without_genomics) for name in SEMI_REAL_TRAINING]
    others = tuple(sorted(set(profiles.hospitals) - set(SEMI_REAL_TRAINING)))
    sites.append(SynthSite("external", genomics=False, role="evaluate", hospitals=others))
    return write_consortium(
        folder,
        sites,
        seed=seed,
        gain=gain,
        stain=stain,
        warp=warp,
        dim=dim,
        mean_patches=mean_patches,
        tasks=tasks,
        expression=profiles,
    )


def _check(folder: Path, sites: Sequence[SynthSite], tasks: Sequence[str], profiles: Profiles) -> None:
    for task in tasks:
        if task not in TASKS or TASKS[task]["column"] not in profiles.labels:
            known = ", ".join(name for name in TASKS if name in profiles.labels)
            raise UserError("synth-task-unknown", f"There is no task {task!r} in these profiles; choose from {known}.")
    for site in sites:
        if (folder / site.name / "site.yaml").exists():
            raise UserError(
                "synth-folder-in-use",
                f"{folder / site.name}: a site has already been written here. Choose another folder or remove it.",
            )
        if not profiles.at(_hospitals(site)):
            raise UserError("synth-site-empty", f"Site {site.name!r} has no patients: name another or give a number.")


def _hospitals(site: SynthSite) -> tuple[str, ...]:
    return site.hospitals or (site.name,)


def _write_site(folder: Path, site: SynthSite, profiles: Profiles, recipe: _Recipe) -> Path:
    """Write one site; its ``site.yaml`` comes last, so that a folder with it is complete."""
    encoder = f"synthetic-{recipe.tissue.dim}"
    features = folder / f"features_{encoder}"
    features.mkdir(parents=True, exist_ok=True)
    rows = profiles.at(_hospitals(site))
    stain = recipe.stain if site.stain is None else site.stain
    shifts = {
        name: site_shift(recipe.tissue, name, stain=stain, seed=recipe.seed, warp=recipe.warp)
        for name in sorted({profiles.hospitals[row] for row in rows})
    }
    for row in rows:
        patient = profiles.patients[row]
        morphology = visible_morphology(profiles.programmes[row], generator(recipe.seed, "morphology", patient))
        for slide in profiles.slides[row]:
            rng = generator(recipe.seed, "slide", slide)
            shift = shifts[profiles.hospitals[row]]
            bag = slide_bag(recipe.tissue, morphology, shift, rng, gain=recipe.gain, mean_patches=recipe.mean_patches)
            _write_bag(features / f"{slide}.h5", bag, encoder)
    _write_tables(folder, site, profiles, rows, recipe.tasks)
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(_site_file(site, profiles, encoder, recipe.tasks), sort_keys=False), "utf-8")
    return path


def _write_bag(path: Path, bag: SyntheticBag, encoder: str) -> None:
    """One slide as TRIDENT writes it: features (P, D) f16 in chunks of one row, coords in level-0 pixels."""
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", data=bag.features, chunks=(1, bag.features.shape[1]))
        features.attrs["encoder"] = encoder
        features.attrs["name"] = path.stem
        coords = file.create_dataset("coords", data=bag.coords)
        for name, value in (
            ("patch_size", 256),
            ("patch_size_level0", 512),
            ("level0_magnification", 40),
            ("target_magnification", 20),
            ("overlap", 0),
        ):
            coords.attrs[name] = value


def _write_tables(folder: Path, site: SynthSite, profiles: Profiles, rows: list[int], tasks: Sequence[str]) -> None:
    columns: dict[str, list[str]] = {
        "patient": [profiles.patients[row] for row in rows],
        "slides": [";".join(profiles.slides[row]) for row in rows],
    }
    for column in dict.fromkeys(str(TASKS[task]["column"]) for task in tasks):
        columns[column] = [profiles.labels[column][row] for row in rows]
    pd.DataFrame(columns).to_csv(folder / "labels.csv", index=False, lineterminator="\n")
    if site.genomics:
        measured = [row for row in rows if profiles.measured[row]]
        table = pd.DataFrame(profiles.values[measured], columns=list(profiles.genes))
        table.insert(0, "patient", [profiles.patients[row] for row in measured])
        table.to_csv(folder / "expression.csv", index=False, float_format="%.5g", lineterminator="\n")


def _site_file(site: SynthSite, profiles: Profiles, encoder: str, tasks: Sequence[str]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "features": [f"features_{encoder}"],
        "labels": {"path": "labels.csv", "patient": "patient", "slide": "slides"},
        "tasks": {task: TASKS[task] for task in tasks},
    }
    if site.genomics:
        data["genomics"] = {"path": "expression.csv", "patient": "patient", "scale": profiles.scale}
    return {"site": site.name, "role": site.role, "state_dir": "state", "data": data}
