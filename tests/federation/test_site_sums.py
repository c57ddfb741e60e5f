"""What one site can add to the memory's sums: bounded, and unchanged where nobody overdoes it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.federation.site_sums import combined, site_scales

SHAPE = (2, 3, 4)


def members(counts: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    directions = np.random.default_rng(seed).normal(size=SHAPE)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    counts = np.broadcast_to(np.asarray(counts, np.float32), SHAPE[:2])
    return {"counts.histology": counts, "sums.histology": (counts[..., None] * directions).astype(np.float32)}


@given(n=st.integers(1, 6), seed=st.integers(0, 1000))
def test_without_an_excess_a_plain_sum_is_a_plain_sum(n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    sites = {f"s{i}": members(random.integers(0, 50, SHAPE[:2]), seed + i) for i in range(n)}
    found = combined(sites, 1000.0, robust=False)
    for name, value in found.items():
        np.testing.assert_array_equal(value, sum(site[name].astype(np.float64) for site in sites.values()))


@pytest.mark.parametrize("robust", [False, True])
def test_a_site_of_very_many_counts_as_agreed(robust: bool) -> None:
    sites = {"honest": members(10.0, 1), "poisoned": members(1e6, 2)}
    found = combined(sites, 600.0, robust=robust)
    assert found["counts.histology"].sum() <= 60 + 600 + 1e-3
    assert np.linalg.norm(found["sums.histology"] - sites["honest"]["sums.histology"], axis=-1).max() <= 100 + 1e-3


@given(n=st.integers(3, 9), count=st.floats(1, 1e5), seed=st.integers(0, 1000))
def test_robust_a_site_that_loads_one_slot_has_an_ordinary_share_of_it(n: int, count: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    sites = {f"s{i}": members(random.integers(5, 50, SHAPE[:2]), seed + i) for i in range(n - 1)}
    counts = np.zeros(SHAPE[:2])
    counts[0, 0] = count
    sites["poisoned"] = members(counts, seed + n)
    scales = site_scales(np.stack([site["counts.histology"] for site in sites.values()]), 1e9, robust=True)
    theirs = scales[-1, 0, 0] * count
    total = combined(sites, 1e9, robust=True)["counts.histology"][0, 0]
    assert theirs / total <= 2 / n + 1e-9
    plain = combined(sites, 1e9, robust=False)["counts.histology"][0, 0]
    if count == 1e5:
        assert count / plain > 2 / n, "the control is bounded too"


def test_robust_control_plain_is_carried_away() -> None:
    sites = {f"s{i}": members(10.0, i) for i in range(4)} | {"poisoned": members(1000.0, 9)}
    plain, robust = (combined(sites, 1e9, robust=kind)["counts.histology"] for kind in (False, True))
    np.testing.assert_allclose(plain, 1040)
    np.testing.assert_allclose(robust, 50)


@given(n=st.integers(1, 6), seed=st.integers(0, 1000), robust=st.booleans())
def test_sums_and_counts_are_scaled_together(n: int, seed: int, robust: bool) -> None:
    random = np.random.default_rng(seed)
    counts = random.normal(0, 20, (n, *SHAPE[:2]))  # noise makes some negative
    scales = site_scales(counts, 30.0, robust=robust)
    assert (scales > 0).all()
    assert (scales <= 1).all()
    order = random.permutation(n)
    np.testing.assert_array_equal(site_scales(counts[order], 30.0, robust=robust), scales[order])


def test_a_slot_of_one_site_keeps_its_patients() -> None:
    lone = np.zeros(SHAPE[:2])
    lone[1] = 7.0
    found = combined({"a": members(lone), "b": members(0.0), "c": members(0.0)}, 1000.0, robust=True)
    np.testing.assert_array_equal(found["counts.histology"], lone)


def test_sites_without_a_modality_have_no_part_in_it() -> None:
    genomic = {name.replace("histology", "genomics"): value for name, value in members(3.0).items()}
    found = combined({"a": members(4.0) | genomic, "b": members(5.0)}, 1000.0, robust=True)
    np.testing.assert_allclose(found["counts.genomics"], 3.0)
    assert combined({}, 10.0, robust=True) == {}
