"""Attacks on the real release stay under its claim; three broken ones are found out."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import beta

from momkd_fl.privacy.accountant import sigma_for
from momkd_fl.privacy.audit import Audit, audit, lower_share, upper_share
from momkd_fl.privacy.mechanism import GRID_BITS, Release, contribution, noisy_sum
from momkd_fl.privacy.noise import Integers
from momkd_fl.privacy.statistics import MemoryStatistics

EPSILON, DELTA = 4.0, 1e-5
PARTS = {"genomics": (1, 1, 2), "histology": (2, 1, 2)}


def slide(label: int, angle: float) -> MemoryStatistics:
    unit = np.array([np.cos(angle), np.sin(angle)])
    sums = {"genomics": np.zeros((1, 1, 2)), "histology": np.zeros((2, 1, 2))}
    counts = {"genomics": np.ones((1, 1)), "histology": np.zeros((2, 1))}
    sums["genomics"][0, 0] = sums["histology"][label, 0] = unit
    counts["histology"][label, 0] = 1
    return MemoryStatistics(sums, counts)


def release(noise: float = 1.0) -> Release:
    return Release(PARTS, sigma_for(EPSILON, DELTA, 1) * noise)


CANARY = [slide(1, 0.3)] * 3
OTHERS = [[slide(0, 0.1 * n), slide(0, 0.2)] for n in range(5)]


def attack(canary: Integers, made_by: Release, seed: int, runs: int = 2500) -> Audit:
    """Differencing: the attacker knows everybody but the canary, and its direction."""
    entropy = random.Random(seed).randbytes
    others = [contribution(slides, made_by) for slides in OTHERS]

    def score(patients: list[Integers]) -> float:
        noisy = noisy_sum(patients, made_by, entropy)
        return sum(
            float(np.vdot(getattr(noisy, kind)[part], getattr(CANARY[0], kind)[part])) * weight
            for kind, weight in (("sums", 1.0), ("counts", 0.25))
            for part in PARTS
        )

    present = np.array([score([*others, canary]) for _ in range(runs)])
    absent = np.array([score(others) for _ in range(runs)])
    return audit(present, absent, DELTA)


def test_the_release_stays_under_its_claim_and_the_attack_is_a_strong_one() -> None:
    found = attack(contribution(CANARY, release()), release(), 1, runs=6000)
    assert found.epsilon < EPSILON
    assert 0.75 * EPSILON < found.epsilon_gaussian < EPSILON


def test_half_the_noise_is_found_out() -> None:
    broken = release(0.5)
    assert attack(contribution(CANARY, broken), broken, 2).epsilon_gaussian > 1.5 * EPSILON


def test_no_noise_is_found_out_without_any_assumption() -> None:
    broken = release(1e-3)
    found = attack(contribution(CANARY, broken), broken, 3)
    assert found.epsilon > EPSILON
    assert found.detected == 1
    assert found.false_alarms == 0


def test_slides_that_are_added_instead_of_averaged_are_found_out() -> None:
    canary: Integers = sum((contribution([each], release()) for each in CANARY), np.zeros(release().size, np.int64))
    assert attack(canary, release(), 4).epsilon_gaussian > 2 * EPSILON


def test_the_canary_is_as_heavy_as_a_patient_may_be() -> None:
    weight = np.linalg.norm(contribution(CANARY, release()) * 2.0**-GRID_BITS)
    assert weight == pytest.approx(release().sensitivity, rel=1e-5)


@pytest.mark.parametrize(("hits", "runs"), [(0, 50), (1, 50), (25, 50), (50, 50), (1999, 2000)])
def test_bounds_of_shares_are_clopper_and_pearson_s(hits: int, runs: int) -> None:
    lower = beta.ppf(0.01, hits, runs - hits + 1) if hits else 0.0
    upper = beta.ppf(0.99, hits + 1, runs - hits) if hits < runs else 1.0
    assert lower_share(hits, runs, 0.01) == pytest.approx(lower, rel=1e-6, abs=1e-12)
    assert upper_share(hits, runs, 0.01) == pytest.approx(upper, rel=1e-6)


def test_scores_that_tell_nothing_give_no_bound() -> None:
    rng = np.random.default_rng(0)
    found = audit(rng.standard_normal(2000), rng.standard_normal(2000), DELTA)
    assert found.epsilon == 0
    assert found.epsilon_gaussian == 0
