"""Teachers that know genomics alone, and never the patient they speak of.

The federation's follows from class sums in the fixed genomic space, which the anchors' placement adds up already; a
site takes its own patient out of them. The site's own, for comparison, is a linear classifier, out of fold.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

FOLDS = 5
PENALTY = 1.0
"""L2 penalty, in units of one patient's loss."""
VARIANCE_FLOOR = 0.1
"""Least variance within classes along any direction, as a share of the whole variance 1/A."""


def leave_one_out_logits(
    embedded: NDArray[np.float64],
    labels: NDArray[np.int64],
    class_sums: NDArray[np.float64],
    class_counts: NDArray[np.float64],
    included: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Logits (n, C) of linear discriminants, each patient taken out of its class's sum and count first.

    The space is whitened and its vectors have length 1, so that the whole covariance is taken as I/A. With class means
    mu_c, shares pi_c and m = sum pi_c mu_c, the covariance within classes is W = I/A - sum pi_c (mu_c - m)(mu_c - m)^T
    and logit_c = mu_c^T W^-1 (g - mu_c / 2). Classes count alike, as the sampler of bags has it.

    Parameters
    ----------
    embedded : (n, A) unit vectors of one site's patients
    labels : (n,) class
    class_sums, class_counts : (C, A) and (C,) over all genomic sites
    included : (C,) 1 where this site's patients of the class are in the sums, 0 where they are not
    """
    dim = embedded.shape[1]
    own = np.eye(len(class_sums))[labels] * included
    counts = np.maximum(class_counts - own, 1.0)
    means = (class_sums - own[..., None] * embedded[:, None, :]) / counts[..., None]
    shares = counts / counts.sum(axis=1, keepdims=True)
    between = (means - np.einsum("nc,nca->na", shares, means)[:, None, :]) * np.sqrt(shares)[..., None]
    _, spread, directions = np.linalg.svd(between, full_matrices=False)
    within = np.maximum(1.0 / dim - spread**2, VARIANCE_FLOOR / dim)
    apart = np.einsum("nca,nra->ncr", means, directions) * (1.0 / within - dim)[:, None, :]
    weights = dim * means + np.einsum("ncr,nra->nca", apart, directions)
    return np.asarray(np.einsum("nca,nca->nc", weights, embedded[:, None, :] - means / 2), np.float32)


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
