"""Quick versions of ``make audit``: the attacks are at work, since each finds its broken control out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import audit_fuzz, audit_inversion, audit_leaks, audit_membership, audit_release
from benchmarks.audit_site import AuditedSite, audited_site, canary
from benchmarks.figures import Figure
from momkd_fl.federation.private_plan import slots_release
from momkd_fl.federation.public_space import public_statistics
from momkd_fl.privacy.mechanism import GRID_BITS, contribution


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    assert all(figure.holds is not False for figure in figures), [figure.line() for figure in figures]
    return {figure.figure: figure for figure in figures}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> AuditedSite:
    return audited_site(tmp_path_factory.mktemp("audit"), audit_release.PRIVACY, **audit_release.ONE_RELEASE)


def test_the_canary_is_as_heavy_as_a_patient_may_be(site: AuditedSite) -> None:
    plan = site.work.private.plan
    assert plan.sigma is not None
    release = slots_release(site.config, plan.sigma, genomic=False)
    own = public_statistics(site.config, site.memory, site.work.packer, [canary(site)], "hard")
    weight = np.linalg.norm(contribution([own], release) * 2.0**-GRID_BITS)
    assert weight == pytest.approx(release.sensitivity, rel=1e-5)


def test_differencing_through_the_site_stays_under_the_claim_and_finds_the_controls(site: AuditedSite) -> None:
    target = canary(site)
    honest = audit_release.attack(site, target, 500)
    assert 0.3 < honest.epsilon_gaussian < audit_release.EPSILON
    assert audit_release.attack(site, target, 100, noise=1e-3).epsilon_gaussian > audit_release.EPSILON
    assert audit_release.attack(site, target, 300, times=3).epsilon_gaussian > audit_release.EPSILON


def test_shares_of_three_honest_sites_stay_under_the_claim_and_one_alone_does_not(tmp_path: Path) -> None:
    summed = audited_site(tmp_path, audit_release.SHARES, **audit_release.ONE_RELEASE, aggregation="secagg")
    target = canary(summed)
    honest = audit_release.attack(summed, target, 400, others_honest=2)
    assert 0.0 < honest.epsilon_gaussian < audit_release.EPSILON
    assert audit_release.attack(summed, target, 1500).epsilon_gaussian > audit_release.EPSILON, (
        "the bound rises with runs"
    )


def test_membership_in_the_memory_is_hidden_by_noise_and_plain_without() -> None:
    found = by_name(audit_membership.memory_figures(quick=True))
    assert found["audit.memory.auroc.control.no_noise"].value > 0.99
    assert 0.5 < found["audit.memory.auroc.epsilon_8"].value < 0.88


def test_a_slot_of_one_patient_is_never_published() -> None:
    by_name(audit_inversion.slot_figures(quick=True))


def test_a_private_gradient_tells_less_than_the_mean_of_others() -> None:
    by_name(audit_inversion.gradient_figures(quick=True))


def test_changed_messages_are_refused_or_right_and_forgotten_checks_are_found_out() -> None:
    found = by_name(audit_fuzz.figures(quick=True))
    for reader in ("site", "coordinator", "secagg"):
        assert found[f"audit.fuzz.{reader}.read"].value > 20, "some changes leave a right message"


@pytest.mark.process
def test_nothing_planted_is_in_what_a_run_of_processes_leaves_behind_and_a_site_that_leaks_is_found_out() -> None:
    by_name(audit_leaks.figures(quick=True))


def test_the_attack_of_likelihood_ratios_on_scores_that_tell_all_and_nothing() -> None:
    rng = np.random.default_rng(0)
    members = np.stack([rng.permutation(np.arange(32) < 16) for _ in range(20)], axis=1)
    noise = rng.standard_normal(members.shape)
    assert audit_membership.likelihood_ratio_auroc(noise + 6 * members, members) > 0.99
    assert audit_membership.likelihood_ratio_auroc(noise, members) == pytest.approx(0.5, abs=0.06)


def test_every_audit_is_in_the_list_and_has_a_control() -> None:
    from benchmarks.audit import AUDITS

    assert set(AUDITS) == {"release", "memory", "student", "slot", "gradient", "fuzz", "leaks", "policy"}
    for name in ("release", "membership", "inversion", "fuzz", "leaks"):
        assert ".control." in Path(f"benchmarks/audit_{name}.py").read_text("utf-8")
