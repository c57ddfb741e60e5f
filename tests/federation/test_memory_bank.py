"""The memory's momentum step: the equation by hand, and what must hold whatever the sites send."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from momkd_fl.federation.memory_bank import Movement, effective_slots, move_slots, slot_cosine

E1, E2, E3 = np.eye(3)
Statistics = dict[str, NDArray[np.float64]]


def unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def one_slot(slot: NDArray[np.float64], sums: Statistics, counts: dict[str, float], **options: float):
    """Move the only slot of a memory (1, 1, S)."""
    new, movement = move_slots(
        slot.astype(np.float32)[None, None],
        {modality: value[None, None] for modality, value in sums.items()},
        {modality: np.full((1, 1), value) for modality, value in counts.items()},
        **{"momentum": 0.9, "genomic_weight": 0.5, "min_count": 3.0} | options,
    )
    return new[0, 0], movement


@st.composite
def memories(draw: st.DrawFn) -> tuple[NDArray[np.float32], Statistics, Statistics]:
    """Slots, sums and counts of a memory in which some slots have nothing."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes, per_class, width = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(2, 8))
    slots = unit(random.normal(size=(classes, per_class, width))).astype(np.float32)
    modalities = draw(st.sampled_from([("histology",), ("histology", "genomics")]))
    scale = 10.0 ** draw(st.integers(-3, 4))
    sums = {m: scale * random.normal(size=slots.shape) for m in modalities}
    counts = {m: random.integers(0, 12, size=slots.shape[:2]).astype(float) for m in modalities}
    for m in modalities:
        sums[m][counts[m] == 0] = 0.0
    return slots, sums, counts


OPTIONS = st.fixed_dictionaries(
    {"momentum": st.floats(0, 1), "genomic_weight": st.floats(0, 1), "min_count": st.floats(0, 12)}
)


def test_equation_by_hand() -> None:
    new, movement = one_slot(
        E1,
        {"histology": 40.0 * E2, "genomics": 7.0 * E3},
        {"histology": 50, "genomics": 8},
        momentum=0.8,
        genomic_weight=0.25,
    )
    expected = np.array([0.8, 0.2 * 0.75, 0.2 * 0.25]) / np.sqrt(0.8**2 + 0.15**2 + 0.05**2)
    np.testing.assert_allclose(new, expected, atol=1e-7)
    assert movement.slot_movement_rad == pytest.approx(np.arccos(expected[0]), abs=1e-6)
    assert movement.moved_share == 1.0


def test_both_modalities_the_same_way() -> None:
    new, _ = one_slot(E1, {"histology": 2.0 * E2, "genomics": 9.0 * E2}, {"histology": 5, "genomics": 5}, momentum=0.5)
    np.testing.assert_allclose(new, [np.sqrt(0.5), np.sqrt(0.5), 0.0], atol=1e-7)


def test_weight_goes_to_the_modality_that_is_there() -> None:
    expected = unit(np.array([0.9, 0.1, 0.0]))
    alone, _ = one_slot(E1, {"histology": 4.0 * E2}, {"histology": 5}, genomic_weight=0.5)
    np.testing.assert_allclose(alone, expected, atol=1e-7)
    gated, _ = one_slot(E1, {"histology": 4.0 * E2, "genomics": 2.9 * E3}, {"histology": 5, "genomics": 2.9})
    np.testing.assert_array_equal(gated, alone)
    genomic, _ = one_slot(E1, {"histology": 2.9 * E3, "genomics": 4.0 * E2}, {"histology": 2.9, "genomics": 5})
    np.testing.assert_allclose(genomic, expected, atol=1e-7)


@pytest.mark.parametrize(("count", "moves"), [(2.999, False), (3.0, True), (500.0, True)])
def test_counts_gate(count: float, moves: bool) -> None:
    new, movement = one_slot(E1, {"histology": 2.0 * E2}, {"histology": count})
    assert bool(new[1] > 0) is moves
    assert movement.moved_share == float(moves)


def test_gate_is_per_slot_and_class() -> None:
    slots = np.tile(E1.astype(np.float32), (2, 2, 1))
    counts = np.array([[9.0, 0.0], [1.0, 9.0]])
    new, movement = move_slots(
        slots,
        {"histology": np.tile(5.0 * E2, (2, 2, 1))},
        {"histology": counts},
        momentum=0.9,
        genomic_weight=0.5,
        min_count=3.0,
    )
    np.testing.assert_array_equal(new[..., 1] > 0, counts >= 3.0)
    assert movement.moved_share == 0.5
    assert movement.slot_movement_rad == pytest.approx(np.arctan(1 / 9) / 2, abs=1e-6)


@given(memory=memories(), options=OPTIONS, scale=st.floats(1e-2, 1e3))
def test_counts_and_lengths_only_gate(memory: tuple, options: dict[str, float], scale: float) -> None:
    slots, sums, counts = memory
    passed = {m: np.where(c >= options["min_count"], c * 1e6 + 20.0, 0.0) for m, c in counts.items()}
    options["min_count"] = max(options["min_count"], 1e-3)
    kept = {m: np.where(counts[m][..., None] >= options["min_count"], s, 0.0) for m, s in sums.items()}
    new, _ = move_slots(slots, kept, counts, **options)
    other, _ = move_slots(slots, {m: scale * s for m, s in kept.items()}, passed, **options)
    np.testing.assert_allclose(other, new, atol=1e-6)


@given(memory=memories(), options=OPTIONS)
def test_slots_stay_unit_vectors(memory: tuple, options: dict[str, float]) -> None:
    slots, sums, counts = memory
    new, movement = move_slots(slots, sums, counts, **options)
    assert new.dtype == np.float32
    assert new.shape == slots.shape
    np.testing.assert_allclose(np.linalg.norm(new.astype(np.float64), axis=-1), 1.0, atol=1e-5)
    assert 0.0 <= movement.slot_movement_rad <= np.pi
    assert 0.0 <= movement.moved_share <= 1.0


@given(memory=memories(), options=OPTIONS)
def test_untouched_slots_keep_their_value_bit_for_bit(memory: tuple, options: dict[str, float]) -> None:
    slots, sums, counts = memory
    slots = slots * np.float32(1.0000001)  # not quite unit: a slot that is normalised again would show
    new, _ = move_slots(slots, sums, counts, **options)
    reached = [
        (counts[m] >= options["min_count"]) & (np.linalg.norm(sums[m], axis=-1) > 0)
        for m, weight in (("histology", 1 - options["genomic_weight"]), ("genomics", options["genomic_weight"]))
        if m in sums and weight > 0
    ]
    untouched = ~np.any(reached, axis=0) if reached else np.ones(slots.shape[:2], bool)
    assert new[untouched].tobytes() == slots[untouched].tobytes()


def test_direction_opposite_to_the_slot_leaves_no_nan() -> None:
    new, movement = one_slot(E1, {"histology": -5.0 * E1}, {"histology": 9}, momentum=0.5)
    np.testing.assert_array_equal(new, E1.astype(np.float32))
    assert movement.slot_movement_rad == 0.0


def test_modalities_that_cancel_leave_the_slot() -> None:
    new, _ = one_slot(E1, {"histology": 5.0 * E2, "genomics": -8.0 * E2}, {"histology": 9, "genomics": 9})
    np.testing.assert_allclose(new, E1, atol=1e-7)


@given(sites=st.integers(1, 10_000), seed=st.integers(0, 2**32 - 1), genomic_weight=st.floats(0.1, 0.9))
def test_histology_only_sites_do_not_drown_genomics(sites: int, seed: int, genomic_weight: float) -> None:
    """However many histology-only sites agree on one direction, the genomic one keeps its whole weight."""
    random = np.random.default_rng(seed)
    each = random.uniform(4.0, 30.0, size=sites)  # histology-only sites send sums of different lengths, one way
    sums = {"histology": each.sum() * E2, "genomics": 4.0 * E3}
    new, _ = one_slot(E1, sums, {"histology": each.sum(), "genomics": 4.0}, genomic_weight=genomic_weight)
    assert new[2] / new[1] == pytest.approx(genomic_weight / (1 - genomic_weight), rel=1e-4)


@given(order=st.permutations(range(6)), seed=st.integers(0, 2**32 - 1))
def test_step_depends_on_the_sites_sum_only(order: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    sites = random.normal(size=(6, 3))
    new, _ = one_slot(E1, {"histology": sites.sum(0)}, {"histology": 9})
    other, _ = one_slot(E1, {"histology": sites[list(order)].sum(0)}, {"histology": 9})
    np.testing.assert_allclose(other, new, atol=1e-6)


def test_momentum_one_freezes_and_zero_replaces() -> None:
    sums, counts = {"histology": 5.0 * E2}, {"histology": 9.0}
    frozen, movement = one_slot(E1, sums, counts, momentum=1.0)
    np.testing.assert_array_equal(frozen, E1.astype(np.float32))
    assert movement.slot_movement_rad == 0.0
    replaced, _ = one_slot(E1, sums, counts, momentum=0.0)
    np.testing.assert_allclose(replaced, E2, atol=1e-7)


@given(memory=memories())
def test_frozen_memory_does_not_move(memory: tuple) -> None:
    slots, sums, counts = memory
    new, movement = move_slots(slots, sums, counts, momentum=1.0, genomic_weight=0.5, min_count=1.0)
    np.testing.assert_allclose(new, slots, atol=1e-6)
    assert movement.slot_movement_rad < 1e-3


def test_inputs_are_left_alone() -> None:
    slots = E1.astype(np.float32)[None, None]
    sums, counts = {"histology": 5.0 * E2[None, None]}, {"histology": np.full((1, 1), 9.0)}
    copies = slots.copy(), sums["histology"].copy(), counts["histology"].copy()
    move_slots(slots, sums, counts, momentum=0.9, genomic_weight=0.5, min_count=3.0)
    for value, copy in zip((slots, sums["histology"], counts["histology"]), copies, strict=True):
        np.testing.assert_array_equal(value, copy)


def test_effective_slots() -> None:
    assert effective_slots(np.full((2, 4), 3.0)) == pytest.approx(4.0)
    assert effective_slots(np.array([[7.0, 0.0, 0.0, 0.0]])) == pytest.approx(1.0)
    assert effective_slots(np.array([[5.0, 5.0, 0.0], [4.0, 0.0, 0.0]])) == pytest.approx(1.5)
    assert effective_slots(np.array([[5.0, 5.0, 0.0], [0.0, 0.0, 0.0]])) == pytest.approx(2.0), "an absent class"
    assert effective_slots(np.zeros((2, 3))) == 0.0


def test_movement_reports_effective_slots_of_histology() -> None:
    _, movement = one_slot(E1, {"histology": 5.0 * E2}, {"histology": 9})
    assert movement == Movement(movement.slot_movement_rad, 1.0, 1.0, 0.0)


def test_slots_that_collapse_are_seen_by_their_cosine_though_their_counts_are_even() -> None:
    apart = np.eye(4, dtype=np.float32)[None]
    alike = np.tile(apart[:, :1], (1, 4, 1))
    assert slot_cosine(apart) == pytest.approx(0.0)
    assert slot_cosine(alike) == pytest.approx(1.0)
    assert effective_slots(np.full((1, 4), 2.0)) == pytest.approx(4.0)
