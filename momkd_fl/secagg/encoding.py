"""Real numbers as integers modulo 2^64, so that masks cancel exactly and sums do not depend on their order.

A value x of a site with weight w becomes round(x w 2^f) in two's complement. PRIVACY.md, "Secure aggregation":
n · weight · R · 2^f < 2^63, so that no sum of n sites wraps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from momkd_fl.secagg.refusal import SecAggError

FRACTION_BITS_MAX = 52
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Encoding:
    """How a segment's numbers become integers.

    Parameters
    ----------
    fraction_bits : int
        f; the step of the encoding is 2^-f. 0 for counts.
    limit : float
        R; a value beyond it is refused, never clipped: clip before encoding, and with noise of standard
        deviation s choose R of at least the clip plus 8 s.
    weight_max : float
        Largest agreed weight of a site.
    """

    fraction_bits: int
    limit: float
    weight_max: float = 1.0

    def fits(self, sites: int) -> bool:
        """Whether the sum of this many sites stays below 2^63."""
        if not 0 <= self.fraction_bits <= FRACTION_BITS_MAX:
            return False
        if not (
            0 < self.limit < math.inf and 0 < self.weight_max < math.inf and self.weight_max * self.limit < 2.0**63
        ):
            return False
        return sites * (math.ldexp(self.weight_max * self.limit, self.fraction_bits) + 0.5) < 2.0**63

    def error_max(self, sites: int) -> float:
        """Bound on the error of a decoded sum of this many sites, from rounding to the step and to float64."""
        step = math.ldexp(0.5, -self.fraction_bits)
        return sites * (step + self.weight_max * self.limit * 2.0**-52)


def encode(
    values: NDArray[np.floating], encoding: Encoding, out: NDArray[np.uint64], weight: float = 1.0, site: str = ""
) -> None:
    """Write the encoded ``values`` (L,) times ``weight`` to ``out`` (L,).

    Raises
    ------
    SecAggError
        ``weight-wrong`` or ``values-saturate``; then ``out`` is to be thrown away.
    """
    if not 0 < weight <= encoding.weight_max:
        raise SecAggError("weight-wrong", site)
    scale = math.ldexp(weight, encoding.fraction_bits)
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK].astype(np.float64)
        if not np.abs(chunk).max(initial=0.0) <= encoding.limit:  # NaN compares false
            raise SecAggError("values-saturate", site)
        chunk *= scale
        np.rint(chunk, out=chunk)
        out[start : start + _CHUNK] = chunk.astype(np.int64).view(np.uint64)


def decode(total: NDArray[np.uint64], encoding: Encoding) -> NDArray[np.float64]:
    """The real numbers (L,) that a sum of encoded vectors stands for; exact up to 2^53 steps."""
    real = total.view(np.int64).astype(np.float64)
    real *= math.ldexp(1.0, -encoding.fraction_bits)
    return real
