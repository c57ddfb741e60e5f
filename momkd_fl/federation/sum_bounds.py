"""How far one honest site counts in a secure sum, and the ranges that this fits into.

Nobody can clip what is masked, so a site does to its own answer what a coordinator of plain sums does to it: the weight
difference to the same public norm (aggregation.py), the memory's sums to ``patients_max`` patients (site_sums.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.federation.aggregation import clip_factor, public_norm
from momkd_fl.federation.private_plan import anchors_release, means_release, private_plan, slots_release
from momkd_fl.federation.site_sums import site_scales
from momkd_fl.federation.sum_parts import Flat, Part
from momkd_fl.privacy.mechanism import Release
from momkd_fl.secagg.manifest import HOLDERS_MIN, SITES_COMPLETE_MAX

DEVIATIONS = 8.0
"""A number with noise is within so many standard deviations of what it is without, but for one of 10^15."""
CLIP_NORM_MAX = 1e6
"""Beyond it a sum over fifty sites would be coarse: 2^-23."""


def bounded(made: Flat, config: FederationConfig, parts: Iterable[Part]) -> Flat:
    """The answer with its weight difference no longer than the bound, its sums of no more than the most patients.

    ``parts``: what the answer consists of at a site that has everything; the bound is by the number of all weights.
    Directions stay; noise that is in the numbers already is scaled with them, which is post-processing. Not so a share
    of the noise: it stays as it is, and the ranges hold what it comes to (noise_shares.py).
    """
    updates = {name: value for name, value in made.items() if name.startswith("update.")}
    parameters = sum(math.prod(part.shape) for part in parts if part.source.startswith("update."))
    length = float(np.sqrt(sum(float(np.vdot(value, value)) for value in updates.values())))
    factor = clip_factor(length, public_norm(config, parameters))
    found = dict(made)
    if factor < 1.0:
        found |= {name: factor * np.asarray(value, np.float64) for name, value in updates.items()}
    if config.privacy.noise_shares > 1:
        return found
    patients_max = config.aggregation.patients_max
    for name in [name for name in made if name.startswith("statistics.counts.")]:
        scale = site_scales(np.asarray(made[name], np.float64)[None], patients_max, robust=False)[0]
        sums = name.replace(".counts.", ".sums.", 1)
        found |= {name: scale * made[name], sums: scale[..., None] * made[sums]}
    if "statistics.n" in made:
        share = min(1.0, patients_max / max(float(made["statistics.n"].ravel()[0]), 1e-300))
        genes = [name for name in made if name.startswith("statistics.")]
        found |= {name: share * np.asarray(made[name], np.float64) for name in genes}
    return found


def must_be_summable(config: FederationConfig) -> None:
    """Refuse a run of secure sums that could never end a round.

    Raises
    ------
    UserError
        ``sum-too-few-sites``, ``sum-too-many-sites``, and as :func:`must_fit`.
    """
    training = [name for name, member in config.members.items() if member.role == "train"]
    least = max(HOLDERS_MIN, config.privacy.noise_shares + 1, config.rounds.quorum, config.aggregation.threshold or 0)
    if len(training) < least:
        raise UserError(
            "sum-too-few-sites",
            f"aggregation 'secagg' needs {least} training members, and there are {len(training)}: a sum over fewer "
            "tells the members of each other.",
        )
    if len(training) > SITES_COMPLETE_MAX:
        raise UserError(
            "sum-too-many-sites",
            f"aggregation 'secagg' is for up to {SITES_COMPLETE_MAX} training members; there are {len(training)}.",
        )
    must_fit(config)


def must_fit(config: FederationConfig) -> None:
    """Hold the ranges against what honest sites may send: R >= bound + 8 standard deviations of the noise.

    The weight difference needs no more than its bound, since what noise DP-SGD leaves in it is clipped with it.

    Raises
    ------
    UserError
        ``sum-range``.
    """
    limits = config.aggregation
    if limits.clip_norm is not None and limits.clip_norm > CLIP_NORM_MAX:
        raise UserError(
            "sum-range",
            f"aggregation.clip_norm is {limits.clip_norm:g}; a secure sum holds differences of weights up to "
            f"{CLIP_NORM_MAX:g}. Lower it, or leave it out.",
        )
    needed = max([_widest(limits.patients_max, release) for release in _releases(config)], default=limits.patients_max)
    if limits.sums_limit < needed:
        raise UserError(
            "sum-range",
            f"aggregation.sums_limit is {limits.sums_limit:g}, but a site's sums may come to {needed:.0f}: of "
            f"patients_max ({limits.patients_max:g}) patients, and {DEVIATIONS:g} standard deviations of noise. Raise "
            "sums_limit, or lower patients_max.",
        )


def _widest(patients: float, release: Release) -> float:
    """Largest number of a release by so many patients."""
    return max(patients * release.clip + DEVIATIONS * release.noise_sd, patients + DEVIATIONS * release.count_sd)


def _releases(config: FederationConfig) -> list[Release]:
    """What the run releases with noise; the size of a part does not matter here."""
    plan = private_plan(config)
    if plan.sigma is None:
        return []
    made = {
        "means": means_release(config, plan.sigma, 1),
        "anchors": anchors_release(config, plan.sigma, 1),
        "slots": slots_release(config, plan.sigma, genomic=config.memory.genomics),
    }
    return [made[part] for part in plan.releases]
