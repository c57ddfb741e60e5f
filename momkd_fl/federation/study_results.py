"""What a study's finished cells say: AUROC by method, paired differences, trained-at by tested-at, and targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from momkd_fl.config.study import LOCAL, RELEASED, SplitKind, StudyPlan, Target
from momkd_fl.evaluation.comparison import Scores
from momkd_fl.evaluation.hierarchical import Runs, SiteRuns, pooled_areas, pooled_difference, within_site_difference
from momkd_fl.evaluation.metrics import Floats, auroc
from momkd_fl.evaluation.results import Estimate
from momkd_fl.federation.study_cells import Cell
from momkd_fl.federation.study_privacy import PrivacyRow, privacy_rows
from momkd_fl.federation.study_trainers import trainer_gains
from momkd_fl.federation.study_work import cell_scores, is_finished, read_record

ALL = "all"


@dataclass(frozen=True)
class Row:
    """One method in one group of held-out patients; means over ``seeds``, None where not estimable.

    ``pooled`` AUROC over all patients together, ``within_site`` mean over sites, ``sites`` AUROC of each.
    """

    task: str
    split: SplitKind
    group: str
    method: str
    seeds: int
    patients: int
    positives: int
    pooled: float | None
    pooled_sd: float | None
    within_site: float | None
    sites: Mapping[str, float | None]
    seconds_per_cell: float


@dataclass(frozen=True)
class Pair:
    """A difference of pooled AUROCs (or a ratio, or the mean difference within sites) with its interval."""

    task: str
    split: SplitKind
    group: str
    method: str
    reference: str
    what: str
    seeds: int
    estimate: Estimate


@dataclass(frozen=True)
class Verdict:
    """A target, and what it came to; ``holds`` None where it cannot be said. ``where``: the least favourable site."""

    target: Target
    task: str
    split: SplitKind
    estimate: Estimate
    holds: bool | None
    where: str | None = None


@dataclass(frozen=True)
class StudyResults:
    """All of it. ``matrix``: task -> trained at -> tested at -> mean AUROC of local models.

    ``codes``: finished cells by the digest of the package that computed them.
    """

    study: str
    cells: int
    finished: int
    seconds: float
    rows: list[Row]
    pairs: list[Pair]
    matrix: dict[str, dict[str, dict[str, float | None]]]
    verdicts: list[Verdict]
    privacy: list[PrivacyRow] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)


@dataclass
class Block:
    """The finished runs of one task and split: predictions and cells of each method, by seed."""

    task: str
    split: SplitKind
    runs: dict[str, dict[int, dict[str, Scores]]]
    cells: dict[str, dict[int, Sequence[Cell]]]
    local: dict[int, dict[str, dict[str, Scores]]]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def pooled(self, method: str, inside: set[str] | None = None, sites: Iterable[str] | None = None) -> Runs:
        """A method's predictions by seed, of all held-out patients, or of those inside, or of some sites."""
        chosen = None if sites is None else set(sites)
        found: dict[int, Scores] = {}
        for seed, by_site in self.runs.get(method, {}).items():
            parts = [scores for site, scores in by_site.items() if chosen is None or site in chosen]
            if not parts:
                continue
            scores = Scores.join(parts)
            if inside is not None:
                scores = scores.rows([row for row, patient in enumerate(scores.ids) if patient in inside])
            if scores.ids:
                found[seed] = scores
        return found


def read_blocks(plan: StudyPlan, cells: Sequence[Cell], out: Path) -> list[Block]:
    """Predictions of everything that has finished; a seed in which a method lacks a fold is left out of it."""
    blocks = []
    for task in plan.tasks:
        local = _local(cells, task, out)
        for split in plan.split_kinds:
            mine = [cell for cell in cells if cell.task == task and cell.split == split]
            block = Block(task, split, {}, {}, local)
            for method in dict.fromkeys(cell.method.name for cell in mine):
                for seed in plan.seeds:
                    folds = [cell for cell in mine if cell.method.name == method and cell.seed == seed]
                    if folds and all(is_finished(out, cell) for cell in folds):
                        _add(block, method, seed, folds, out)
            if mine:
                blocks.append(block)
    return blocks


def _add(block: Block, method: str, seed: int, folds: Sequence[Cell], out: Path) -> None:
    read = [(cell, cell_scores(out, cell)) for cell in folds]
    block.runs.setdefault(method, {})[seed] = {site: scores for _, found in read for site, scores in found.items()}
    block.cells.setdefault(method, {})[seed] = folds
    block.seconds.setdefault(method, []).extend(read_record(out, cell)["seconds"] for cell in folds)
    if folds[0].method.random_memory:
        parts = [cell_scores(out, cell, random_memory=True) for cell in folds]
        joined = {site: scores for found in parts for site, scores in found.items()}
        block.runs.setdefault(f"{method}.random_memory", {})[seed] = joined


def _local(cells: Sequence[Cell], task: str, out: Path) -> dict[int, dict[str, dict[str, Scores]]]:
    found: dict[int, dict[str, dict[str, Scores]]] = {}
    for cell in cells:
        if cell.method.name == LOCAL and cell.task == task and is_finished(out, cell):
            found.setdefault(cell.seed, {})[cell.trained[0]] = cell_scores(out, cell)
    return found


def results_of(
    plan: StudyPlan,
    cells: Sequence[Cell],
    out: Path,
    subgroups: Mapping[str, tuple[str, set[str]]],
    without_genomics: Sequence[str],
) -> StudyResults:
    """Everything that the finished cells give.

    Parameters
    ----------
    subgroups : task -> (name, patients) of patients also reported on their own
    without_genomics : training sites without expression, which are also reported on their own when left out
    """
    blocks = read_blocks(plan, cells, out)
    records = {cell.key: read_record(out, cell) for cell in cells if is_finished(out, cell)}
    privacy = privacy_rows((cell, records[cell.key]) for cell in cells if cell.key in records)
    rows, pairs, verdicts = list[Row](), list[Pair](), list[Verdict]()
    for block in blocks:
        for group, inside, sites in _groups(block, subgroups, without_genomics):
            grouped = {name: block.pooled(name, inside, sites) for name in block.runs}
            rows += [_row(plan, block, group, name, runs) for name, runs in grouped.items() if runs]
            pairs += _pairs(plan, block, group, grouped)
        pairs += _at_trainers(plan, block, out)
        verdicts += _verdicts(plan, block, pairs, privacy)
    return StudyResults(
        study=plan.name,
        cells=len({cell.key for cell in cells}),
        finished=len(records),
        seconds=float(sum(record["seconds"] for record in records.values())),
        rows=rows,
        pairs=pairs,
        matrix={block.task: _matrix(plan, block.local) for block in blocks if block.local},
        verdicts=verdicts,
        privacy=privacy,
        codes=dict(Counter(str(record.get("code", "not kept")) for record in records.values())),
    )


def _groups(
    block: Block, subgroups: Mapping[str, tuple[str, set[str]]], without: Sequence[str]
) -> list[tuple[str, set[str] | None, set[str] | None]]:
    found: list[tuple[str, set[str] | None, set[str] | None]] = [(ALL, None, None)]
    if block.task in subgroups:
        name, inside = subgroups[block.task]
        found.append((name, inside, None))
    tested = {site for by_seed in block.runs.values() for by_site in by_seed.values() for site in by_site}
    lacking = tested & set(without)
    if lacking and tested - lacking:
        found += [("sites_without_genomics", None, lacking), ("sites_with_genomics", None, tested - lacking)]
    return found


def _row(plan: StudyPlan, block: Block, group: str, method: str, runs: Runs) -> Row:
    pooled = [auroc(one.labels, one.probabilities, class_minimum=plan.class_minimum) for one in runs.values()]
    sites: dict[str, float | None] = {}
    for site in sorted({site for one in runs.values() for site in one.sites}):
        here = [one.at(site) for one in runs.values()]
        sites[site] = _mean([auroc(one.labels, one.probabilities, class_minimum=plan.class_minimum) for one in here])
    known = [value for value in pooled if value is not None]
    first = next(iter(runs.values()))
    seconds = block.seconds.get(method.removesuffix(".random_memory"), [0.0])
    return Row(
        task=block.task,
        split=block.split,
        group=group,
        method=method,
        seeds=len(runs),
        patients=len(first.ids),
        positives=int((first.labels == 1).sum()),
        pooled=_mean(pooled),
        pooled_sd=float(np.std(known, ddof=1)) if len(known) > 1 else None,
        within_site=_mean([value for value in sites.values() if value is not None]),
        sites=sites,
        seconds_per_cell=float(np.mean(seconds)),
    )


def _at_trainers(plan: StudyPlan, block: Block, out: Path) -> list[Pair]:
    """What the targets compare, among the validation patients of sites that train without genomics, and with it."""
    asked = dict.fromkeys((target.method, target.reference) for target in plan.targets if not target.ratio)
    gains = trainer_gains(block.cells, out, asked, resamples=plan.resamples)
    return [
        Pair(block.task, block.split, one.group, one.method, one.reference, "difference", one.seeds, one.estimate)
        for one in gains
    ]


def _pairs(plan: StudyPlan, block: Block, group: str, runs: Mapping[str, Runs]) -> list[Pair]:
    """Every method against every reference, and what the targets ask for."""
    asked = [(name, reference, False) for reference in plan.references for name in runs if name != reference]
    asked += [(target.method, target.reference, target.ratio) for target in plan.targets]
    areas: dict[str, dict[int, Floats]] = {}
    found = []
    for name, reference, ratio in dict.fromkeys(asked):
        if not runs.get(name) or not runs.get(reference):
            continue
        for one in (name, reference):
            if one not in areas:
                areas[one] = pooled_areas(runs[one], resamples=plan.resamples)
        estimate = pooled_difference(
            runs[name], runs[reference], (areas[name], areas[reference]), ratio=ratio, class_minimum=plan.class_minimum
        )
        seeds = len(set(runs[name]) & set(runs[reference]))
        what = "ratio" if ratio else "difference"
        found.append(Pair(block.task, block.split, group, name, reference, what, seeds, estimate))
    return found


def _matrix(plan: StudyPlan, local: Mapping[int, Mapping[str, Mapping[str, Scores]]]) -> dict[str, Any]:
    found: dict[str, dict[str, float | None]] = {}
    for trained in dict.fromkeys(site for by_site in local.values() for site in by_site):
        models = [by_site[trained] for by_site in local.values() if trained in by_site]
        found[trained] = {
            tested: _mean(
                [
                    auroc(m[tested].labels, m[tested].probabilities, class_minimum=plan.class_minimum)
                    for m in models
                    if tested in m
                ]
            )
            for tested in dict.fromkeys(site for model in models for site in model)
        }
    return found


def _verdicts(plan: StudyPlan, block: Block, pairs: Sequence[Pair], privacy: Sequence[PrivacyRow]) -> list[Verdict]:
    found = []
    for target in plan.targets:
        if target.tasks is not None and block.task not in target.tasks:
            continue
        if target.splits is not None and block.split not in target.splits:
            continue
        if target.reference in ("every_local", "median_local"):
            estimate, where = _against_local(plan, block, target)
        elif target.reference == RELEASED:
            where, wanted = None, (block.task, block.split, target.method)
            shares = [row.share_released for row in privacy if (row.task, row.split, row.method) == wanted]
            share = shares[0] if shares else None
            estimate = Estimate.not_estimable("no release of it has finished") if share is None else Estimate(share)
        else:
            where, what = None, "ratio" if target.ratio else "difference"
            asked = (block.task, block.split, target.group, target.method, target.reference, what)
            known = [p for p in pairs if (p.task, p.split, p.group, p.method, p.reference, p.what) == asked]
            estimate = known[0].estimate if known else Estimate.not_estimable("no seed has finished")
        holds = None if estimate.value is None else estimate.value >= target.at_least
        found.append(Verdict(target, block.task, block.split, estimate, holds, where))
    return found


def _against_local(plan: StudyPlan, block: Block, target: Target) -> tuple[Estimate, str | None]:
    """The least favourable: of every site's own model over all other sites, or of the median model over held-out sites.

    A site's own model is tested, and compared, at other sites only.
    """
    ours = {
        seed: {s: [one] for s, one in by_site.items()} for seed, by_site in block.runs.get(target.method, {}).items()
    }
    local = {seed: models for seed, models in block.local.items() if seed in ours}
    compared: dict[str, Estimate] = {}

    def difference(first: SiteRuns, second: SiteRuns) -> Estimate:
        return within_site_difference(first, second, class_minimum=plan.class_minimum, resamples=plan.resamples)

    if target.reference == "every_local":
        for trained in dict.fromkeys(site for models in local.values() for site in models):
            theirs = {
                seed: {site: [scores] for site, scores in models[trained].items()}
                for seed, models in local.items()
                if trained in models
            }
            compared[trained] = difference(ours, theirs)
    else:
        for tested in dict.fromkeys(site for by_site in ours.values() for site in by_site):
            here = {seed: {tested: by_site[tested]} for seed, by_site in ours.items() if tested in by_site}
            medians = {
                seed: {tested: [found[tested] for found in models.values() if tested in found]}
                for seed, models in local.items()
            }
            compared[tested] = difference(here, medians)
    known = {site: estimate for site, estimate in compared.items() if estimate.value is not None}
    if not known:
        return Estimate.not_estimable("no local model has finished, or too few patients of a class"), None
    worst = min(known, key=lambda site: known[site].value or 0.0)
    return known[worst], worst


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None
