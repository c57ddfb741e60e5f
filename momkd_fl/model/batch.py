"""Many patients in one step: bags laid end to end, with offsets and a segment softmax instead of padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NO_LABEL = -1
"""Label of a patient without one: it can be scored, never trained on."""


@dataclass(frozen=True)
class PackedBags:
    """B patients, N patches together.

    Attributes
    ----------
    features : (N, D_in) float32, or bfloat16 where the step's products are
    neighbours : (N, k + 1) int64, rows of this pack; column 0 the patch itself, -1 where there is none
    bag : (N,) int64, the patient of each patch, ascending
    patches : (B,) int64, patches of each patient
    starts : (B + 1,) int64 on the host, the first row of each patient, and N
    labels : (B,) int64, class or ``NO_LABEL``
    genes : (B, G) float32 z-scores, or None where the student has no panel
    has_genes : (B,) bool; rows of ``genes`` without it are never read
    gene_rows : (M,) int64, the patients with genes, found on the host so that no step waits for a device
    teacher : (B, C) float32 logits of a teacher that knows genomics, or None; read for patients with genes alone
    """

    features: Tensor
    neighbours: Tensor
    bag: Tensor
    patches: Tensor
    starts: NDArray[np.int64]
    labels: Tensor
    genes: Tensor | None
    has_genes: Tensor
    gene_rows: Tensor
    teacher: Tensor | None = None

    @property
    def patients(self) -> int:
        """B."""
        return len(self.labels)

    def to(self, device: torch.device) -> PackedBags:
        """The same pack on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return replace(self, **moved)


def pack(
    bags: Sequence[tuple[NDArray[np.float32], NDArray[np.int32]]],
    labels: Sequence[int | None],
    genes: Sequence[NDArray[np.float32] | None],
    panel_size: int | None,
    teacher: Sequence[NDArray[np.float32] | None] | None = None,
) -> PackedBags:
    """Lay bags end to end; a bag alone is not copied.

    Parameters
    ----------
    bags : (features (P, D_in), neighbours (P, k + 1)) of each patient
    labels : class of each patient, None where it is unknown
    genes : z-scored panel (G,) of each patient, None where it has none
    panel_size : G, or None where the student has no panel
    teacher : logits (C,) of a teacher for each patient with genes, or None without a teacher
    """
    features = [features for features, _ in bags]
    joined = torch.from_numpy(features[0] if len(features) == 1 else np.concatenate(features))
    return pack_around(joined, [index for _, index in bags], labels, genes, panel_size, teacher)


def pack_around(
    features: Tensor,
    neighbours: Sequence[NDArray[np.int32]],
    labels: Sequence[int | None],
    genes: Sequence[NDArray[np.float32] | None],
    panel_size: int | None,
    teacher: Sequence[NDArray[np.float32] | None] | None = None,
) -> PackedBags:
    """A pack of features (N, D_in) laid end to end already, the rest on the host, as :func:`pack` takes it.

    No edge crosses patients, since rows are shifted by each bag's offset.
    """
    sizes = np.array([len(index) for index in neighbours], np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    shifted = [np.where(index >= 0, index + start, -1) for index, start in zip(neighbours, starts, strict=False)]
    has_genes = np.array([vector is not None and panel_size is not None for vector in genes], bool)
    return PackedBags(
        features=features,
        neighbours=torch.from_numpy(shifted[0] if len(shifted) == 1 else np.concatenate(shifted)),
        bag=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
        patches=torch.from_numpy(sizes),
        starts=starts,
        labels=torch.tensor([NO_LABEL if label is None else label for label in labels], dtype=torch.int64),
        genes=None if panel_size is None else _table(genes, panel_size),
        has_genes=torch.from_numpy(has_genes),
        gene_rows=torch.from_numpy(np.flatnonzero(has_genes)),
        teacher=None
        if teacher is None
        else _table(teacher, max((len(row) for row in teacher if row is not None), default=0)),
    )


def _table(rows: Sequence[NDArray[np.float32] | None], columns: int) -> Tensor:
    """Rows as one float32 table, zeros where there is none."""
    table = np.zeros((len(rows), columns), np.float32)
    for place, row in enumerate(rows):
        if row is not None:
            table[place] = row
    return torch.from_numpy(table)


def segment_softmax(scores: Tensor, bag: Tensor, patients: int) -> Tensor:
    """Softmax of scores (N, A) within each patient."""
    index = bag[:, None].expand_as(scores)
    top = scores.new_full((patients, scores.shape[1]), -torch.inf)
    top = top.scatter_reduce(0, index, scores.detach(), "amax", include_self=True)
    weight = torch.exp(scores - top[bag])
    total = segment_sum(weight, bag, patients)
    return weight / total[bag]


def segment_sum(values: Tensor, bag: Tensor, patients: int) -> Tensor:
    """Sums of values (N, ...) over each patient's patches: (B, ...)."""
    return values.new_zeros((patients, *values.shape[1:])).index_add(0, bag, values)


def segment_mean(values: Tensor, bag: Tensor, patches: Tensor) -> Tensor:
    """Means of values (N,) over each patient's patches: (B,)."""
    return segment_sum(values, bag, len(patches)) / patches
