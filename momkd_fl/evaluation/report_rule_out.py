"""The rule-out view: whom the model would spare a test, and how often that would be wrong."""

from __future__ import annotations

from momkd_fl.evaluation.report_tables import Table, cell
from momkd_fl.evaluation.results import Estimate, Operating, Results

ALWAYS = ("ODX",)
"""Tasks that stand for a test which a low score would spare, whatever the federation says."""


def is_rule_out(results: Results, task: str) -> bool:
    """Whether the task's question is whom a negative call may spare a test."""
    return task in results.rule_out or task.upper().split("-")[0].split("_")[0] in ALWAYS


def table(results: Results, task: str) -> Table | None:
    """Sensitivity, NPV and share spared at the frozen threshold, by site; None for other tasks."""
    points = _points(results, task)
    if not points:
        return None
    missing = Estimate.not_estimable("not reported")
    rows = [
        (
            point.site or "All held-out",
            *(cell(point.metrics.get(name, missing)) for name in ("sensitivity", "npv", "share_spared")),
        )
        for point in points
    ]
    columns = ("Patients", "Sensitivity", "NPV", "Share spared the test")
    return Table("Rule-out: patients whom the model calls negative are spared the test", columns, tuple(rows))


def sentence(results: Results, task: str) -> str | None:
    """The same as numbers of 100 patients; None where they cannot be told."""
    pooled = next((point for point in _points(results, task) if point.site is None), None)
    if pooled is None:
        return None
    spared, right = pooled.metrics.get("share_spared"), pooled.metrics.get("npv")
    if spared is None or right is None or spared.value is None or right.value is None:
        return None
    missed = 100 * spared.value * (1 - right.value)
    return (
        f"Of 100 patients like these, a negative call would spare {100 * spared.value:.0f} the {task} test; "
        f"{missed:.1f} of them would be positive and go without it. The threshold is the one frozen on the training "
        "sites for both errors alike; a rule-out in practice would ask for a lower one."
    )


def _points(results: Results, task: str) -> list[Operating]:
    if not is_rule_out(results, task):
        return []
    return [point for point in results.operating if point.task == task and point.method == "federated"]
