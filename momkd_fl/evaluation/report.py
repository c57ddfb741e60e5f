"""``report.html`` and ``model_card.md``: what a run found, for a reader with two minutes.

The page needs nothing but itself: styles and figures are inline, no script, no font, no address is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from momkd_fl.evaluation import (
    report_calibration,
    report_figures,
    report_matrix,
    report_rounds,
    report_rule_out,
    report_tables,
    report_text,
)
from momkd_fl.evaluation.comparison import Models, Scores
from momkd_fl.evaluation.curves import calibration_curve, decision_curves, median_roc_curve, roc_curve
from momkd_fl.evaluation.disclosure import must_be_publishable
from momkd_fl.evaluation.report_svg import LOOKS, Drawing
from momkd_fl.evaluation.results import Curve, Method, Results
from momkd_fl.evaluation.results_file import write_text

TaskScores = Mapping[str, Mapping[Method, Models]]


def write_report(results: Results, scores: TaskScores, path: Path) -> tuple[Path, Path]:
    """Write the page to ``path`` and ``model_card.md`` beside it; returns both paths.

    Parameters
    ----------
    results : Results
    scores : mapping of task to mapping of method to Scores, or to those of several models
        Patients' scores on the held-out sites, where this machine may hold them; empty: the curves that
        ``results`` already has are drawn.

    Raises
    ------
    UserError
        ``results-small-count`` when a federation's cohort discloses a count under 11.
    """
    must_be_publishable(results)
    results = with_curves(results, scores)
    path.parent.mkdir(parents=True, exist_ok=True)
    card = path.with_name("model_card.md")
    write_text(path, html(results))
    write_text(card, model_card(results))
    return path, card


def with_curves(results: Results, scores: TaskScores) -> Results:
    """The results with ROC, calibration and decision curves of ``scores``, so that they can be drawn again later.

    Only two-class tasks have curves.
    """
    made = [
        curve
        for task, by_method in scores.items()
        for method, models in by_method.items()
        for curve in _curves(models, task, method)
    ]
    renewed = {(curve.kind, curve.task, curve.method) for curve in made}
    kept = [curve for curve in results.curves if (curve.kind, curve.task, curve.method) not in renewed]
    return replace(results, curves=kept + made)


def html(results: Results) -> str:
    """The page."""
    sections = [_task_section(results, task) for task in results.tasks]
    drawings = [report_rounds.convergence(results), report_rounds.memory_health(results)]
    drawings += [report_rounds.memory_map(results, task) for task in results.tasks]
    return _template("report.html.j2").render(
        **_common(results),
        sections=sections,
        styles=Markup(_template("report.css").render()),
        rounds_drawings=[drawing for drawing in drawings if drawing],
        grid=report_tables.grid(results),
        tiles=report_tables.tiles(results),
        models=[(LOOKS[method].name, said) for method, said in report_text.models(results)],
        cost=report_tables.cost(results),
    )


def model_card(results: Results) -> str:
    """The model card, Markdown."""
    tables = {task: _tables(results, task) for task in results.tasks}
    return _template("model_card.md.j2").render(**_common(results), tables=tables)


def _common(results: Results) -> dict[str, Any]:
    return {
        "results": results,
        "origin": report_text.origin(results),
        "who": report_text.who(results),
        "findings": {task: report_text.finding(results, task) for task in results.tasks},
        "comparisons": {task: report_text.comparisons(results, task) for task in results.tasks},
        "rule_out": {task: report_rule_out.sentence(results, task) for task in results.tasks},
        "calibrations": {task: report_calibration.chosen(results, task) for task in results.tasks},
        "cohorts": report_tables.cohorts(results),
        "differing": report_tables.differing(results),
        "provenance": report_tables.provenance(results),
        "not_guaranteed": report_text.not_guaranteed(results),
    }


def _task_section(results: Results, task: str) -> dict[str, Any]:
    figures: list[Drawing | None] = [
        report_figures.roc(results, task),
        report_calibration.figure(results, task),
        report_figures.decision(results, task),
    ]
    return {
        "task": task,
        "forest": report_figures.forest(results, task),
        "figures": [figure for figure in figures if figure],
        "tables": _tables(results, task),
        "matrix": report_matrix.matrix(results, task),
        "binning_error": max((c.binning_error or 0 for c in results.curves if c.task == task), default=0),
    }


def _tables(results: Results, task: str) -> list[report_tables.Table]:
    made = (
        report_tables.three_ways(results, task),
        report_tables.differences(results, task),
        report_rule_out.table(results, task),
        report_tables.operating(results, task),
        report_calibration.transfer(results, task),
    )
    return [table for table in made if table]


def _curves(models: Models, task: str, method: Method) -> list[Curve]:
    one = models if isinstance(models, Scores) else models[0]
    if one.probabilities.shape[1] != 2 or len(set(one.labels.tolist())) < 2:
        return []
    if not isinstance(models, Scores):
        return [median_roc_curve(models, task=task, method=method)]
    curves = [roc_curve(one, task=task, method=method)]
    if method == "federated":
        curves.append(calibration_curve(one, task=task, method=method))
        curves.extend(decision_curves(one, task=task, method=method))
    return curves


def _environment(*, autoescape: bool = True) -> Environment:
    environment = Environment(
        loader=PackageLoader("momkd_fl.evaluation"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "duration": report_tables.duration,
        "svg": Markup,
        "cell": _markdown_cell,
        "unbroken": _unbroken,
    }
    return environment


def _template(name: str) -> Template:
    return _environment(autoescape=".html." in name or name.endswith(".css")).get_template(name)


def _unbroken(text: str) -> Markup:
    """A cell's text whose interval does not break over lines."""
    value, bracket, interval = text.partition(" (")
    if not bracket or not interval.endswith(")"):
        return escape(text)
    return Markup('{} <span class="interval">({}</span>').format(value, interval)


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
