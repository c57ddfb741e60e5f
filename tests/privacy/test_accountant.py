"""The budget's arithmetic against published tables, dp-accounting and its own definition."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.privacy.accountant import (
    Artefact,
    GaussianReleases,
    PoissonSteps,
    epsilon_of_run,
    gaussian_delta,
    gaussian_epsilon,
    joint_epsilon,
    sigma_for,
    uncharged,
)

DELTA = 1e-5
TABLE = {1: (3.731, 1.081, 0.600, 0.500), 10: (11.797, 3.419, 1.898, 1.581), 50: (26.380, 7.645, 4.244, 3.535)}


@pytest.mark.parametrize("releases", TABLE)
def test_noise_multipliers_are_the_table_s(releases: int) -> None:
    for epsilon, sigma in zip((1, 4, 8, 10), TABLE[releases], strict=True):
        assert sigma_for(epsilon, DELTA, releases) == pytest.approx(sigma, abs=5.1e-4)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 60), st.floats(1e-12, 1e-2), st.integers(1, 200))
def test_noise_for_a_budget_spends_it_and_not_more(epsilon: float, delta: float, releases: int) -> None:
    spent = joint_epsilon([GaussianReleases(sigma_for(epsilon, delta, releases), releases)], delta)
    assert spent == pytest.approx(epsilon, rel=1e-6)
    assert spent <= epsilon * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 20), st.floats(0, 30))
def test_delta_is_the_definition_s_integral(mu: float, epsilon: float) -> None:
    """delta = E[(1 - e^(epsilon - L))+] with the privacy loss L ~ N(mu^2/2, mu^2)."""
    z = np.linspace(-9, 9, 200_001)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    loss = mu * mu / 2 + mu * z
    integral = np.trapezoid(density * -np.expm1(np.minimum(epsilon - loss, 0)), z)
    assert gaussian_delta(epsilon, mu) == pytest.approx(integral, rel=1e-4, abs=1e-13)


def test_three_runs_at_eight_are_nearly_sixteen() -> None:
    one = GaussianReleases(sigma_for(8, DELTA, 10), 10)
    assert joint_epsilon([one, one, one], DELTA) == pytest.approx(15.9, abs=0.05)


def test_prototypes_and_steps_together() -> None:
    prototypes, steps = GaussianReleases(3.419, 10), PoissonSteps(1.8, 0.1, 500)
    together = joint_epsilon([prototypes, steps], DELTA)
    assert together == pytest.approx(7.955, abs=2e-3)
    assert together == joint_epsilon([PoissonSteps(1.8, 0.1, 300), prototypes, PoissonSteps(1.8, 0.1, 200)], DELTA)
    assert together < joint_epsilon([prototypes], DELTA) + joint_epsilon([steps], DELTA)
    assert together > joint_epsilon([prototypes], DELTA)


def test_the_grid_bounds_the_exact_value_from_above() -> None:
    """Steps that take every patient are plain releases, whose epsilon is known exactly."""
    exact = joint_epsilon([GaussianReleases(7.645, 50)], DELTA)
    assert exact <= joint_epsilon([PoissonSteps(7.645, 1.0, 50)], DELTA) <= exact + 0.01


@settings(max_examples=40, deadline=None)
@given(st.floats(0.3, 30), st.floats(0.3, 30), st.integers(1, 60))
def test_more_releases_or_less_noise_never_cost_less(sigma: float, other: float, releases: int) -> None:
    one = joint_epsilon([GaussianReleases(sigma, releases)], DELTA)
    assert joint_epsilon([GaussianReleases(sigma, releases), GaussianReleases(other)], DELTA) > one
    assert joint_epsilon([GaussianReleases(sigma / 2, releases)], DELTA) > one


def test_nothing_released_costs_nothing_and_no_noise_everything() -> None:
    assert joint_epsilon([], DELTA) == 0
    assert gaussian_epsilon(1e9, DELTA) == math.inf
    with pytest.raises(ValueError, match="positive"):
        GaussianReleases(0.0)


@pytest.mark.parametrize("bad", [(1.0, 0.0, 5), (1.0, 1.5, 5), (math.nan, 0.1, 5), (1.0, 0.1, 0)])
def test_impossible_steps_are_refused(bad: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match=r"rate|positive"):
        PoissonSteps(*bad)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_an_impossible_delta_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        joint_epsilon([GaussianReleases(1.0)], delta)


def test_one_uncharged_artefact_makes_the_headline_infinite() -> None:
    charged = [
        Artefact("memory", True, GaussianReleases(1.898, 10)),
        Artefact("slots at the start", False),
    ]
    assert epsilon_of_run(charged, DELTA) == pytest.approx(8.0, abs=0.01)
    scores = Artefact("validation scores", True)
    assert epsilon_of_run([*charged, scores], DELTA) == math.inf
    assert uncharged([*charged, scores]) == [scores]


def test_plain_releases_do_not_load_dp_accounting() -> None:
    program = (
        "import sys; from momkd_fl.privacy.accountant import sigma_for; sigma_for(8, 1e-5, 10)\n"
        "sys.exit('dp_accounting' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
