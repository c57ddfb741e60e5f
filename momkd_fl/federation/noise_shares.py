"""When shares of noise add up: the sum over honest sites must be, to the last bit, what the accountant knows.

A site's rounding of its own share is no post-processing of the *sum*: rounded shares add up to something else than the
rounded sum, and that something the accountant has not bounded. So shares are carried exactly, from the noise's grid
(privacy/mechanism.py) into the integers of the secure sum, or the run is refused. What is done to the sum afterwards is
post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Final

from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.federation.sum_parts import GENES_LIMIT, encoding
from momkd_fl.privacy.mechanism import GRID_BITS, Release
from momkd_fl.privacy.noise import log10_sum_excess
from momkd_fl.secagg.encoding import Encoding

EXCESS_LOG10: Final = -100.0
"""A sum of discrete Gaussians may differ from a single one by 10 to this, in max divergence: by nothing, that is."""
SATURATION_DEVIATIONS: Final = 8.0
"""Room for noise in the secure sum's range; a value beyond it is refused, which would tell."""


def must_add_up(config: FederationConfig, releases: Iterable[Release]) -> None:
    """Refuse a run whose shares of noise would not add up to the noise of its claim.

    Raises
    ------
    UserError
        ``noise-shares-inexact``, ``noise-shares-range``, ``noise-shares-small``.
    """
    for release in releases:
        wide = GENES_LIMIT if "means" in release.parts else config.aggregation.sums_limit
        _must_be_exact(config, release, encoding(config, wide))
        room = config.aggregation.patients_max * max(release.clip, 1.0)
        room += SATURATION_DEVIATIONS * max(release.noise_sd, release.count_sd)
        if room > wide:
            raise UserError(
                "noise-shares-range",
                f"A secure sum holds numbers up to {wide:g}, and patients and noise of a site may come to {room:.4g}. "
                "Set aggregation.sums_limit higher.",
            )
        if log10_sum_excess(release.variance_steps, release.noise_sites) > EXCESS_LOG10:
            raise UserError(
                "noise-shares-small",
                "With privacy.embedding_clip this small, the noise's grid is too coarse to be divided among sites. "
                "Set it to 1 and scale the embeddings, or use privacy.memory: local.",
            )


def carries_exactly(release: Release, width: Encoding) -> bool:
    """Whether every number of a noisy share is a whole number of the encoding's steps."""
    steps = Fraction(1 << width.fraction_bits, 1 << GRID_BITS)
    per_patient = Fraction(release.count_weight) * Fraction(release.clip)
    power_of_two = math.frexp(release.count_weight * release.clip)[0] == 0.5
    return steps.denominator == 1 and power_of_two and (steps / per_patient).denominator == 1


def _must_be_exact(config: FederationConfig, release: Release, width: Encoding) -> None:
    if carries_exactly(release, width):
        return
    raise UserError(
        "noise-shares-inexact",
        f"privacy.memory: distributed needs numbers that a secure sum carries exactly. It has {width.fraction_bits} "
        f"bits of fraction for these, of at least {GRID_BITS} (aggregation.fraction_bits is "
        f"{config.aggregation.fraction_bits}, and aggregation.sums_limit takes from them), and embedding_clip times "
        "count_weight must be a power of two, at most 1. Change these.",
    )
