"""A study's results as files: ``results.json``, ``results.csv`` (one number a row) and ``results.md``."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

from momkd_fl.config.study import RELEASED
from momkd_fl.evaluation.results import Estimate
from momkd_fl.federation.study_privacy import PrivacyRow
from momkd_fl.federation.study_results import StudyResults, Verdict
from momkd_fl.training.checkpoint import write_durably

_COLUMNS = ("task", "split", "group", "method", "reference", "site", "statistic", "value", "low", "high", "seeds")


def write_study(results: StudyResults, out: Path) -> Path:
    """Write the three files; returns the Markdown page's path."""
    raw = dataclasses.asdict(results)
    for verdict, one in zip(raw["verdicts"], results.verdicts, strict=True):
        verdict["target"] = one.target.model_dump(mode="json")
    write_durably(out / "results.json", json.dumps(raw, indent=1).encode())
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_csv_rows(results))
    write_durably(out / "results.csv", text.getvalue().encode())
    page = out / "results.md"
    write_durably(page, markdown(results).encode())
    return page


def _csv_rows(results: StudyResults) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for row in results.rows:
        where = {"task": row.task, "split": row.split, "group": row.group, "method": row.method, "seeds": row.seeds}
        for name in ("pooled", "pooled_sd", "within_site", "patients", "positives", "seconds_per_cell"):
            found.append({**where, "statistic": name, "value": getattr(row, name)})
        found += [{**where, "site": site, "statistic": "auroc", "value": value} for site, value in row.sites.items()]
    for pair in results.pairs:
        found.append(
            {
                **{name: getattr(pair, name) for name in ("task", "split", "group", "method", "reference", "seeds")},
                "statistic": pair.what,
                "value": pair.estimate.value,
                "low": pair.estimate.low,
                "high": pair.estimate.high,
            }
        )
    for task, matrix in results.matrix.items():
        for trained, tested in matrix.items():
            for site, value in tested.items():
                where = {"task": task, "method": "local", "reference": trained, "site": site}
                found.append({**where, "statistic": "auroc", "value": value})
    return found


def markdown(results: StudyResults) -> str:
    """The results as tables."""
    parts = [
        f"# Study {results.study}",
        "",
        f"{results.finished} of {results.cells} cells, {results.seconds / 3600:.2f} hours of one core. AUROC is the "
        "mean "
        "over seeds; a method's seeds count once all its folds have finished. Intervals (95%) resample sites, patients "
        "within site and class, and seeds.",
        "",
        "Computed by the package of digest "
        + ", ".join(f"{code[:12]} ({count} cells)" for code, count in sorted(results.codes.items()))
        + ".",
        "",
    ]
    for task, split in dict.fromkeys((row.task, row.split) for row in results.rows):
        parts += [f"## {task}, {_words(split)}", "", *_methods(results, task, split), ""]
        pairs = _pairs(results, task, split)
        parts += [*pairs, ""] if pairs else []
    for task, matrix in results.matrix.items():
        parts += [f"## {task}, each site's own model: trained at (rows), tested at", "", *_matrix(matrix), ""]
    if results.privacy:
        parts += ["## Privacy by patient", "", *_privacy(results.privacy), ""]
    if results.verdicts:
        parts += ["## Targets", "", *_targets(results.verdicts), ""]
    return "\n".join(parts)


def _methods(results: StudyResults, task: str, split: str) -> list[str]:
    lines = [
        "| method | patients | seeds | n (positive) | AUROC pooled | SD over seeds | mean within site | s a cell |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results.rows:
        if (row.task, row.split) == (task, split):
            lines.append(
                f"| {row.method} | {_words(row.group)} | {row.seeds} | {row.patients} ({row.positives}) | "
                f"{_number(row.pooled)} | {_number(row.pooled_sd)} | {_number(row.within_site)} | "
                f"{row.seconds_per_cell:.1f} |"
            )
    return lines


def _pairs(results: StudyResults, task: str, split: str) -> list[str]:
    mine = [pair for pair in results.pairs if (pair.task, pair.split) == (task, split)]
    if not mine:
        return []
    lines = ["| comparison | patients | seeds | difference or ratio | 95% interval |", "|---|---|---|---|---|"]
    for pair in mine:
        sign = "/" if pair.what == "ratio" else "−"
        lines.append(
            f"| {pair.method} {sign} {pair.reference} | {_words(pair.group)} | {pair.seeds} | "
            f"{_signed(pair.estimate.value, pair.what)} | {_interval(pair.estimate)} |"
        )
    return lines


def _matrix(matrix: dict[str, dict[str, float | None]]) -> list[str]:
    tested = list(dict.fromkeys(site for row in matrix.values() for site in row))
    lines = [f"| | {' | '.join(tested)} |", "|---" * (len(tested) + 1) + "|"]
    for trained, row in matrix.items():
        cells = ("" if site == trained else _number(row.get(site)) for site in tested)
        lines.append(f"| {trained} | {' | '.join(cells)} |")
    return lines


def _privacy(rows: Sequence[PrivacyRow]) -> list[str]:
    lines = [
        "ε of a training site at the planned δ. *Run*: of all that leaves; ∞ where something leaves without noise. A "
        "star: given the weights, which leave without noise. Released: the share that any release moved.",
        "",
        "| task | split | method | planned | spent | run | memory | anchors | anchors released | slots released "
        "| by histology | by genomics | cells with a site dropped |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = ("anchors", "slots", "slots_histology", "slots_genomics")
        shares = " | ".join(f"{row.released[part]:.0%}" if part in row.released else "" for part in parts)
        star = "*" if row.conditional else ""
        lines.append(
            f"| {row.task} | {_words(row.split)} | {row.method} | {_epsilon(row.epsilon)} | {_epsilon(row.spent)} | "
            f"{_epsilon(row.epsilon_run)} | {_epsilon(row.epsilon_memory)}{star} | {_epsilon(row.epsilon_anchors)} | "
            f"{shares} | {row.dropped} of {row.cells} |"
        )
    return lines


def _epsilon(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}"


def _targets(verdicts: Sequence[Verdict]) -> list[str]:
    lines = ["| task | split | comparison | target | came to | 95% interval | holds |", "|---|---|---|---|---|---|---|"]
    for one in verdicts:
        target = one.target
        sign = "/" if target.ratio else ":" if target.reference == RELEASED else "−"
        worst = f" (least: {one.where})" if one.where else ""
        holds = "not known" if one.holds is None else "yes" if one.holds else "**no**"
        what = "ratio" if target.ratio or target.reference == RELEASED else "difference"
        lines.append(
            f"| {one.task} | {_words(one.split)} | {target.method} {sign} {target.reference}{worst} | "
            f">= {target.at_least:g} | {_signed(one.estimate.value, what)} | {_interval(one.estimate)} | {holds} |"
        )
    return lines


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | None) -> str:
    return "not estimable" if value is None else f"{value:.3f}"


def _signed(value: float | None, what: str) -> str:
    return "not estimable" if value is None else f"{value:.3f}" if what == "ratio" else f"{value:+.3f}"


def _interval(estimate: Estimate) -> str:
    return "" if estimate.low is None or estimate.high is None else f"{estimate.low:.3f} to {estimate.high:.3f}"
