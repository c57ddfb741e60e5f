"""What a site's answer may hold beyond its schema, shapes and finite numbers: values that patients could have given.

A check either lets a whole answer pass or refuses it, naming site and field; nothing is mended. What is refused is
impossible, not merely odd: how far one site may move the others is bounded in ``aggregation.py`` and ``site_sums.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.federation.messages import EvaluateReply, Parcel, TrainReply, expect_shapes
from momkd_fl.privacy.mechanism import Release

PATIENTS_BELIEVED = 1_000_000.0
"""No site has more patients."""
GENE_VALUE_MAX = 1e3
"""No gene on a log-like scale, nor a z-score of one, is larger."""
UNIT_SLACK = 0.02
"""Sums of unit vectors in bf16 may be this share longer than their count."""
DEVIATIONS = 8.0
"""Noise farther out than so many deviations does not occur (once in 10^15 numbers)."""
NUMBERS_MAX, SECONDS_MAX, LOSS_MAX = 32, 1e7, 1e6
_NAME = re.compile(r"[a-z_]{1,32}")

Members = Mapping[str, NDArray[np.float32]]


def refuse_field(where: str, what: str) -> UserError:
    """``where`` names site and field, ``what`` is said of it."""
    return UserError("message-value", f"{where} {what}; message dropped. Ask that site what it runs.")


def check_train(site: str, parcel: Parcel[TrainReply], config: FederationConfig, release: Release | None) -> None:
    """An answer to ``train``; ``release``: the noise of its sums, None where they carry none.

    Raises
    ------
    UserError
        ``message-value``.
    """
    body, where = parcel.body, f"site {site}:"
    if not config.privacy.measured:
        said = [name for name in ("seconds", "losses", "loss_sum", "monitors") if getattr(body, name)]
        if said:
            raise refuse_field(f"{where} {said[0]}", "is stated, though no measurement may leave in this run")
    else:
        check_losses(body.loss_sum, parcel.arrays.get("scores", {}), config.classes, where)
    for name, limit in (("seconds", SECONDS_MAX), ("losses", LOSS_MAX), ("monitors", PATIENTS_BELIEVED)):
        numbers: dict[str, float] = getattr(body, name)
        if len(numbers) > NUMBERS_MAX or not all(map(_NAME.fullmatch, numbers)):
            raise refuse_field(f"{where} {name}", "has names that no site measures")
        if any(abs(value) > limit for value in numbers.values()) or (
            name == "seconds" and min(numbers.values(), default=0) < 0
        ):
            raise refuse_field(f"{where} {name}", f"has a number beyond {limit:g}")
    check_sums(parcel.arrays.get("statistics", {}), f"{where} statistics", release)


def check_evaluation(site: str, parcel: Parcel[EvaluateReply], config: FederationConfig, role: str) -> None:
    """An answer to ``evaluate``.

    Raises
    ------
    UserError
        ``message-shape``, ``message-value``.
    """
    where = f"site {site}:"
    measured = config.privacy.measured and config.aggregation.kind != "secagg"  # there sums bring what is measured
    empty = ScoreHistogram.empty(config.classes).to_arrays() if measured else {}
    scores = parcel.arrays.get("scores", {})
    expect_shapes(scores, {name: value.shape for name, value in empty.items()}, f"{where} scores")
    cohort = parcel.body.cohort
    if (cohort.site, cohort.role) != (site, role):
        raise refuse_field(f"{where} cohort", f"is said to be of site {cohort.site[:64]!r} with role '{cohort.role}'")
    if measured:
        check_losses(parcel.body.loss_sum, scores, config.classes, where)
    elif parcel.body.loss_sum:
        raise refuse_field(f"{where} loss_sum", "is stated, though no measurement may leave in this run")


def check_losses(loss_sum: Sequence[float], scores: Members, classes: int, where: str) -> None:
    """A score histogram and the losses beside it: counts of patients, and a sum from 0 for each class."""
    check_histogram(scores, f"{where} scores")
    if len(loss_sum) != classes:
        raise refuse_field(f"{where} loss_sum", f"has {len(loss_sum)} numbers for {classes} classes")
    if not all(0 <= value <= LOSS_MAX * PATIENTS_BELIEVED for value in loss_sum):
        raise refuse_field(f"{where} loss_sum", "is no sum of losses")


def check_histogram(scores: Members, where: str) -> None:
    """Whole numbers from 0 of no more patients than there are; every score column holds the same patients."""
    for name, value in scores.items():
        counts = np.asarray(value, np.float64)
        if (counts < 0).any() or (counts != np.rint(counts)).any() or counts.max(initial=0.0) > PATIENTS_BELIEVED:
            raise refuse_field(f"{where}.{name}", "counts no patients: whole numbers from 0 are expected")
        by_class = counts.reshape(len(counts), counts.shape[1], -1).sum(axis=2) if counts.ndim == 3 else counts[:0]
        if len(by_class) and ((by_class != by_class[0]).any() or by_class[0].sum() > PATIENTS_BELIEVED):
            raise refuse_field(f"{where}.{name}", "counts other patients in one score column than in another")


def check_sums(statistics: Members, where: str, release: Release | None) -> None:
    """Memory sums (C, K, dim) and counts (C, K): of unit vectors, so that no sum is longer than its count.

    With noise, both may be off by what the noise of ``release`` can be.
    """
    clip, count_noise, sum_noise = 1.0 + UNIT_SLACK, 1e-3, 1e-3
    if release is not None:
        clip, count_noise = release.clip, DEVIATIONS * release.count_sd
    for name in (name for name in statistics if name.startswith("counts.")):
        counts, sums = (np.asarray(statistics[part], np.float64) for part in (name, f"sums.{name[7:]}"))
        if release is not None:
            sum_noise = release.noise_sd * (math.sqrt(sums.shape[-1]) + DEVIATIONS)
        if counts.min(initial=0.0) < -count_noise or counts.sum() > PATIENTS_BELIEVED + count_noise * counts.size:
            raise refuse_field(f"{where}.{name}", "are no counts of patients")
        longest = clip * (np.maximum(counts, 0.0) + count_noise) + sum_noise
        if (np.linalg.norm(sums, axis=-1) > longest).any():
            raise refuse_field(f"{where}.sums.{name[7:]}", "are longer than the counts beside them allow")


def check_start(site: str, step: str, statistics: Members, release: Release | None) -> None:
    """One step's sums of the start: over genes, or for slots, anchors and noisy means; ``release`` as for training.

    Raises
    ------
    UserError
        ``message-value``.
    """
    where = f"site {site}: statistics of {step}"
    if "n" in statistics:
        check_moments(statistics, where)
    else:
        check_sums(statistics, where, release)


def check_selection(site: str, statistics: Members) -> None:
    """Sums that genes are chosen by: ``balance`` is a covariance of class indicators, ``sum_sq`` no less than 0.

    Raises
    ------
    UserError
        ``message-value``.
    """
    where = f"site {site}: statistics of select"
    balance = np.asarray(statistics["balance"], np.float64)
    size = float(np.abs(balance).max(initial=0.0))
    crooked = np.abs(balance - balance.T).max(initial=0.0) > 1e-4 * (1 + size)
    if crooked or size > PATIENTS_BELIEVED or np.linalg.eigvalsh(balance).min(initial=0.0) < -1e-4 * (1 + size):
        raise refuse_field(f"{where}.balance", "is no balance of classes")
    squares = np.asarray(statistics["sum_sq"], np.float64)
    most = GENE_VALUE_MAX**2 * PATIENTS_BELIEVED
    if (squares < 0).any() or (squares > most).any():
        raise refuse_field(f"{where}.sum_sq", "is no sum of squares of genes")
    limit = np.sqrt(squares * PATIENTS_BELIEVED) * (1 + 1e-3) + 1e-3
    if (np.abs(np.asarray(statistics["sum"], np.float64)) > limit).any():
        raise refuse_field(f"{where}.sum", "is larger than the squares beside it allow")


def check_moments(statistics: Mapping[str, Any], where: str) -> None:
    """Sums over genes: ``n`` patients, ``sum``, and ``sum_sq`` or the trace of ``outer``, that values can have.

    Cauchy's inequality ties them: no sum is longer than the root of n times the sum of squares.
    """
    n = float(np.asarray(statistics["n"]).ravel()[0])
    if not 0 <= n <= PATIENTS_BELIEVED or n != round(n):
        raise refuse_field(f"{where}.n", "is no count of patients")
    sums = np.asarray(statistics["sum"], np.float64)
    squares = np.asarray(statistics["sum_sq"], np.float64) if "sum_sq" in statistics else _diagonal(statistics, where)
    slack = 1e-3 * (1 + n * GENE_VALUE_MAX)
    if (squares < -slack).any() or (squares > n * GENE_VALUE_MAX**2 + slack).any():
        raise refuse_field(
            f"{where}.{'sum_sq' if 'sum_sq' in statistics else 'outer'}", "is no sum of squares of genes"
        )
    if (np.abs(sums) > np.sqrt(n * np.maximum(squares, 0.0)) * (1 + 1e-3) + slack).any():
        raise refuse_field(f"{where}.sum", "is larger than the squares beside it allow")


def _diagonal(statistics: Mapping[str, Any], where: str) -> NDArray[np.float64]:
    outer = np.asarray(statistics["outer"], np.float64)
    diagonal = np.diagonal(outer)
    bound = np.sqrt(np.maximum(np.outer(diagonal, diagonal), 0.0))
    if (np.abs(outer - outer.T) > 1e-3 * (1 + bound)).any() or (np.abs(outer) > bound * (1 + 1e-3) + 1e-3).any():
        raise refuse_field(f"{where}.outer", "is no sum of outer products")
    return np.asarray(diagonal)
