"""The memory's statistics: bounded for one patient, addable for all, and slots that stay apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from momkd_fl.privacy.statistics import (
    Assignment,
    Floats,
    MemoryStatistics,
    assign,
    moment_sums,
    scaling_sums,
    selection_sums,
    summed,
)

WAYS: tuple[Assignment, ...] = ("balanced", "soft", "hard")


def unit(values: NDArray[np.float64]) -> Floats:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def drawn(seed: int, *shape: int) -> Floats:
    return unit(np.random.default_rng(seed).standard_normal(shape))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 6), st.sampled_from(WAYS))
def test_rows_are_shares_of_their_mass(seed: int, rows: int, slots: int, how: Assignment) -> None:
    mass = np.random.default_rng(seed).uniform(0.0, 1.0, rows)
    weights = assign(drawn(seed, rows, 5), drawn(seed + 1, slots, 5), how, mass)
    assert weights.shape == (rows, slots)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), mass, rtol=1e-9, atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 6), st.sampled_from(WAYS))
def test_one_patient_moves_a_modality_s_sums_by_at_most_one(
    seed: int, patches: int, slots: int, how: Assignment
) -> None:
    attention = np.random.default_rng(seed).dirichlet(np.ones(patches))
    embeddings = drawn(seed, patches, 8)
    weights = assign(embeddings, drawn(seed + 1, slots, 8), how, attention)
    patient = summed("histology", embeddings, weights, np.ones(patches, np.int64), 2)
    assert np.linalg.norm(patient.sums["histology"]) <= 1 + 1e-9
    assert patient.counts["histology"].sum() == pytest.approx(1.0)
    assert not patient.sums["histology"][0].any()  # the other class


def test_balanced_slots_get_equal_shares_of_the_mass() -> None:
    mass = np.random.default_rng(0).uniform(0.2, 1.0, 200)
    embeddings, slots = unit(drawn(1, 200, 6) + 2 * drawn(2, 1, 6)), drawn(3, 4, 6)
    columns = assign(embeddings, slots, "balanced", mass).sum(axis=0)
    np.testing.assert_allclose(columns, mass.sum() / 4, rtol=1e-3)
    assert assign(embeddings, slots, "soft", mass).sum(axis=0).max() > 1.5 * columns.max()


@pytest.mark.parametrize("closeness", [0.05, 0.3, 1.0])
def test_slots_keep_apart_however_close_embeddings_lie(closeness: float) -> None:
    """An untrained student's embeddings are nearly one direction; balanced slots must not become one with them.

    At a fixed temperature of 0.1 the slots' spread is 0.00 of the groups' at the first two, with healthy counts.
    """
    apart, found = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        centres = unit(unit(rng.standard_normal((1, 32))) + closeness * unit(rng.standard_normal((4, 32))))
        embeddings = unit(centres[rng.integers(0, 4, 400)] + 0.03 * closeness * rng.standard_normal((400, 32)))
        slots = unit(np.linalg.qr(rng.standard_normal((32, 32)))[0][:4])
        for _ in range(6):
            weights = assign(embeddings, slots, "balanced")
            slots = unit(summed("m", embeddings, weights, np.zeros(400, np.int64), 1).sums["m"][0])
        apart.append(np.linalg.norm(slots - slots.mean(0)) / np.linalg.norm(centres - centres.mean(0)))
        found.append(len(set((slots @ centres.T).argmax(axis=1))))
    assert np.mean(apart) > 0.5
    assert np.mean(found) >= 3


def test_one_patient_does_not_fill_every_slot() -> None:
    weights = assign(drawn(0, 1, 6), drawn(1, 4, 6), "balanced")
    assert weights.max() > 0.5


def patient_sums(seed: int) -> MemoryStatistics:
    embeddings = drawn(seed, 3, 4)
    label = np.full(3, seed % 2)
    histology = summed("histology", embeddings, np.full((3, 2), 1 / 6), label, 2)
    return histology + summed("genomics", drawn(seed + 50, 1, 4), np.full((1, 2), 0.5), label[:1], 2)


def test_sums_of_patients_sites_and_the_federation_are_one_type() -> None:
    parts = [patient_sums(seed) for seed in range(6)]
    site, other = parts[0] + parts[1] + parts[2], parts[3] + parts[4] + parts[5]
    for first, second in ((site + other, other + site), (site + other, parts[0] + (parts[1] + parts[2] + other))):
        for kind in ("sums", "counts"):
            for modality in ("histology", "genomics"):
                np.testing.assert_allclose(getattr(first, kind)[modality], getattr(second, kind)[modality])
    assert (site + other).counts["histology"].sum() == pytest.approx(6.0)


def test_a_modality_that_one_side_lacks_is_kept_as_it_is() -> None:
    both = patient_sums(0)
    histology = MemoryStatistics({"histology": both.sums["histology"]}, {"histology": both.counts["histology"]})
    total = histology + both
    np.testing.assert_array_equal(total.sums["genomics"], both.sums["genomics"])
    np.testing.assert_allclose(total.sums["histology"], 2 * both.sums["histology"])


def test_arrays_go_round() -> None:
    one = patient_sums(3)
    arrays = one.to_arrays()
    assert set(arrays) == {"sums.histology", "counts.histology", "sums.genomics", "counts.genomics"}
    assert all(value.dtype == np.float32 for value in arrays.values())
    again = MemoryStatistics.from_arrays(arrays)
    np.testing.assert_allclose(again.sums["genomics"], one.sums["genomics"], rtol=1e-6)


def test_scaling_and_moments_add_up_over_sites() -> None:
    values = np.random.default_rng(0).standard_normal((20, 5))
    for sums in (scaling_sums, moment_sums):
        whole, parts = sums(values), [sums(values[:7]), sums(values[7:])]
        for name, value in whole.items():
            np.testing.assert_allclose(value, parts[0][name] + parts[1][name], rtol=1e-5, atol=1e-5)
    mean = scaling_sums(values)["sum"] / 20
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moment_sums(values)["outer"], values.T @ values, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(2, 4), st.floats(-20, 20))
def test_sums_for_choosing_genes_add_up_to_nothing_over_classes_and_hide_the_site_s_level(
    seed: int, patients: int, classes: int, level: float
) -> None:
    rng = np.random.default_rng(seed)
    values, labels = rng.standard_normal((patients, 6)), rng.integers(0, classes, patients)
    here = np.zeros(patients)
    sums, moved = (selection_sums(each, labels, here, classes) for each in (values, values + level))
    np.testing.assert_allclose(sums["sum"].sum(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(sums["balance"].sum(axis=0), 0, atol=1e-4)
    for name, value in sums.items():
        np.testing.assert_allclose(moved[name], value, rtol=1e-4, atol=1e-4)
    if patients == 1:
        assert not any(value.any() for value in sums.values())
