"""Paired differences over seeds, sites and patients: what a study of several runs on several hospitals can be sure of.

A resample draws sites, patients within each drawn site and class, and seeds, each with replacement; the two methods of
a difference meet the same draws. Where seeds share their patients, a resample draws the same patients in all of them.
With few sites and seeds a bootstrap is somewhat too sure of itself: 5 seeds make its part of the variance 4/5 of what
it should be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from momkd_fl.evaluation.comparison import Scores
from momkd_fl.evaluation.intervals import RESAMPLES, Weights, percentile_interval, weighted_auroc
from momkd_fl.evaluation.metrics import Floats, auroc
from momkd_fl.evaluation.results import Estimate

Runs = Mapping[int, Scores]
"""One method's predictions by seed."""
Pair = tuple[Runs, Runs]
PairAreas = tuple[Mapping[int, Floats], Mapping[int, Floats]]
SiteRuns = Mapping[int, Mapping[str, Sequence[Scores]]]
"""By seed and held-out site the predictions of one model, or of several, of which the median AUROC counts."""


def by_patient(scores: Scores) -> Scores:
    """The patients in the order of their ids, so that equal cohorts meet equal resamples."""
    return scores.rows(sorted(range(len(scores.ids)), key=scores.ids.__getitem__))


def hierarchical_weights(scores: Scores, *, resamples: int = RESAMPLES, seed: int = 0) -> Weights:
    """How often each patient was drawn, (B, n): sites with replacement, patients within each drawn site and class."""
    labels = tuple(int(label) for label in scores.labels)
    return _weights(scores.ids, scores.sites, labels, resamples, seed)


@lru_cache(maxsize=16)
def _weights(
    ids: tuple[str, ...], sites: tuple[str, ...], labels: tuple[int, ...], resamples: int, seed: int
) -> Weights:
    names = sorted(set(sites))
    drawn = site_counts(len(names), resamples, seed)
    told = hashlib.sha256("\n".join(ids).encode()).digest()[:4]
    rng = np.random.default_rng([seed, 1, int.from_bytes(told, "little")])
    weights = np.zeros((resamples, len(ids)), np.int32)
    place, group = np.array([names.index(site) for site in sites]), np.array(labels)
    for number in range(len(names)):
        for label in sorted(set(labels)):
            rows = np.flatnonzero((place == number) & (group == label))
            if len(rows):
                shares = np.full(len(rows), 1 / len(rows))
                weights[:, rows] = rng.multinomial(drawn[:, number] * len(rows), shares)
    return weights


def site_counts(count: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of ``count`` sites was drawn, (B, count)."""
    rng = np.random.default_rng([seed, 0, count])
    return np.asarray(rng.multinomial(count, np.full(count, 1 / count), size=resamples), np.int64)


def pooled_areas(runs: Runs, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[int, Floats]:
    """AUROC over all patients of every resample, (B,), by seed of the run."""
    found = {}
    for run, scores in runs.items():
        ordered = by_patient(scores)
        weights = hierarchical_weights(ordered, resamples=resamples, seed=seed)
        found[run] = weighted_auroc(weights, ordered.labels, ordered.probabilities)
    return found


def pooled_difference(
    first: Runs,
    second: Runs,
    areas: PairAreas,
    *,
    ratio: bool = False,
    class_minimum: int = 1,
    seed: int = 0,
) -> Estimate:
    """Mean over the seeds both have of the difference of pooled AUROCs; or the ratio of the means.

    ``areas`` are the :func:`pooled_areas` of both. Not estimable where no seed is common, or a class has too few.
    """
    common = [run for run in first if run in second]
    values = [[auroc(one[run].labels, one[run].probabilities, class_minimum=class_minimum) for run in common]
              for one in (first, second)]  # fmt: skip
    if not common or any(value is None for row in values for value in row):
        return Estimate.not_estimable(f"no seed is common, or fewer than {class_minimum} patients of a class")
    ours, theirs = np.array(values, np.float64)
    drawn = [np.stack([one[run] for run in common], axis=1) for one in areas]
    chosen = _seed_shares(len(common), len(drawn[0]), seed)
    means = [(chosen * one).sum(axis=1) for one in drawn]
    if ratio:
        return percentile_interval(float(ours.mean() / theirs.mean()), means[0] / means[1])
    return percentile_interval(float((ours - theirs).mean()), means[0] - means[1])


def gap_of_differences(first: tuple[Pair, PairAreas], second: tuple[Pair, PairAreas], *, seed: int = 0) -> Estimate:
    """Mean over the runs of one group's difference less another group's, between the same two methods.

    Each group is its (method's, reference's) predictions with their :func:`pooled_areas`. Runs in which a group lacks a
    class are left out.
    """
    values, drawn = [], []
    for run in first[0][0]:
        four = [auroc(runs[run].labels, runs[run].probabilities) for group in (first, second) for runs in group[0]]
        if None in four:
            continue
        ours, reference, theirs, baseline = np.array(four, np.float64)
        values.append(ours - reference - (theirs - baseline))
        drawn.append(first[1][0][run] - first[1][1][run] - (second[1][0][run] - second[1][1][run]))
    if not values:
        return Estimate.not_estimable("no run has patients of both classes in both groups")
    shares = _seed_shares(len(values), len(drawn[0]), seed)
    return percentile_interval(float(np.mean(values)), (shares * np.stack(drawn, axis=1)).sum(axis=1))


def within_site_difference(
    first: SiteRuns, second: SiteRuns, *, class_minimum: int = 1, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean over seeds and held-out sites of the difference of AUROCs within a site.

    Sites without an AUROC, or that one of the two lacks, are left out.
    """
    common = [run for run in first if run in second]
    sites = sorted({site for run in common for site in first[run] if site in second[run]})
    known = [
        site
        for site in sites
        if all(_median(one[run].get(site, ()), class_minimum) is not None for one in (first, second) for run in common)
    ]
    if not common or not known:
        return Estimate.not_estimable(f"no site has {class_minimum} patients of each class")
    values = np.zeros((len(common), len(known)))
    drawn = np.zeros((resamples, len(common), len(known)))
    for i, run in enumerate(common):
        for j, site in enumerate(known):
            values[i, j] = (_median(first[run][site], 1) or 0.0) - (_median(second[run][site], 1) or 0.0)
            drawn[:, i, j] = _drawn(first[run][site], resamples, seed) - _drawn(second[run][site], resamples, seed)
    over_seeds = np.einsum("bs,bst->bt", _seed_shares(len(common), resamples, seed), drawn)
    over_sites = (site_counts(len(known), resamples, seed) / len(known) * over_seeds).sum(axis=1)
    return percentile_interval(float(values.mean()), over_sites)


def _seed_shares(seeds: int, resamples: int, seed: int) -> Floats:
    """Share of each seed in every resample, (B, seeds)."""
    rng = np.random.default_rng([seed, 2, seeds])
    return np.asarray(rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds, np.float64)


def _median(models: Sequence[Scores], class_minimum: int) -> float | None:
    areas = [auroc(model.labels, model.probabilities, class_minimum=class_minimum) for model in models]
    known = [area for area in areas if area is not None]
    return float(np.median(known)) if known else None


def _drawn(models: Sequence[Scores], resamples: int, seed: int) -> Floats:
    areas = []
    for model in models:
        ordered = by_patient(model)
        weights = hierarchical_weights(ordered, resamples=resamples, seed=seed)
        areas.append(weighted_auroc(weights, ordered.labels, ordered.probabilities))
    return np.asarray(np.median(areas, axis=0), np.float64)
