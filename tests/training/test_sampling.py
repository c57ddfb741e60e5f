"""Which patients make a step, and which patches of a large bag."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.data.cohort import Cohort
from momkd_fl.data.graph import neighbours
from momkd_fl.training.sampling import Packer, balanced_batches, sample_patches


def test_classes_come_equally_often_whatever_the_prevalence(make_cohort: Callable[..., Cohort]) -> None:
    patients = make_cohort(patients=80, prevalence=0.1).labelled("train")
    batches = list(balanced_batches(patients, 500, 4, np.random.default_rng(0)))
    labels = [patient.label for batch in batches for patient in batch]
    assert [len(batch) for batch in batches] == [4] * 500
    assert np.mean([label == 1 for label in labels]) == pytest.approx(0.5, abs=0.05)
    assert {patient.id for batch in batches for patient in batch} == {patient.id for patient in patients}


def test_a_seed_gives_one_order(make_cohort: Callable[..., Cohort]) -> None:
    patients = make_cohort().labelled("train")
    one, two, other = (
        [[p.id for p in batch] for batch in balanced_batches(patients, 9, 3, np.random.default_rng(seed))]
        for seed in (0, 0, 1)
    )
    assert one == two
    assert one != other


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(1, 60), st.integers(0, 10_000))
def test_a_sample_keeps_the_graph(side: int, count: int, seed: int) -> None:
    coords = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(np.float32)
    count = min(count, len(coords) - 1)
    whole = neighbours(coords, 4)
    rows = np.arange(len(coords), dtype=np.float32)[:, None]
    features, index = sample_patches(rows, whole, count, np.random.default_rng(seed))
    kept = features[:, 0].astype(int)
    assert len(kept) == len(set(kept)) == count
    assert (np.diff(kept) > 0).all()
    assert (index[:, 0] == np.arange(count)).all()
    for place, old in enumerate(kept):
        want = [int(n) for n in whole[old] if n in set(kept)]
        assert [int(kept[n]) for n in index[place] if n >= 0] == want


def test_most_sampled_patches_keep_most_of_their_neighbours() -> None:
    coords = np.stack(np.meshgrid(np.arange(60), np.arange(60)), -1).reshape(-1, 2).astype(np.float32)
    whole = neighbours(coords, 8)
    _, index = sample_patches(np.zeros((3600, 1), np.float32), whole, 360, np.random.default_rng(0))
    assert (index[:, 1:] >= 0).mean() > 0.4  # patches taken one by one would keep a tenth


def test_every_patch_can_be_sampled() -> None:
    coords = np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(-1, 2).astype(np.float32)
    rows, whole, rng = np.arange(36, dtype=np.float32)[:, None], neighbours(coords, 4), np.random.default_rng(0)
    seen = {int(row) for _ in range(60) for row in sample_patches(rows, whole, 6, rng)[0][:, 0]}
    assert seen == set(range(36))


def test_a_pack_holds_no_more_patches_than_asked(
    make_cohort: Callable[..., Cohort], make_packer: Callable[[Cohort], Packer]
) -> None:
    packer = make_packer(make_cohort())
    patients = packer.cohort.labelled("train")
    batch = packer.pack(patients, np.random.default_rng(0), max_patches=20)
    full = packer.pack(patients)
    assert batch.patches.tolist() == [min(size, 20) for size in full.patches.tolist()]
    assert (batch.neighbours < len(batch.bag)).all()


def test_a_packer_without_scaling_gives_no_genes(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(genomic=1.0)
    batch = Packer(cohort, None, None).pack(cohort.labelled("train"))
    assert batch.genes is None
    assert not batch.has_genes.any()
