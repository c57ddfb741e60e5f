"""Slides synthesised from molecular profiles (the semi-real benchmark): labels never enter.

A patient's programmes z become visible morphology m, which tints the tumour patches of a bag;
the hospital's stain and the slide's own shift are laid over it. Everything is drawn from
generators keyed by seed and name, so a patient's slide does not depend on who else is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Floats = NDArray[np.float64]

TISSUES = ("tumour", "stroma", "fat", "lymphoid", "artefact")
TUMOUR, STROMA, FAT, LYMPHOID, ARTEFACT = range(5)
PROGRAMMES = 13
"""Twelve components of the expression and the HER2 amplicon."""

VISIBILITY = np.array([0.75] * 4 + [0.5] * 8 + [0.65])
"""Correlation of each programme with what is seen, before saturation."""

_PATCH_PX_LEVEL0 = 512
_SIGNAL_NORM = 0.11
_WITHIN_RANK = 8
_STAIN_RANK = 8
_MEAN_SCALE = 0.5
_WITHIN_SCALE = 0.35
_STAIN_SCALE = 0.35
_WARP_RANK = 8
_PATCH_SCALE = 0.8
"""Root mean square of a patch's features about, so that the warp's inputs have unit variance."""


@dataclass(frozen=True)
class TissueModel:
    """What all hospitals share: how tissues look in the space of the (synthetic) encoder.

    Attributes
    ----------
    means : (5, D) mean patch of each tissue
    within : (5, R, D) directions in which the patches of one tissue differ
    signal : (13, D) how morphology tints tumour: orthonormal rows times 0.11 sqrt(D)
    stain : (8, D) directions in which stains and scanners differ
    """

    means: Floats
    within: Floats
    signal: Floats
    stain: Floats

    @property
    def dim(self) -> int:
        """Dimension D of a patch."""
        return int(self.means.shape[1])


@dataclass(frozen=True)
class Warp:
    """A smooth random map of the feature space: f becomes f + tanh(f V + b) U.

    No scaling and shift of single features undoes it. Attributes: ``into`` V (D, 8), ``bias`` b (8,), ``out`` U (8, D).
    """

    into: Floats
    bias: Floats
    out: Floats

    def __call__(self, features: Floats) -> Floats:
        """Distorted features (P, D)."""
        return np.asarray(features + np.tanh(features @ self.into + self.bias) @ self.out, dtype=np.float64)


@dataclass(frozen=True)
class SiteShift:
    """A hospital's look: features are distorted (where there is a warp), then each is scaled and shifted, (D,)."""

    scale: Floats
    offset: Floats
    warp: Warp | None = None


@dataclass(frozen=True)
class SyntheticBag:
    """One slide: features (P, D) f16, coords (P, 2) level-0 pixels, tissues (P,) and signal (P,)."""

    features: NDArray[np.float16]
    coords: NDArray[np.int64]
    tissues: NDArray[np.int64]
    signal: NDArray[np.bool_]


def generator(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on the seed and the names alone."""
    digest = hashlib.sha256("\x1f".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def tissue_model(seed: int, dim: int = 256) -> TissueModel:
    """Draw the appearance of tissues; ``dim`` is at least 13."""
    rng = generator(seed, "tissue", str(dim))
    axes, _ = np.linalg.qr(rng.standard_normal((dim, PROGRAMMES)))
    return TissueModel(
        means=_MEAN_SCALE * rng.standard_normal((len(TISSUES), dim)),
        within=_WITHIN_SCALE * rng.standard_normal((len(TISSUES), _WITHIN_RANK, dim)),
        signal=np.sqrt(dim) * _SIGNAL_NORM * axes.T,
        stain=_STAIN_SCALE * rng.standard_normal((_STAIN_RANK, dim)),
    )


def site_shift(model: TissueModel, site: str, *, stain: float, seed: int, warp: float = 0.0) -> SiteShift:
    """The look of one hospital.

    ``stain`` 0 leaves only its channel gains (EVALUATION item 5); ``warp`` above 0 adds a distortion that is not
    affine, at 1 about as large as a stain of 1. The channel gains and the stain do not depend on it.
    """
    rng = generator(seed, "site", site)
    scale = np.exp(0.12 * rng.standard_normal(model.dim))
    offset = stain * rng.standard_normal(_STAIN_RANK) @ model.stain
    return SiteShift(scale=scale, offset=offset, warp=_warp(model.dim, site, warp, seed) if warp else None)


def _warp(dim: int, site: str, strength: float, seed: int) -> Warp:
    rng = generator(seed, "warp", site)
    into = rng.standard_normal((dim, _WARP_RANK)) / (_PATCH_SCALE * np.sqrt(dim))
    bias = 0.5 * rng.standard_normal(_WARP_RANK)
    return Warp(into, bias, strength * _STAIN_SCALE * rng.standard_normal((_WARP_RANK, dim)))


def visible_morphology(programmes: Floats, rng: np.random.Generator) -> Floats:
    """The part of the molecular programmes (13,) that shows: 1.5 tanh((rho z + sqrt(1-rho^2) e)/1.5)."""
    noise = rng.standard_normal(PROGRAMMES)
    mixed: Floats = VISIBILITY * programmes + np.sqrt(1 - VISIBILITY**2) * noise
    return 1.5 * np.asarray(np.tanh(mixed / 1.5), dtype=np.float64)


def slide_bag(
    model: TissueModel,
    morphology: Floats,
    shift: SiteShift,
    rng: np.random.Generator,
    *,
    gain: float = 1.0,
    mean_patches: int = 80,
) -> SyntheticBag:
    """One slide of a patient.

    Parameters
    ----------
    morphology : (13,) visible morphology, the same for all slides of a patient
    gain : how strongly morphology tints the tumour; 0: not at all
    mean_patches : median of the log-normal number of patches, cut at 3/8 and 3 times it
    """
    patches = int(np.clip(rng.lognormal(np.log(mean_patches), 0.45), 0.375 * mean_patches, 3 * mean_patches))
    cells = _section(patches, rng)
    tissues, signal = _tissues(cells, rng)
    tint = morphology + 0.6 * rng.standard_normal((patches, PROGRAMMES))
    directions = rng.standard_normal((patches, _WITHIN_RANK))
    features = model.means[tissues] + 0.5 * rng.standard_normal((patches, model.dim))
    for tissue in range(len(TISSUES)):
        here = tissues == tissue
        features[here] += directions[here] @ model.within[tissue]
    features[signal] += gain * tint[signal] @ model.signal
    slide = 0.25 * rng.standard_normal(_STAIN_RANK) @ model.stain
    if shift.warp is not None:
        features = shift.warp(features)
    return SyntheticBag(
        features=(features * shift.scale + shift.offset + slide).astype(np.float16),
        coords=cells[:, ::-1] * _PATCH_PX_LEVEL0,
        tissues=tissues,
        signal=signal,
    )


def _section(patches: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The grid cells (P, 2) of a roundish piece of tissue with a ragged edge, in row order."""
    side = int(np.ceil(np.sqrt(1.6 * patches))) + 1
    rows, columns = np.mgrid[:side, :side]
    from_centre = np.hypot(rows - (side - 1) / 2, columns - (side - 1) / 2)
    ragged = from_centre + side * _field(side, rng) / 12
    inside = np.sort(np.argsort(ragged, axis=None, kind="stable")[:patches])
    return np.stack(np.unravel_index(inside, (side, side)), axis=1).astype(np.int64)


def _field(side: int, rng: np.random.Generator) -> Floats:
    """A smooth random field (side, side) of unit variance: its level sets are coherent blobs."""
    smooth = gaussian_filter(rng.standard_normal((side, side)), sigma=max(1.0, side / 8), mode="nearest")
    return np.asarray((smooth - smooth.mean()) / smooth.std(), dtype=np.float64)


def _tissues(cells: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tissue of each patch and whether it carries signal (EVALUATION item 3)."""
    patches, side = len(cells), int(cells.max()) + 1
    tumour_field, other_field, signal_field = (_field(side, rng)[cells[:, 0], cells[:, 1]] for _ in range(3))
    order = np.argsort(tumour_field, kind="stable")
    tumours = max(1, round(patches * float(np.clip(rng.beta(2, 3), 0.08, 0.9))))
    tumour, rest = order[:tumours], order[tumours:]
    rest = rest[np.argsort(other_field[rest], kind="stable")]
    tissues = np.full(patches, STROMA)
    tissues[tumour] = TUMOUR
    tissues[rest[: round(0.25 * len(rest))]] = FAT
    tissues[rest[len(rest) - round(0.15 * len(rest)) :]] = LYMPHOID
    share = rng.uniform(0.3, 1) if rng.random() < 0.35 else 1.0
    carrying = tumour[np.argsort(signal_field[tumour], kind="stable")][: max(1, round(share * tumours))]
    signal = np.zeros(patches, dtype=bool)
    signal[carrying] = True
    artefact = rng.random(patches) < 0.06
    tissues[artefact] = ARTEFACT
    return tissues, signal & ~artefact
