"""Differences over seeds, sites and patients: known answers, and what makes an interval wide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.evaluation.comparison import Scores, compare
from momkd_fl.evaluation.hierarchical import (
    hierarchical_weights,
    pooled_areas,
    pooled_difference,
    within_site_difference,
)
from momkd_fl.evaluation.metrics import auroc


def scores(strength: float, sites: tuple[str, ...] = ("a", "b", "c"), each: int = 30, seed: int = 0) -> Scores:
    """Patients of each site, half of them positive; the score separates the classes by ``strength``."""
    labels = np.tile([0, 1], each * len(sites) // 2)
    rng = np.random.default_rng(seed)
    one = 1 / (1 + np.exp(-(strength * (labels - 0.5) + rng.standard_normal(len(labels)))))
    names = tuple(site for site in sites for _ in range(each))
    ids = tuple(f"{site}/{row:04d}" for row, site in enumerate(names))
    return Scores(ids, labels, np.column_stack([1 - one, one]), names)


def perfect_at(good: set[str], sites: tuple[str, ...] = ("a", "b", "c"), each: int = 30) -> Scores:
    """Ranks the patients of the good sites perfectly, and all others the wrong way round."""
    base = scores(0.0, sites, each)
    right = np.array([site in good for site in base.sites])
    one = np.where(right, base.labels, 1 - base.labels) * 0.8 + 0.1
    return Scores(base.ids, base.labels, np.column_stack([1 - one, one]), base.sites)


def difference(first: dict[int, Scores], second: dict[int, Scores], **more):
    return pooled_difference(first, second, (pooled_areas(first), pooled_areas(second)), **more)


def test_a_method_does_not_differ_from_itself() -> None:
    runs = {seed: scores(1.0, seed=seed) for seed in (1, 2, 3)}
    found = difference(runs, runs)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert difference(runs, runs, ratio=True).value == 1.0


def test_the_value_is_the_mean_over_common_seeds() -> None:
    first, second = {s: scores(2.0, seed=s) for s in (1, 2, 3)}, {s: scores(0.5, seed=s) for s in (2, 3, 4)}
    expected = np.mean(
        [
            auroc(first[s].labels, first[s].probabilities) - auroc(second[s].labels, second[s].probabilities)
            for s in (2, 3)
        ]
    )
    found = difference(first, second)
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    assert difference(first, {9: scores(0.5, seed=9)}).value is None
    assert difference(first, second, class_minimum=46).value is None


def test_one_site_and_one_seed_leave_the_bootstrap_over_patients() -> None:
    one, other = scores(2.0, ("a",), 200, 1), scores(0.5, ("a",), 200, 2)
    ours = difference({0: one}, {0: other})
    theirs = compare(one, other).difference
    assert ours.value == pytest.approx(theirs.value)
    assert ours.high - ours.low == pytest.approx(theirs.high - theirs.low, rel=0.1)


def test_a_difference_that_only_one_site_has_is_uncertain_by_its_sites() -> None:
    """Patients alone would be certain of it: within each site the ranking is perfect, or perfectly wrong."""
    only_a, nowhere = perfect_at({"a"}), perfect_at(set())
    found = within_site_difference(
        {0: {site: [only_a.at(site)] for site in "abc"}}, {0: {site: [nowhere.at(site)] for site in "abc"}}
    )
    assert found.value == pytest.approx(1 / 3)
    assert (found.low, found.high) == (0.0, 1.0)


def test_seeds_that_disagree_widen_the_interval() -> None:
    base = perfect_at(set("abc"))
    steady = {0: scores(1.0), 1: scores(1.0)}
    torn = {0: base, 1: perfect_at(set())}
    wide, narrow = difference(torn, steady), difference(steady, {0: base, 1: base})
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_median_of_several_models_counts_and_a_site_without_enough_patients_does_not() -> None:
    best, worst, middle = perfect_at(set("abc")), perfect_at(set()), scores(1.0)
    first = {0: {"a": [best.at("a")], "b": [best.at("b")]}}
    several = {0: {"a": [worst.at("a"), middle.at("a"), best.at("a")]}}
    found = within_site_difference(first, several)
    at_a = middle.at("a")
    assert found.value == pytest.approx(1 - auroc(at_a.labels, at_a.probabilities))
    assert within_site_difference(first, several, class_minimum=16).value is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 12))
def test_resamples_keep_the_classes_of_every_drawn_site(seed: int, sites: int, half: int) -> None:
    one = scores(1.0, tuple("abcd"[:sites]), 2 * half)
    weights = hierarchical_weights(one, resamples=50, seed=seed)
    for site in one.site_names:
        here = np.array([name == site for name in one.sites])
        drawn = weights[:, here].sum(axis=1)
        assert (drawn % (2 * half) == 0).all()
        assert (weights[:, here & (one.labels == 1)].sum(axis=1) == drawn / 2).all()
    assert (weights.sum(axis=1) == len(one.ids)).all()


def test_the_order_of_patients_does_not_matter() -> None:
    one, other = scores(2.0), scores(0.5, seed=1)
    mixed = other.rows(np.random.default_rng(0).permutation(len(other.ids)))
    assert difference({0: one}, {0: other}) == difference({0: one}, {0: mixed})
