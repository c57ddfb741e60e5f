"""The sites' sums for the memory become one, with a bound on what a single site adds to a slot.

A site counts with at most ``patients_max`` patients a modality. Under ``robust`` it counts in a slot with no more than
the middle one of the sites that have anything there (of an even number, the lower of the two middle ones), so that a
site that puts all its weight on one slot has there at most the share of an ordinary one: 2 / n. Where a single site has
anything in a slot, no other can answer it, and only ``patients_max`` bounds it.

Scaling sums and counts together leaves a site's direction, and noise on them, as they are: it is post-processing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Members = Mapping[str, NDArray[np.float32]]
Floats = NDArray[np.float64]
USED = 1e-6
"""A slot with less assigned to it is empty."""


def combined(by_site: Mapping[str, Members], patients_max: float, *, robust: bool) -> dict[str, Floats]:
    """Sums (C, K, dim) and counts (C, K) over sites, by the names they came with."""
    total: dict[str, Floats] = {}
    for modality in sorted({name.partition(".")[2] for members in by_site.values() for name in members}):
        holders = [by_site[site] for site in sorted(by_site) if f"counts.{modality}" in by_site[site]]
        counts = np.stack([np.asarray(members[f"counts.{modality}"], np.float64) for members in holders])
        scale = site_scales(counts, patients_max, robust=robust)
        sums = np.stack([np.asarray(members[f"sums.{modality}"], np.float64) for members in holders])
        total[f"sums.{modality}"] = np.einsum("nck,nckd->ckd", scale, sums)
        total[f"counts.{modality}"] = (scale * counts).sum(axis=0)
    return total


def gene_sums(by_site: Mapping[str, Members], patients_max: float) -> dict[str, Floats]:
    """Sums over genes (``n`` and what comes with it); a site counts with at most ``patients_max`` patients."""
    total: dict[str, Floats] = {}
    for _, members in sorted(by_site.items()):
        scale = min(1.0, patients_max / max(float(members["n"].ravel()[0]), 1e-300))
        for name, value in members.items():
            total[name] = total.get(name, np.zeros(value.shape)) + scale * np.asarray(value, np.float64)
    return total


def site_scales(counts: Floats, patients_max: float, *, robust: bool) -> Floats:
    """What each site's sums are multiplied with, (n, C, K), from the counts (n, C, K) of the sites."""
    patients = np.maximum(counts, 0.0).sum(axis=(1, 2), keepdims=True)
    scale = np.broadcast_to(np.minimum(1.0, patients_max / np.maximum(patients, 1e-300)), counts.shape)
    if not robust:
        return np.asarray(scale)
    bounded = scale * counts
    present = bounded > USED
    ranked = np.sort(np.where(present, bounded, np.inf), axis=0)
    middle = np.take_along_axis(ranked, np.maximum(present.sum(axis=0) - 1, 0)[None] // 2, axis=0)
    return np.asarray(scale * np.where(present, np.minimum(1.0, middle / np.maximum(bounded, USED)), 1.0))
