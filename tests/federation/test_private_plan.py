"""Noise from the budget, and refusal of what noise would drown."""

from __future__ import annotations

from typing import Any

import pytest

from momkd_fl.errors import UserError
from momkd_fl.federation.private_plan import (
    anchors_release,
    least_counts,
    must_be_useful,
    private_plan,
    released_in,
    slots_release,
)
from momkd_fl.privacy.accountant import joint_epsilon
from tests.federation.test_artefacts import DPSGD, PRIVACY, config

SHORT: dict[str, Any] = {"count": 20, "quorum": 2}


def test_sigma_is_the_smallest_that_fits_all_releases_together() -> None:
    plan = private_plan(config(PRIVACY))
    assert plan.releases == {"means": 1, "anchors": 5, "slots": 5}
    assert joint_epsilon(plan.charges, 1e-5) == pytest.approx(8.0, abs=1e-6)


def test_memory_and_weights_share_one_budget() -> None:
    plan = private_plan(config(DPSGD))
    assert joint_epsilon(plan.charges, 1e-5) <= 8.0
    memory = [plan.charge(part, count) for part, count in plan.releases.items()]
    assert joint_epsilon(memory, 1e-5) == pytest.approx(4.0, abs=1e-6)
    assert plan.steps is not None
    assert plan.steps.patients_expected == pytest.approx(0.1 * 200)
    more = private_plan(config({**DPSGD, "memory_epsilon": 6.0}))
    assert more.sigma is not None
    assert plan.sigma is not None
    assert more.sigma < plan.sigma
    assert more.steps is not None
    assert more.steps.sigma > plan.steps.sigma


def test_releases_come_every_so_many_rounds_and_then_end() -> None:
    asked = config({**PRIVACY, "releases": 3, "release_every": 4})
    assert [round for round in range(1, 30) if released_in(asked, round)] == [1, 5, 9]
    assert all(released_in(config({}), round) for round in range(1, 30))


def test_the_threshold_knows_how_many_sites_added_noise() -> None:
    asked = config(PRIVACY)
    one, both = slots_release(asked, 2.0, genomic=False), slots_release(asked, 2.0, genomic=True)
    assert least_counts(asked, [one])["histology"] == pytest.approx(20 + 2 * one.count_sd)
    found = least_counts(asked, [one, both, both])
    assert found["genomics"] == pytest.approx(20 + 2 * (2 * both.count_sd**2) ** 0.5)
    assert found["histology"] == pytest.approx(20 + 2 * (one.count_sd**2 + 2 * both.count_sd**2) ** 0.5)


def test_a_modality_more_costs_sensitivity() -> None:
    asked = config(PRIVACY)
    ratio = slots_release(asked, 1.0, genomic=True).sensitivity / anchors_release(asked, 1.0, 16).sensitivity
    assert ratio == pytest.approx(2**0.5)


def test_nothing_is_planned_for_a_run_without_privacy() -> None:
    plan = private_plan(config({}))
    assert (plan.charges, plan.sigma, plan.steps) == ([], None, None)
    must_be_useful(config({}))


def test_a_public_reference_saves_the_release_of_the_genes_means() -> None:
    assert "means" not in private_plan(config({**PRIVACY, "gene_reference": "reference.csv"})).releases


@pytest.mark.parametrize(
    ("privacy", "code", "number"),
    [
        ({**PRIVACY, "site_patients": 25}, "privacy-plan-useless", "expected cosine 0."),
        ({**PRIVACY, "releases": 21}, "privacy-rounds", "privacy.releases is 21"),
        ({**DPSGD, "steps": 150}, "privacy-rounds", "Write 200"),
        ({**DPSGD, "site_patients": 80}, "privacy-site-small", "fewer than 100"),
    ],
)
def test_a_useless_run_is_refused_with_the_number_that_says_so(privacy: dict[str, Any], code: str, number: str) -> None:
    with pytest.raises(UserError) as caught:
        must_be_useful(config(privacy, rounds=SHORT))
    assert caught.value.code == code
    assert number in caught.value.sentence


def test_a_useful_run_is_not() -> None:
    must_be_useful(config({**PRIVACY, "site_patients": 300}, rounds=SHORT))
