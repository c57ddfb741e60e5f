"""What a method gains at the hospitals that train: at those without genomics against those with it.

Measured on their validation patients, under the model of the selected round. Those patients have a say in which round
that is, for the method and its reference alike; no weight is trained on them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from momkd_fl.evaluation.comparison import Scores
from momkd_fl.evaluation.hierarchical import gap_of_differences, pooled_areas, pooled_difference
from momkd_fl.evaluation.results import Estimate
from momkd_fl.federation.study_cells import Cell
from momkd_fl.federation.study_work import validation_scores

WITHOUT, WITH, GAP = "trainers_without_genomics", "trainers_with_genomics", "trainers_without_over_with"
"""Groups of patients: of training sites without and with genomics; the former's gain less the latter's."""


@dataclass(frozen=True)
class Gain:
    """A difference of AUROCs among the patients of a group, over the folds of ``seeds`` seeds."""

    group: str
    method: str
    reference: str
    seeds: int
    estimate: Estimate


def trainer_gains(
    runs: Mapping[str, Mapping[int, Sequence[Cell]]],
    out: Path,
    asked: Collection[tuple[str, str]],
    *,
    resamples: int,
) -> list[Gain]:
    """Gains of (method, reference) in both groups, and their gap.

    A site's validation patients are few, so no class minimum is asked for: nothing of a study leaves its folder.

    Parameters
    ----------
    runs : method -> seed -> finished cells of all its folds
    """
    by_method = {name: _by_fold(by_seed) for name, by_seed in runs.items()}
    found = []
    for method, reference in asked:
        ours, theirs = by_method.get(method, {}), by_method.get(reference, {})
        common = [run for run in ours if run in theirs and _mixed(ours[run])]
        if not common:
            continue
        seeds = len({ours[run].seed for run in common})
        groups = []
        for group in (WITHOUT, WITH):
            first = {run: _patients(ours[run], group, out) for run in common}
            second = {run: _patients(theirs[run], group, out) for run in common}
            areas = pooled_areas(first, resamples=resamples), pooled_areas(second, resamples=resamples)
            groups.append(((first, second), areas))
            found.append(Gain(group, method, reference, seeds, pooled_difference(first, second, areas)))
        found.append(Gain(GAP, method, reference, seeds, gap_of_differences(*groups)))
    return found


def _by_fold(by_seed: Mapping[int, Sequence[Cell]]) -> dict[int, Cell]:
    """Cells by a number that names seed and fold; those of pooled patients know no site that trains."""
    return {
        seed * 1000 + fold: cell
        for seed, cells in by_seed.items()
        for fold, cell in enumerate(cells)
        if not cell.method.pooled
    }


def _mixed(cell: Cell) -> bool:
    """Whether sites of both groups train."""
    return 0 < len(set(cell.trained) & set(cell.method.without_genomics)) < len(cell.trained)


def _patients(cell: Cell, group: str, out: Path) -> Scores:
    without = set(cell.method.without_genomics)
    sites = [site for site in cell.trained if (site in without) == (group == WITHOUT)]
    return Scores.join([validation_scores(out, cell, site) for site in sites])
