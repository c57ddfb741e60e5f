"""Small consortia and their values."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.secagg_round import Consortium
from momkd_fl.secagg.encoding import Encoding
from momkd_fl.secagg.manifest import Manifest, Segment
from momkd_fl.secagg.site import Values

sys.path.insert(0, str(Path(__file__).parent))  # for adversary, which several test files share

WEIGHTS = Segment("weights", 37, Encoding(24, 64.0))
COUNTS = Segment("counts", 6, Encoding(0, 1e6))


def values_of(manifest: Manifest, seed: int = 0) -> dict[str, Values]:
    """Random values of every site: real numbers, or whole ones where the encoding has no fraction."""
    rng = np.random.default_rng(seed)
    found: dict[str, Values] = {}
    for site in manifest.participants:
        held = [one for one in manifest.segments if one.holders is None or site in one.holders]
        found[site] = {
            one.name: rng.normal(size=one.length)
            if one.encoding.fraction_bits
            else rng.integers(0, 1000, one.length).astype(np.float64)
            for one in held
        }
    return found


@pytest.fixture(scope="session")
def consortium() -> Callable[[int], Consortium]:
    """The consortium of so many sites; made once."""
    made: dict[int, Consortium] = {}

    def get(count: int) -> Consortium:
        return made.setdefault(count, Consortium.of(count))

    return get
