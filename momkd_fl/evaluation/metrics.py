"""Numbers about predictions: discrimination, decisions at a threshold, and addable histograms.

Labels are class indices (n,), probabilities (n, C), or (n,) of class 1 where there are two classes. For more than
two classes AUROC and AUPRC are the mean of one-against-the-rest. A number that the patients at hand cannot give
is None, never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from momkd_fl.evaluation.results import MINIMUM_CELL

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

BINS = 100
"""Bins of a score histogram over [0, 1], all of one width."""


def columns(labels: ArrayLike, probabilities: ArrayLike) -> list[tuple[NDArray[np.bool_], Floats]]:
    """Pairs (is positive (n,), score (n,)): one for two classes, else one per class against the rest."""
    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if len(truth) != len(scores):
        raise ValueError(f"{len(truth)} labels, but {len(scores)} predictions")
    if scores.ndim == 1:
        return [(truth == 1, scores)]
    if scores.shape[1] == 2:
        return [(truth == 1, scores[:, 1])]
    return [(truth == c, scores[:, c]) for c in range(scores.shape[1])]


def estimable(labels: ArrayLike, probabilities: ArrayLike, class_minimum: int = 1) -> bool:
    """Whether every class, and what stands against it, has at least ``class_minimum`` patients."""
    counts = [positive.sum() for positive, _ in columns(labels, probabilities)]
    patients = len(np.asarray(labels))
    return all(max(class_minimum, 1) <= count <= patients - max(class_minimum, 1) for count in counts)


def auroc(labels: ArrayLike, probabilities: ArrayLike, *, class_minimum: int = 1) -> float | None:
    """Area under the ROC curve; None (not estimable) below ``class_minimum`` patients of a class."""
    if not estimable(labels, probabilities, class_minimum):
        return None
    from sklearn.metrics import roc_auc_score  # half a second that a site, which only fills histograms, need not pay

    return float(np.mean([roc_auc_score(positive, score) for positive, score in columns(labels, probabilities)]))


def auprc(labels: ArrayLike, probabilities: ArrayLike, *, class_minimum: int = 1) -> float | None:
    """Average precision; read it beside the prevalence, which is its value by chance."""
    if not estimable(labels, probabilities, class_minimum):
        return None
    from sklearn.metrics import average_precision_score

    pairs = columns(labels, probabilities)
    return float(np.mean([average_precision_score(positive, score) for positive, score in pairs]))


@dataclass(frozen=True)
class Decisions:
    """Counts of two-class decisions at a threshold and what follows from them; None: nobody to say it of."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def sensitivity(self) -> float | None:
        """Share of positives called positive."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float | None:
        """Share of negatives called negative."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def ppv(self) -> float | None:
        """Share of positives among those called positive."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def npv(self) -> float | None:
        """Share of negatives among those called negative."""
        return _ratio(self.true_negative, self.true_negative + self.false_negative)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of sensitivity and PPV."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of sensitivity and specificity."""
        sensitivity, specificity = self.sensitivity, self.specificity
        return None if sensitivity is None or specificity is None else (sensitivity + specificity) / 2


def decisions(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> Decisions:
    """Decisions of two classes: positive where the probability of class 1 is at least ``threshold``."""
    (positive, score), *others = columns(labels, probabilities)
    if others:
        raise ValueError("a threshold needs two classes")
    called = score >= threshold
    return Decisions(
        int((called & positive).sum()),
        int((called & ~positive).sum()),
        int((~called & ~positive).sum()),
        int((~called & positive).sum()),
    )


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Mean squared error of the probabilities: of class 1 for two classes, summed over classes for more."""
    pairs = columns(labels, probabilities)
    if len(pairs[0][0]) == 0:
        return None
    return float(sum(np.mean((score - positive) ** 2) for positive, score in pairs))


@dataclass(frozen=True)
class ScoreHistogram:
    """Scores of many patients as an addable value: what a coordinator can work with instead of scores.

    Attributes
    ----------
    counts : (V, C, B) patients by score column (V = 1 for two classes, else C), true class and bin
    """

    counts: Labels

    @classmethod
    def empty(cls, classes: int, bins: int = BINS) -> ScoreHistogram:
        """The histogram of nobody."""
        return cls(np.zeros((1 if classes == 2 else classes, classes, bins), dtype=np.int64))

    @classmethod
    def of(cls, labels: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> ScoreHistogram:
        """Histogram of probabilities (n, C); n may be 0."""
        truth, scores = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
        counts = cls.empty(scores.shape[1], bins).counts
        place = np.minimum((scores * bins).astype(np.int64), bins - 1)[:, -len(counts) :]
        for column in range(len(counts)):
            np.add.at(counts[column], (truth, place[:, column]), 1)
        return cls(counts)

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"histograms of shapes {self.counts.shape} and {other.counts.shape} cannot be added")
        return ScoreHistogram(self.counts + other.counts)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Arrays for a message; sums of them are arrays of the summed histogram."""
        return {"counts": self.counts.astype(np.float32)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ScoreHistogram:
        """The inverse of :meth:`to_arrays`; ValueError where the arrays are no histogram."""
        counts = np.asarray(arrays["counts"])
        shaped = counts.ndim == 3 and counts.shape[1] >= 2 and len(counts) == (1, counts.shape[1])[counts.shape[1] > 2]
        if not shaped or not np.isfinite(counts).all() or (counts < 0).any():
            raise ValueError("these arrays are no score histogram")
        return cls(np.rint(counts).astype(np.int64))

    def class_counts(self) -> Labels:
        """Patients of each class, (C,)."""
        return np.asarray(self.counts[0].sum(axis=1), dtype=np.int64)

    def auroc(self, minimum: int = MINIMUM_CELL) -> float | None:
        """AUROC in which scores of one bin are tied; off by at most :meth:`auroc_error`.

        None (not estimable) under ``minimum`` patients of a class or of what stands against it.
        """
        areas = []
        for positive, negative in self.sides(minimum):
            below = positive @ (np.cumsum(negative) - negative)
            areas.append((below + positive @ negative / 2) / (positive.sum() * negative.sum()))
        return float(np.mean(areas)) if areas else None

    def auroc_error(self, minimum: int = MINIMUM_CELL) -> float | None:
        """Bound of what binning costs: half the share of (positive, negative) pairs that share a bin."""
        sides = self.sides(minimum)
        ties = [positive @ negative / 2 / (positive.sum() * negative.sum()) for positive, negative in sides]
        return float(np.mean(ties)) if ties else None

    def youden_threshold(self) -> float | None:
        """Threshold of the largest sensitivity + specificity, the middle one of equals; None unless two classes.

        It holds for scores as they came; ``calibration.calibrated_threshold`` moves it to calibrated ones.
        """
        sides = self.sides(1)
        if len(sides) != 1:
            return None
        ((positive, negative),) = sides
        sensitivity = 1 - np.append(0, np.cumsum(positive)) / positive.sum()
        specificity = np.append(0, np.cumsum(negative)) / negative.sum()
        index = sensitivity + specificity
        best = np.flatnonzero(np.isclose(index, index.max()))
        return float(best[len(best) // 2] / len(positive))

    def sides(self, minimum: int) -> list[tuple[Labels, Labels]]:
        """Histograms (B,) of positives and of the rest by score column; [] where one holds fewer than ``minimum``."""
        truths = [1] if len(self.counts) == 1 else range(len(self.counts))
        pairs = [(column[c], column.sum(axis=0) - column[c]) for column, c in zip(self.counts, truths, strict=True)]
        return pairs if all(min(a.sum(), b.sum()) >= max(minimum, 1) for a, b in pairs) else []


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
