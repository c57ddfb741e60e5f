"""A site's own teacher, for comparison: a linear classifier on genomics whose logits the student is drawn to."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

FOLDS = 5
PENALTY = 1.0
"""L2 penalty, in units of one patient's loss."""


def out_of_fold_logits(coordinates: Tensor, labels: Tensor, classes: int, seed: int) -> NDArray[np.float32]:
    """Logits (n, C) of each patient by a teacher that never saw it (five folds, stratified).

    A teacher fitted on the patient itself would only repeat its label.

    Parameters
    ----------
    coordinates : (n, A) of patients in the genomic space
    labels : (n,) class
    """
    rng = np.random.default_rng(seed)
    fold = np.empty(len(labels), np.int64)
    for label in range(classes):
        rows = rng.permutation(np.flatnonzero(labels.numpy() == label))
        fold[rows] = np.arange(len(rows)) % FOLDS
    logits = np.zeros((len(labels), classes), np.float32)
    for held in range(FOLDS):
        theirs = fold == held
        if theirs.any() and not theirs.all():
            weights = _fit(coordinates[~theirs], labels[~theirs], classes)
            logits[theirs] = (_with_one(coordinates[theirs]) @ weights).numpy()
    return logits


def _fit(coordinates: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Class-balanced softmax regression (A + 1, C), the intercept unpenalised."""
    x, counts = _with_one(coordinates), torch.bincount(labels, minlength=classes)
    balance = len(labels) / (counts.clamp(min=1) * (counts > 0).sum())
    weights = torch.zeros(x.shape[1], classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(x @ weights, labels, weight=balance.float(), reduction="sum")
        loss = loss + PENALTY / 2 * weights[:-1].square().sum()
        torch.autograd.backward(loss)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()


def _with_one(coordinates: Tensor) -> Tensor:
    return torch.cat([coordinates, coordinates.new_ones(len(coordinates), 1)], dim=1)
