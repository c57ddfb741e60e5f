"""The gate's second step: what few patients are is withheld, where no noise hides it.

A record with noise skips it: a threshold on exact counts would itself depend on the patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from momkd_fl.config.policy import SmallNumbers
from momkd_fl.errors import UserError
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.federation.contract import Outgoing
from momkd_fl.federation.messages import Arrays, Body, EvaluateReply, TrainReply
from momkd_fl.federation.publications import Publications, published_cohort
from momkd_fl.privacy.accountant import GaussianReleases
from momkd_fl.privacy.suppression import enough_of_each

Members = Mapping[str, NDArray[np.float32]]
Split = Literal["train", "validation", "test"]
USED_SLOT = 1e-6
"""A slot with less assigned to it is empty."""


def suppressed(
    outgoing: Outgoing, split: Split, rules: SmallNumbers, publications: Publications
) -> tuple[Body, Arrays]:
    """Body and arrays with small numbers withheld; names and shapes stay, withheld numbers are zeros.

    Raises
    ------
    UserError
        ``few-patients`` where sums of genes would be over too few.
    """
    body, arrays = outgoing.body, dict(outgoing.arrays)
    noisy = any(isinstance(charge, GaussianReleases) for charge in outgoing.charges)
    if "statistics" in arrays and not noisy:
        _refuse_few(outgoing.kind, arrays["statistics"], rules.minimum_per_class)
        arrays["statistics"] = without_small_classes(arrays["statistics"], rules)
    if "scores" in arrays:
        scores = _scores(arrays["scores"], f"scores/{outgoing.task}/{split}", rules, publications)
        if scores is None:
            arrays["scores"] = {name: np.zeros_like(value) for name, value in arrays["scores"].items()}
            if isinstance(body, TrainReply | EvaluateReply):
                body = body.model_copy(update={"loss_sum": [0.0] * len(body.loss_sum)})
        else:
            arrays["scores"] = scores
    if isinstance(body, EvaluateReply):
        body = body.model_copy(update={"cohort": published_cohort(body.cohort, rules.minimum_cell, publications)})
    return body, arrays


def without_small_classes(statistics: Members, rules: SmallNumbers) -> dict[str, NDArray[np.float32]]:
    """Sums (C, K, dim) and counts (C, K) by modality; a class with few patients, or few in a used slot, is zeros.

    The whole class goes: beside its other slots, and its total from another message, a slot's count could be derived.
    """
    kept = dict(statistics)
    for name in [name for name in statistics if name.startswith("counts.")]:
        counts = np.asarray(statistics[name], np.float64)
        used = counts > USED_SLOT
        few = counts.sum(axis=1) < rules.minimum_per_class - USED_SLOT
        if rules.minimum_per_slot > 1:  # of 1: even a patient's share of a slot, which is less than 1, may leave
            few |= (used & (counts < rules.minimum_per_slot - USED_SLOT)).any(axis=1)
        small = few & used.any(axis=1)
        for part in (name, name.replace("counts.", "sums.", 1)):
            kept[part] = np.where(small.reshape(-1, *[1] * (kept[part].ndim - 1)), np.float32(0), kept[part])
    return kept


def in_cells(counts: NDArray[np.int64], minimum: int) -> NDArray[np.int64]:
    """A histogram (..., B) whose bins hold nobody or at least ``minimum``: neighbours together, at their middle.

    Every row holds nobody or at least ``minimum`` patients.
    """
    cells = np.zeros_like(counts)
    for row in np.ndindex(counts.shape[:-1]):
        bins = np.flatnonzero(counts[row])
        groups: list[list[int]] = [[]]
        for place in bins.tolist():
            if groups[-1] and counts[row][groups[-1]].sum() >= minimum:
                groups.append([])
            groups[-1].append(place)
        if len(groups) > 1 and counts[row][groups[-1]].sum() < minimum:
            groups[-2:] = [groups[-2] + groups[-1]]
        for group in groups:
            if group:
                cells[row][(group[0] + group[-1]) // 2] += counts[row][group].sum()
    return cells


def _scores(
    members: Members, table: str, rules: SmallNumbers, publications: Publications
) -> dict[str, NDArray[np.float32]] | None:
    """The histogram as it may leave; None: not at all."""
    histogram = ScoreHistogram.from_arrays(members)
    by_class = histogram.class_counts().tolist()
    if rules.scores == "withheld" or not enough_of_each(by_class, rules.minimum_per_class):
        return None
    if rules.scores == "exact":
        return dict(members)
    if (
        min(by_class) < rules.minimum_cell
        or publications.publish(table, by_class, rules.minimum_cell).withheld[0].any()
    ):
        return None
    return dict(ScoreHistogram(in_cells(histogram.counts, rules.minimum_cell)).to_arrays())


def _refuse_few(kind: str, statistics: Mapping[str, Any], minimum: int) -> None:
    """Sums of genes say over how many patients they are: by n, or by n(1 - n/N) of each class, which is no more."""
    found: list[float] = []
    if "n" in statistics:
        found = [float(statistics["n"][0])]
    elif "balance" in statistics:
        found = np.diagonal(np.asarray(statistics["balance"], np.float64)).tolist()
    if minimum > 1 and found and min(found) < minimum:
        raise UserError(
            "few-patients",
            f"Answering '{kind}' would sum genes over fewer than {minimum} patients (small_numbers.minimum_per_class). "
            "Nothing was sent. Take part without 'data.genomics', or as 'role: evaluate'.",
        )
