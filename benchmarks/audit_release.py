"""Differencing with a canary through the site's real release: what it proves of ε, beside four broken releases."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.audit_site import AuditedSite, audited_site, canary
from benchmarks.figures import Figure, at_least, at_most
from momkd_fl.data.cohort import Patient
from momkd_fl.federation.private_plan import slots_release
from momkd_fl.federation.public_space import public_statistics
from momkd_fl.privacy.accountant import joint_epsilon
from momkd_fl.privacy.audit import Audit, audit
from momkd_fl.privacy.mechanism import GRID_BITS, contribution, noisy_sum
from momkd_fl.privacy.statistics import MemoryStatistics

EPSILON, DELTA = 4.0, 1e-5
PRIVACY = {"memory": "local", "share": "memory", "epsilon": EPSILON, "releases": 1, "site_patients": 2000}
ONE_RELEASE = {"memory": {"slots": 1, "assignment": "hard", "genomics": False}}
"""Without genomics the slots' one release is the whole budget, so that the claim is of that message alone."""


SHARES = {**PRIVACY, "memory": "distributed", "noise_sites": 3}
"""The same, each of three honest sites adding a share of the noise."""


def attack(
    site: AuditedSite, target: Patient, runs: int, *, noise: float = 1.0, times: int = 1, others_honest: int = 0
) -> Audit:
    """Tell the target's presence from the site's releases; everybody else and the target's own vector are known.

    ``noise`` scales the noise, ``times`` adds the target so often, as one who forgot the mean over slides would.
    ``others_honest``: further sites of the sum that keep their shares of noise to themselves (all patients there are
    known).
    """
    others = site.patients()[:5]
    private, memory = site.work.private, site.memory
    plan = private.plan
    assert plan.sigma is not None
    private.plan = dataclasses.replace(plan, sigma=plan.sigma * noise)
    release = slots_release(site.config, plan.sigma, genomic=False)
    own = contribution([public_statistics(site.config, memory, site.work.packer, [target], "hard")], release)
    direction = own * 2.0**-GRID_BITS

    def score(patients: list[Patient]) -> float:
        site.keep(patients)
        found = site.work.statistics(memory)
        total = flat(found, release.count_weight)
        for _ in range(others_honest):
            total = total + flat(noisy_sum([], release), release.count_weight)
        return float(total @ direction)

    present = np.array([score([*others, *[target] * times]) for _ in range(runs)])
    absent = np.array([score(others) for _ in range(runs)])
    private.plan = plan
    site.keep(others)
    return audit(present, absent, DELTA)


def flat(found: MemoryStatistics, count_weight: float) -> NDArray[np.float64]:
    """The numbers of a release of histology, scaled as a patient's vector is."""
    sums, counts = found.sums["histology"], found.counts["histology"]
    return np.concatenate([sums.ravel(), count_weight * counts.ravel()])


def figures(quick: bool) -> list[Figure]:
    """Lower bounds on ε at 99 % confidence; the controls must be over the claim."""
    runs = 300 if quick else 6000
    with tempfile.TemporaryDirectory() as folder:
        site = audited_site(Path(folder), PRIVACY, **ONE_RELEASE)
        claim = joint_epsilon(site.work.private.plan.charges, DELTA)
        target = canary(site)
        found = {
            "as_it_is": attack(site, target, runs),
            "half_the_noise": attack(site, target, runs, noise=0.5),
            "no_noise": attack(site, target, runs, noise=1e-3),
            "slides_added": attack(site, target, runs, times=3),
        }
        summed = audited_site(Path(folder) / "shares", SHARES, **ONE_RELEASE, aggregation="secagg")
        target = canary(summed)
        shares = attack(summed, target, runs, others_honest=2)
        found["all_others_join"] = attack(summed, target, runs)
    for name, one in found.items():
        print(f"{name}: by definition {one.epsilon:.2f}, as a Gaussian {one.epsilon_gaussian:.2f}", file=sys.stderr)
    honest = found.pop("as_it_is")
    return [
        Figure("audit.release.claim", round(claim, 4), "epsilon"),
        at_most("audit.release.epsilon_by_definition", round(honest.epsilon, 3), "epsilon, lower bound", claim),
        at_most("audit.release.shares.epsilon", round(shares.epsilon_gaussian, 3), "epsilon, lower bound", claim),
        at_most("audit.release.epsilon", round(honest.epsilon_gaussian, 3), "epsilon, lower bound", claim),
        *(
            at_least(f"audit.release.control.{name}", round(one.epsilon_gaussian, 3), "epsilon, lower bound", claim)
            for name, one in found.items()
        ),
    ]
