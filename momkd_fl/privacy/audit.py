"""What an attack proves about a release: a lower bound on its epsilon, to hold against the claim.

An attacker scores many releases made with and without one patient, and tells the two apart by a threshold. The
threshold is chosen on one half of the scores and judged on the other, with Clopper-Pearson bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from momkd_fl.privacy.accountant import gaussian_epsilon

Scores = NDArray[np.float64]
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Audit:
    """Lower bounds on epsilon, each at the confidence asked for.

    Attributes
    ----------
    epsilon : from the definition, ln((detected - delta) / false alarms): holds for any mechanism, needs many runs
    epsilon_gaussian : through mu = z(detected) - z(false alarms), for a mechanism known to be Gaussian: tight
        (Nasr and others 2023)
    detected, false_alarms : shares observed at the threshold
    """

    epsilon: float
    epsilon_gaussian: float
    detected: float
    false_alarms: float


def audit(present: Scores, absent: Scores, delta: float, confidence: float = 0.99) -> Audit:
    """Bounds from an attacker's scores of releases with and without a patient; higher means "present".

    Both shares are bounded at half of the risk, so that the bound on epsilon has the whole ``confidence``.
    """
    half_present, half_absent = len(present) // 2, len(absent) // 2
    risk = (1 - confidence) / 4  # two shares, and two bounds
    middle = (float(np.median(present[:half_present])) + float(np.median(absent[:half_absent]))) / 2
    best = _best_threshold(present[:half_present], absent[:half_absent], delta, middle)
    detected, false_alarms = _at(best, present[half_present:], absent[half_absent:], risk)
    half_detected, half_alarms = _at(middle, present[half_present:], absent[half_absent:], risk)
    mu = _z(half_detected) - _z(half_alarms)
    return Audit(
        math.log((detected - delta) / false_alarms) if detected - delta > false_alarms else 0.0,
        gaussian_epsilon(mu, delta) if mu > 0 else 0.0,
        float(np.mean(present[half_present:] > best)),
        float(np.mean(absent[half_absent:] > best)),
    )


def lower_share(hits: int, runs: int, risk: float) -> float:
    """Clopper-Pearson: the share p at which ``hits`` or more of ``runs`` have probability ``risk``."""
    return 1 - upper_share(runs - hits, runs, risk)


def upper_share(hits: int, runs: int, risk: float) -> float:
    """Clopper-Pearson: the share p at which ``hits`` or fewer of ``runs`` have probability ``risk``."""
    if hits == runs:
        return 1.0
    counts = np.arange(hits + 1)
    choose = np.array([math.lgamma(runs + 1) - math.lgamma(k + 1) - math.lgamma(runs - k + 1) for k in counts])
    low, high = hits / runs, 1.0
    for _ in range(50):
        p = (low + high) / 2
        log_terms = choose + counts * math.log(p) + (runs - counts) * math.log1p(-p)
        at_most = float(np.exp(log_terms).sum())
        low, high = (p, high) if at_most > risk else (low, p)
    return high


def _best_threshold(present: Scores, absent: Scores, delta: float, middle: float) -> float:
    """The threshold that proves most by the definition on these scores, at a mild risk.

    For a Gaussian every threshold shows the same mu, and ``middle`` measures it best.
    """
    candidates = [middle, *np.quantile(np.concatenate([present, absent]), np.linspace(0.02, 0.998, 60))]

    def proven(threshold: float) -> float:
        detected, false_alarms = _at(threshold, present, absent, 0.01)
        return (detected - delta) / false_alarms

    return float(max(candidates, key=proven))


def _at(threshold: float, present: Scores, absent: Scores, risk: float) -> tuple[float, float]:
    """Lower bound on the share detected, upper bound on the share of false alarms."""
    hits, alarms = int(np.sum(present > threshold)), int(np.sum(absent > threshold))
    return lower_share(hits, len(present), risk), upper_share(alarms, len(absent), risk)


def _z(share: float) -> float:
    return _NORMAL.inv_cdf(min(max(share, 1e-300), 1 - 1e-16))
