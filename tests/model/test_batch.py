"""Packs: rows, offsets, labels, and what a patient without genes holds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.model.batch import NO_LABEL, PackedBags, pack, segment_mean, segment_softmax, segment_sum


def test_no_edge_crosses_patients_and_absent_stays_absent(make_pack: Callable[..., PackedBags]) -> None:
    batch = make_pack(sizes=(7, 2, 5), labels=(0, 1, 0), genomic=(False,) * 3)
    for row, listed in enumerate(batch.neighbours):
        present = listed[listed >= 0]
        assert listed[0] == row
        assert (batch.bag[present] == batch.bag[row]).all()
    assert (batch.neighbours[batch.bag == 1, 2:] == -1).all()
    assert batch.patches.tolist() == [7, 2, 5]


def test_a_missing_label_is_no_class() -> None:
    one = (np.zeros((1, 3), np.float32), np.zeros((1, 2), np.int32))
    batch = pack([one, one], [None, 1], [None, None], None)
    assert batch.labels.tolist() == [NO_LABEL, 1]
    assert NO_LABEL < 0


def test_has_genes_says_who_has_them(make_pack: Callable[..., PackedBags]) -> None:
    batch = make_pack(genomic=(False, True, False, True))
    assert batch.has_genes.tolist() == [False, True, False, True]
    assert batch.gene_rows.tolist() == [1, 3]


def test_starts_bound_each_patients_rows(make_pack: Callable[..., PackedBags]) -> None:
    batch = make_pack(sizes=(7, 2, 5), labels=(0, 1, 0), genomic=(False,) * 3)
    assert batch.starts.tolist() == [0, 7, 9, 14]
    for patient in range(3):
        assert (batch.bag[batch.starts[patient] : batch.starts[patient + 1]] == patient).all()


def test_a_bag_alone_is_not_copied() -> None:
    features = np.zeros((4, 3), np.float32)
    batch = pack([(features, np.zeros((4, 2), np.int32))], [0], [None], None)
    assert batch.features.data_ptr() == features.ctypes.data


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 10_000))
def test_segment_operations_are_those_of_each_segment(sizes: list[int], columns: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    bag = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    values = 200 * torch.randn(len(bag), columns, generator=draw)
    shares, sums = segment_softmax(values, bag, len(sizes)), segment_sum(values, bag, len(sizes))
    means = segment_mean(values[:, 0], bag, torch.tensor(sizes))
    for row in range(len(sizes)):
        inside = values[bag == row]
        torch.testing.assert_close(shares[bag == row], torch.softmax(inside, 0))
        torch.testing.assert_close(sums[row], inside.sum(0), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(means[row], inside[:, 0].mean(), rtol=1e-4, atol=1e-3)
