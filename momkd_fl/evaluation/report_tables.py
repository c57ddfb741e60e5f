"""The report's tables and tiles: every number as the reader sees it, with its interval or why there is none."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, Final

from momkd_fl.evaluation.report_svg import LOOKS, number
from momkd_fl.evaluation.results import METHODS, Cohort, Count, Estimate, Method, Metric, Results, State

_METRICS: Final[dict[Metric, str]] = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "balanced_accuracy": "Balanced accuracy",
    "share_spared": "Share called negative",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "prevalence": "Prevalence",
    "brier": "Brier score",
    "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration intercept",
}
_GLYPHS: Final[dict[State, str]] = {"trained": "●", "late": "◐", "missing": "○", "refused": "✕", "idle": "·"}
_STATES: Final[dict[State, str]] = {
    "trained": "trained",
    "late": "late: replied after the deadline",
    "missing": "missing: no reply",
    "refused": "refused: its reply did not fit",
    "idle": "idle: not asked",
}


@dataclass(frozen=True)
class Table:
    """A table of the page; the first column heads each row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tiles(results: Results) -> list[tuple[str, str, str]]:
    """(value, name, note) of the numbers at the top."""
    tiles = []
    named: tuple[tuple[Method, str], ...] = (
        ("federated", "federated"),
        ("pooled", "pooled data"),
        ("local_median", "one hospital alone"),
    )
    for task in results.tasks:
        for method, name in named:
            held_out = results.held_out.get(method, {}).get(task)
            if held_out is not None:
                tiles.append((number(held_out.pooled.value), f"AUROC {task}, {name}", _range(held_out.pooled)))
    full = [r for r in results.rounds if len(r.sites.get("trained", [])) == len(results.training_sites)]
    tiles.append((f"{len(full)}/{len(results.rounds)}", "rounds with every site", f"quorum {results.quorum}"))
    tiles.append((duration(results.seconds.run), "run time", f"peak memory {size(results.peak_rss_mb * 2**20)}"))
    per_site = [r.bytes / len(r.sites["trained"]) for r in results.rounds if r.sites.get("trained")]
    if per_site:
        tiles.append((size(statistics.median(per_site)), "per site and round", "sent and received"))
    return tiles


def three_ways(results: Results, task: str) -> Table | None:
    rows = []
    for method in METHODS:
        held_out = results.held_out.get(method, {}).get(task)
        if held_out is None:
            continue
        prediction = cell(held_out.prediction) if held_out.prediction else "—"
        spread = number(held_out.between_sites_sd)
        rows.append((LOOKS[method].name, cell(held_out.pooled), cell(held_out.within_site), spread, prediction))
    if not rows:
        return None
    columns = (
        "Model",
        "All held-out patients",
        "Mean within hospital",
        "SD between hospitals",
        "New hospital, predicted",
    )
    return Table("AUROC on hospitals that never trained, 95% intervals", columns, tuple(rows))


def differences(results: Results, task: str) -> Table | None:
    rows = [
        (
            f"{LOOKS[one.method].name} − {_inside(LOOKS[one.reference].name)}",
            one.site or "all held-out",
            cell(one.difference),
            _p(one.p_value),
            _p(one.p_holm),
        )
        for one in results.differences
        if one.task == task
    ]
    columns = ("Difference in AUROC", "Patients", "95% interval, paired", "p", "p (Holm)")
    return Table("Differences on the same patients", columns, tuple(rows)) if rows else None


def operating(results: Results, task: str) -> Table | None:
    points = [p for p in results.operating if p.task == task and p.method == "federated"]
    if not points:
        return None
    metrics = [metric for metric in _METRICS if any(metric in point.metrics for point in points)]
    nothing = Estimate.not_estimable("not reported")
    rows = [(_METRICS[metric], *(cell(point.metrics.get(metric, nothing)) for point in points)) for metric in metrics]
    where = tuple(point.site or "All held-out" for point in points)
    threshold = number(points[0].threshold, 3)
    return Table(f"At the threshold frozen on the training sites ({threshold})", ("Metric", *where), tuple(rows))


def cohorts(results: Results) -> Table:
    by_task = [name for task in results.tasks for name in (f"{task} labelled", f"{task} positive")]
    rows = []
    for one in results.cohorts:
        labels: list[str] = []
        excluded: list[str] = []
        for task in results.tasks:
            cohort = one.tasks.get(task)
            share = cohort.prevalence if cohort else None
            labels += [_count(cohort.labelled if cohort else None), "—" if share is None else f"{100 * share:.0f}%"]
            excluded += [f"{reason}: {_count(n)}" for reason, n in (cohort.excluded if cohort else {}).items()]
        role = "trains" if one.role == "train" else "held out"
        counts = (_count(one.patients), _count(one.slides), _covered(one))
        rows.append((one.site, role, *counts, *labels, "; ".join(dict.fromkeys(excluded)) or "none"))
    columns = ("Hospital", "Role", "Patients", "Slides", "With genomics", *by_task, "Excluded, by reason")
    return Table("Cohorts", columns, tuple(rows))


def differing(results: Results) -> Table | None:
    """Fields in which hospitals differ, and what followed."""
    rows = [
        (
            one.site,
            one.field,
            "not told" if one.here is None else one.here,
            "not told" if one.federation is None else one.federation,
            "kept out" if one.stopped else "took part, with a warning",
        )
        for one in results.differing
    ]
    columns = ("Hospital", "Field", "There", "In the federation", "What followed")
    return Table("Where hospitals differ from the federation", columns, tuple(rows)) if rows else None


def provenance(results: Results) -> Table:
    made = results.provenance
    rows = [
        ("Configuration", made.configuration),
        ("Code", made.code),
        ("Architecture", made.architecture),
        ("Checkpoint", made.checkpoint or "—"),
        ("Fingerprint of the data's preparation", made.fingerprint),
        ("Data", made.data or "not hashed: the data stay at the sites"),
        ("Seeds", ", ".join(f"{name} {seed}" for name, seed in made.seeds.items()) or "—"),
        ("Software", ", ".join(f"{name} {version}" for name, version in made.software.items()) or "—"),
    ]
    return Table("SHA-256 digests and seeds of what made these numbers", ("What", "Value"), tuple(rows))


def cost(results: Results) -> Table | None:
    """Wall time by phase, summed over rounds, and what every site sent and received."""
    phases: dict[str, float] = {}
    sent: dict[str, int] = {}
    for one in results.rounds:
        for phase, seconds in one.seconds_by_phase.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
        for site, count in one.bytes_by_site.items():
            sent[site] = sent.get(site, 0) + count
    rows = [(f"{phase.replace('_', ' ').capitalize()}, all rounds", duration(total)) for phase, total in phases.items()]
    rows += [
        (f"{phase.replace('_', ' ').capitalize()}, whole run", duration(s))
        for phase, s in results.seconds.phases.items()
    ]
    if results.rounds:
        rows.append(("Sent and received, all sites and rounds", size(sum(one.bytes for one in results.rounds))))
    rows += [(f"Sent and received by {site}", size(count)) for site, count in sent.items()]
    return Table("What the run cost", ("What", "Amount"), tuple(rows)) if rows else None


def grid(results: Results) -> dict[str, Any]:
    """Site by round: the state's name, glyph and words."""
    rows = []
    for site in results.training_sites:
        states: list[State] = [
            next((state for state, sites in one.sites.items() if site in sites), "idle") for one in results.rounds
        ]
        rows.append((site, f"{states.count('trained')}/{len(states)}", states))
    trained = [len(one.sites.get("trained", [])) for one in results.rounds]
    made = [
        one.outcome != "below_quorum" and count >= results.quorum
        for one, count in zip(results.rounds, trained, strict=True)
    ]
    seen = [state for state in _GLYPHS if any(state in states for _, _, states in rows)]
    return {
        "rows": rows,
        "glyphs": _GLYPHS,
        "words": _STATES,
        "seen": seen,
        "quorum": list(zip(trained, made, strict=True)),
    }


def cell(estimate: Estimate) -> str:
    """An estimate with its interval, or why there is none."""
    if estimate.value is None:
        return f"not estimable: {estimate.reason}"
    return f"{number(estimate.value)} {_range(estimate)}".strip()


def _inside(name: str) -> str:
    """A name as it stands within a line: its first letter small."""
    return name[:1].lower() + name[1:]


def _range(estimate: Estimate) -> str:
    if estimate.low is None:
        return ""
    between = "\u00a0to\u00a0" if estimate.low < 0 else "–"
    return f"({number(estimate.low)}{between}{number(estimate.high)})"


def _count(count: Count) -> str:
    return "not disclosed" if count is None else f"{count:,}" if isinstance(count, int) else count


def _covered(cohort: Cohort) -> str:
    """Patients with genomics, and their share where both counts are known."""
    known, all_ = cohort.with_genomics, cohort.patients
    share = f" ({100 * known / all_:.0f}%)" if isinstance(known, int) and isinstance(all_, int) and all_ else ""
    return _count(known) + share


def _p(value: float | None) -> str:
    return "—" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    for unit, size in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
