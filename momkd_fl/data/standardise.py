"""Standardising features by a site's own unlabelled patches."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_RELATIVE_FLOOR = 1e-3
TILE_VALUES = 1 << 15
"""Values worked on at once, 128 KB of float32: they stay in the second-level cache."""


def row_tiles(features: npt.NDArray[np.generic]) -> Iterator[slice]:
    """The rows of features (P, D), a tile after the other."""
    rows = max(1, TILE_VALUES // features.shape[1])
    return (slice(start, start + rows) for start in range(0, len(features), rows))


def widen(values: npt.NDArray[np.floating], out: npt.NDArray[np.float32]) -> None:
    """Write float16 or float32 values (P, D) as float32; by torch where it is loaded, in a fifth of NumPy's time."""
    torch = sys.modules.get("torch")
    for rows in row_tiles(values):
        if torch is None:
            out[rows] = values[rows]
        else:
            torch.from_numpy(out[rows]).copy_(torch.from_numpy(values[rows]))


@dataclass(frozen=True)
class FeatureScaling:
    """Mean and standard deviation of every feature dimension, each (D,) float32."""

    mean: npt.NDArray[np.float32]
    sd: npt.NDArray[np.float32]

    def apply(
        self, features: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Standardised features (P, D), a copy or in ``out``, which may be ``features``."""
        scaled = np.empty_like(features) if out is None else out
        for rows in row_tiles(features):
            np.subtract(features[rows], self.mean, out=scaled[rows])
            scaled[rows] /= self.sd
        return scaled


Moments = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Mean and variance of one slide's features, each (D,)."""


def slide_moments(features: npt.NDArray[np.float32]) -> Moments:
    """Mean and variance of features (P, D), over patches; nothing of their size is made."""
    total, squares = np.zeros((2, features.shape[1]))
    for rows in row_tiles(features):
        total += features[rows].sum(axis=0, dtype=np.float64)
    mean = total / len(features)
    centre = mean.astype(np.float32)
    for rows in row_tiles(features):
        squares += np.square(features[rows] - centre).sum(axis=0, dtype=np.float64)
    return mean, squares / len(features)


def fit_scaling(slides: Iterable[Moments]) -> FeatureScaling:
    """Fit over slides, one pass, one slide in memory at a time.

    Every slide counts the same, however many patches it has: the variance is the mean of the
    slides' variances plus the variance of their means. No label is looked at. The standard
    deviation has a floor of 1e-3 of its root mean square over dimensions, so that a dimension
    that hardly moves at this site is not blown up.

    Parameters
    ----------
    slides : iterable of (mean, variance)
        :func:`slide_moments` of each; at least one.
    """
    count = 0
    mean = np.zeros(0)
    within = np.zeros(0)
    between = np.zeros(0)
    for slide_mean, slide_variance in slides:
        if count == 0:
            mean, within, between = (np.zeros(len(slide_mean)) for _ in range(3))
        count += 1
        step = slide_mean - mean  # Welford, over slides
        mean = mean + step / count
        between = between + step * (slide_mean - mean)
        within = within + slide_variance
    if count == 0:
        raise ValueError("no slide to fit the scaling on")
    variance = (within + between) / count
    floor = max(_RELATIVE_FLOOR * float(np.sqrt(variance.mean())), 1e-12)
    sd = np.maximum(np.sqrt(variance), floor)
    return FeatureScaling(mean.astype(np.float32), sd.astype(np.float32))
