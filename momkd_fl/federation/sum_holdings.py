"""What a site contributes to a secure sum: what it declares beforehand, and what its gate takes away all the same.

A sum over three holders must be over three answers. A holder of whose answer the gate left nothing would add zeros, and
the sum would be over fewer; so a site says what it holds by the rules that its gate goes by, and takes no part in a sum
whose manifest lists it for what turned out to be withheld (a small slot, a difference to an earlier table of counts).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.policy import SmallNumbers
from momkd_fl.data.cohort import Cohort
from momkd_fl.federation.sum_parts import GENOMICS, Part
from momkd_fl.secagg.manifest import Manifest

Members = Mapping[str, NDArray[Any]]


def holdings(cohort: Cohort, config: FederationConfig, rules: SmallNumbers) -> frozenset[str]:
    """Gates (sum_parts.py) that the site passes: it has genomics, or enough patients by its contract's own rules.

    In a run with noise only ``genomics`` is told, which is public: whether a class has enough patients would not be.
    """
    found = {GENOMICS} if cohort.genes_available else set()
    if config.privacy.active:
        return frozenset(found)
    least = max(rules.minimum_per_class, 1)
    training = cohort.labelled("train")
    for c in range(config.classes):
        of_class = [patient for patient in training if patient.label == c]
        if len(of_class) >= least:
            found.add(f"class.{c}")
        if sum(patient.genes is not None for patient in of_class) >= least:
            found.add(f"class.{c}.{GENOMICS}")
    if rules.scores == "withheld":
        return frozenset(found)
    scored = max(least, rules.minimum_cell) if rules.scores == "cells" else least
    for split in ("validation", "test"):
        labels = [patient.label for patient in cohort.labelled(split)]
        if all(labels.count(c) >= scored for c in range(config.classes)):
            found.add(split)
    return frozenset(found)


def contributing(manifest: Manifest, site: str) -> frozenset[str]:
    """Names of the segments that ``site`` adds something to."""
    return frozenset(
        segment.name for segment in manifest.segments if segment.holders is None or site in segment.holders
    )


def claimed(parts: Collection[Part], names: Collection[str]) -> frozenset[str]:
    """The gates of those parts that are among ``names``."""
    return frozenset(part.gate for part in parts if part.gate is not None and part.name in names)


def withheld(parts: Collection[Part], names: Collection[str], made: Members, kept: Members) -> frozenset[str]:
    """Gates of parts among ``names`` of which the gate left nothing, or that the answer does not have at all.

    Parameters
    ----------
    made : the flat answer as it was worked out
    kept : the same as the gate lets it go; an array that it did not touch is the same object
    """
    return frozenset(_withheld(parts, names, made, kept))


def _withheld(parts: Collection[Part], names: Collection[str], made: Members, kept: Members) -> Iterator[str]:
    for part in parts:
        if part.gate is None or part.name not in names:
            continue
        untouched = part.source in kept and kept[part.source] is made.get(part.source)
        if not untouched and (part.source not in kept or (np.any(part.of(made)) and not np.any(part.of(kept)))):
            yield part.gate
