"""Methods side by side on the same patients: per site, pooled, and their differences.

A method is one model's :class:`Scores`, or those of several models (every site's local one), of which the median
counts. All numbers of one call share their bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from momkd_fl.errors import UserError
from momkd_fl.evaluation.intervals import (
    RESAMPLES,
    Weights,
    auroc_interval,
    delong_test,
    holm,
    percentile_interval,
    random_effects,
    stratified_weights,
    too_few,
    weighted_auroc,
)
from momkd_fl.evaluation.metrics import Floats, Labels, auroc
from momkd_fl.evaluation.results import MINIMUM_CELL, Difference, Estimate, HeldOut, Method

SITE_MINIMUM = 10
"""Patients of each class under which a site's AUROC is neither given nor compared, in a simulation either."""


@dataclass(frozen=True)
class Scores:
    """One model's predictions.

    Attributes
    ----------
    ids : patients, each once
    labels : (n,) class indices
    probabilities : (n, C)
    sites : the site of each patient
    """

    ids: tuple[str, ...]
    labels: Labels
    probabilities: Floats
    sites: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.labels) == len(self.probabilities) == len(self.sites):
            raise ValueError("ids, labels, probabilities and sites differ in length")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("a patient is predicted twice")

    @property
    def site_names(self) -> list[str]:
        """Sites in the order of their first patient."""
        return list(dict.fromkeys(self.sites))

    def rows(self, rows: ArrayLike) -> Scores:
        """The patients in these rows, in this order."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Scores(
            tuple(self.ids[row] for row in chosen),
            self.labels[chosen],
            self.probabilities[chosen],
            tuple(self.sites[row] for row in chosen),
        )

    def at(self, site: str) -> Scores:
        """The patients of one site."""
        return self.rows([row for row, name in enumerate(self.sites) if name == site])

    def in_order(self) -> Scores:
        """The same patients in the order of their ids, so that models' resamples draw the same patients."""
        return self.rows(sorted(range(len(self.ids)), key=self.ids.__getitem__))

    @staticmethod
    def join(parts: Sequence[Scores]) -> Scores:
        """Patients of several parts, e.g. of the sites or of leave-one-site-out folds."""
        return Scores(
            tuple(patient for part in parts for patient in part.ids),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            tuple(site for part in parts for site in part.sites),
        )


Models = Scores | Sequence[Scores]


@dataclass(frozen=True)
class Paired:
    """AUROC of one method minus that of another on the same patients; p is two-sided."""

    difference: Estimate
    p_value: float | None
    patients: int


def held_out(
    models: Models, *, class_minimum: int = MINIMUM_CELL, resamples: int = RESAMPLES, seed: int = 0
) -> HeldOut:
    """AUROC of a method on held-out sites: pooled, mean within site, by site, spread, prediction interval.

    The pooled interval resamples patients within classes, the others within sites and classes. Sites under the
    class minimum, or under 10 patients of a class whatever it is, have no AUROC and are no part of the mean. The
    prediction interval rests on the bootstrap variances of the sites, each at least
    (0.5 / patients of the rarest class)^2, cut at 0 and 1.
    """
    same = _aligned(models)
    one, at_site = same[0], max(class_minimum, SITE_MINIMUM)
    sites: dict[str, Estimate] = {}
    drawn: list[Floats] = []
    variances: list[float] = []
    for number, site in enumerate(sorted(one.site_names)):
        here = [model.at(site) for model in same]
        value = _median_auroc(here, at_site)
        if value is None:
            sites[site] = too_few(at_site)
            continue
        weights = stratified_weights(here[0].labels, resamples=resamples, seed=seed + 1 + number)
        drawn.append(_median_aurocs(here, weights))
        sites[site] = percentile_interval(value, drawn[-1])
        rarest = np.unique(here[0].labels, return_counts=True)[1].min()
        variances.append(max(float(drawn[-1].var()), (0.5 / rarest) ** 2))
    values = [estimate.value for estimate in sites.values() if estimate.value is not None]
    pooled = _median_auroc(same, class_minimum)
    weights = stratified_weights(one.labels, resamples=resamples, seed=seed)
    return HeldOut(
        pooled=too_few(class_minimum) if pooled is None else percentile_interval(pooled, _median_aurocs(same, weights)),
        within_site=percentile_interval(float(np.mean(values)), np.mean(drawn, axis=0))
        if values
        else Estimate.not_estimable(f"no site has {at_site} patients of each class"),
        sites=sites,
        between_sites_sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        prediction=_within_unit(random_effects(values, variances).prediction) if len(values) > 1 else None,
    )


def compare(
    first: Models,
    second: Models,
    *,
    class_minimum: int = MINIMUM_CELL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """AUROC of ``first`` minus that of ``second``, paired by patient.

    The interval is that of the paired stratified bootstrap; p is DeLong's where each is a single two-class model,
    else the bootstrap's.

    Raises
    ------
    UserError
        ``comparison-patients-differ`` or ``comparison-labels-differ``.
    """
    ours = _aligned(first)
    theirs = [_onto(model, ours[0]) for model in _aligned(second)]
    one, two = _median_auroc(ours, class_minimum), _median_auroc(theirs, class_minimum)
    patients = len(ours[0].ids)
    if one is None or two is None:
        return Paired(too_few(class_minimum), None, patients)
    weights = stratified_weights(ours[0].labels, resamples=resamples, seed=seed)
    drawn = _median_aurocs(ours, weights) - _median_aurocs(theirs, weights)
    if len(ours) == len(theirs) == 1 and ours[0].probabilities.shape[1] == 2 and min(np.bincount(ours[0].labels)) > 1:
        _, p_value = delong_test(ours[0].labels, ours[0].probabilities, theirs[0].probabilities)
    else:
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        p_value = min(1.0, 2 * (float(tail) + 1) / (resamples + 1))
    return Paired(percentile_interval(one - two, drawn), p_value, patients)


def differences(
    methods: Mapping[str, Mapping[Method, Models]],
    pairs: Sequence[tuple[Method, Method]],
    *,
    class_minimum: int = MINIMUM_CELL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Differences of pairs of methods by task; p-values of one pair are adjusted over tasks (Holm).

    ``methods`` is task -> method -> scores; a pair is left out where a task lacks one of the two methods.
    """
    found: list[Difference] = []
    for method, reference in pairs:
        made: list[Difference] = []
        for task, by_method in methods.items():
            if method in by_method and reference in by_method:
                paired = compare(
                    by_method[method],
                    by_method[reference],
                    class_minimum=class_minimum,
                    resamples=resamples,
                    seed=seed,
                )
                made.append(Difference(task, method, reference, paired.difference, p_value=paired.p_value))
        adjusted = iter(holm([one.p_value for one in made if one.p_value is not None]))
        found += [one if one.p_value is None else replace(one, p_holm=next(adjusted)) for one in made]
    return found


def matrix(
    by_site: Mapping[str, Scores],
    *,
    class_minimum: int = MINIMUM_CELL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """AUROC of every model at every site: ``found[trained][tested]``, for ``Results.matrix[task]``.

    Parameters
    ----------
    by_site : the training site to the predictions of its own model for patients of the sites it is tested at. Of its
        own site only patients the model never saw belong there; without any, its own cell is not estimable. Another
        model than a site's (e.g. ``federated``) may have a row too.

    Each cell has the interval of the stratified bootstrap, and one tested site's cells share their resamples. Sites
    under the class minimum, or under 10 patients of a class whatever it is, have none.
    """
    everywhere = {site for model in by_site.values() for site in model.site_names}
    tested = [site for site in by_site if site in everywhere] + sorted(everywhere - set(by_site))
    minimum = max(class_minimum, SITE_MINIMUM)
    found: dict[str, dict[str, Estimate]] = {trained: {} for trained in by_site}
    for trained, model in by_site.items():
        for number, site in enumerate(tested):
            here = model.at(site).in_order()
            if not here.ids:
                found[trained][site] = Estimate.not_estimable("trained there" if site == trained else "not tested")
                continue
            found[trained][site] = auroc_interval(
                here.labels, here.probabilities, class_minimum=minimum, resamples=resamples, seed=seed + number
            )
    return found


def _within_unit(estimate: Estimate) -> Estimate:
    if estimate.low is None or estimate.high is None:
        return estimate
    return replace(estimate, low=max(0.0, estimate.low), high=min(1.0, estimate.high))


def _median_auroc(models: Sequence[Scores], class_minimum: int) -> float | None:
    areas = [auroc(model.labels, model.probabilities, class_minimum=class_minimum) for model in models]
    known = [area for area in areas if area is not None]
    return float(np.median(known)) if known else None


def _median_aurocs(models: Sequence[Scores], weights: Weights) -> Floats:
    """Median over the models of each resample's AUROC, (B,)."""
    areas = [weighted_auroc(weights, model.labels, model.probabilities) for model in models]
    return np.asarray(np.median(areas, axis=0), dtype=np.float64)


def _aligned(models: Models) -> list[Scores]:
    """The models with their patients in the order of the first."""
    several = [models] if isinstance(models, Scores) else list(models)
    if not several:
        raise ValueError("a method needs at least one model")
    return [several[0], *(_onto(model, several[0]) for model in several[1:])]


def _onto(model: Scores, order: Scores) -> Scores:
    """``model`` with its patients in the order of ``order``."""
    place = {patient: row for row, patient in enumerate(model.ids)}
    if place.keys() != set(order.ids):
        alone = len(place.keys() ^ set(order.ids))
        raise UserError(
            "comparison-patients-differ",
            f"Two methods were evaluated on different patients ({alone} of them have a prediction by one method "
            "only). Evaluate both on the same cohort.",
        )
    moved = model.rows([place[patient] for patient in order.ids])
    if not np.array_equal(moved.labels, order.labels):
        raise UserError(
            "comparison-labels-differ",
            "The same patients have different labels in two methods' predictions. Evaluate both on the same table.",
        )
    return moved
