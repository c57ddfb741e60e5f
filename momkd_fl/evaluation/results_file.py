"""``results.json`` and ``results.csv``: written whole or not at all, checked when read.

The JSON is the whole of :class:`~momkd_fl.evaluation.results.Results`; the CSV holds the same estimates one a line,
for a spreadsheet or a meta-analysis.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from momkd_fl.errors import UserError
from momkd_fl.evaluation.disclosure import must_be_publishable
from momkd_fl.evaluation.results import Estimate, Results, Round

_ADAPTER = TypeAdapter(Results)
_COLUMNS = ("section", "task", "method", "site", "round", "metric", "value", "low", "high", "note")


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``results.json``."""
    return _ADAPTER.json_schema()


def to_json(results: Results) -> str:
    """The text of ``results.json``.

    Raises
    ------
    UserError
        ``results-invalid`` when a value does not fit the schema (names the field), ``results-small-count`` when a
        federation's cohort discloses a count under 11 (names the site).
    """
    text = _ADAPTER.dump_json(results, indent=2).decode()
    from_json(text, "results")
    return text


def from_json(text: str | bytes, source: str) -> Results:
    """Results from JSON text; ``source`` names it in errors (raises as :func:`to_json` does)."""
    try:
        results = _ADAPTER.validate_json(text, strict=True)
    except ValidationError as errors:
        error = errors.errors()[0]
        where = ".".join(str(part) for part in error["loc"]) or "the top level"
        raise UserError(
            "results-invalid",
            f"{source}: '{where}' does not fit the schema of results ({error['msg']}). "
            "Take the file as momkd wrote it, or write it again with this version.",
        ) from None
    must_be_publishable(results)
    return results


def write_results(results: Results, folder: Path) -> tuple[Path, Path]:
    """Write ``results.json`` and ``results.csv`` into ``folder`` (made when absent); returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_csv = folder / "results.json", folder / "results.csv"
    write_text(as_json, to_json(results) + "\n")
    write_text(as_csv, to_csv(results))
    return as_json, as_csv


def read_results(path: Path) -> Results:
    """Read ``results.json``.

    Raises
    ------
    UserError
        ``results-missing``, ``results-invalid`` or ``results-small-count``.
    """
    try:
        text = path.read_bytes()
    except OSError:
        raise UserError(
            "results-missing", f"{path}: there is no such results file. Give the results.json of a run."
        ) from None
    return from_json(text, str(path))


def to_csv(results: Results) -> str:
    """The page's numbers as one table, a number a line; a curve's point is its y, with its x in ``note``."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    table.writerows(_rows(results))
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _rows(results: Results) -> Iterator[tuple[object, ...]]:
    yield from _auroc_rows(results)
    for one in results.differences:
        names = (one.task, f"{one.method} - {one.reference}", one.site or "all", "")
        yield ("difference", *names, "auroc", *_cells(one.difference))
        for metric, p in (("p_value", one.p_value), ("p_holm", one.p_holm)):
            if p is not None:
                yield ("difference", *names, metric, p, "", "", "")
    for point in results.operating:
        for metric, estimate in point.metrics.items():
            yield ("operating", point.task, point.method, point.site or "all", "", metric, *_cells(estimate))
    for one_transfer in results.transfer:
        for stage, metrics in (("before", one_transfer.before), ("after", one_transfer.after)):
            where = one_transfer.site or ("all" if one_transfer.patients == "held_out" else "training validation")
            for metric, estimate in metrics.items():
                yield ("calibration", one_transfer.task, stage, where, "", metric, *_cells(estimate))
    yield from _frozen_rows(results)
    for curve in results.curves:
        for place, x in enumerate(curve.x):
            band = (curve.low[place], curve.high[place]) if curve.low and curve.high else ("", "")
            yield ("curve", curve.task, curve.method, "all", "", curve.kind, curve.y[place], *band, f"x = {x}")
    for share in results.memory_map:
        what = f"{share.modality}, {share.label}, slot {share.slot + 1}"
        yield ("memory", share.task, "federated", "", "", "share", share.share, "", "", what)
    for round_ in results.rounds:
        yield from _round_rows(round_)
    for failure in results.failures:
        level = "recovered" if failure.recovered else "not recovered"
        yield ("failure", "", "", failure.site or "", _text(failure.round), failure.code, "", "", "", level)
    for cohort in results.cohorts:
        counts = {"patients": cohort.patients, "slides": cohort.slides, "with_genomics": cohort.with_genomics}
        for metric, count in counts.items():
            yield ("cohort", "", "", cohort.site, "", metric, _text(count), "", "", "")
        for task, labels in cohort.tasks.items():
            yield ("cohort", task, "", cohort.site, "", "labelled", _text(labels.labelled), "", "", "")
            yield ("cohort", task, "", cohort.site, "", "prevalence", _text(labels.prevalence), "", "", "")
            for reason, count in labels.excluded.items():
                yield ("cohort", task, "", cohort.site, "", "excluded", _text(count), "", "", reason)
    for differing in results.differing:
        level = "stopped" if differing.stopped else "warning"
        yield ("fingerprint", "", "", differing.site, "", differing.field, _text(differing.here), "", "", level)


def _frozen_rows(results: Results) -> Iterator[tuple[object, ...]]:
    for task, chosen in results.selection.items():
        head, calibration = ("selection", task, "federated", "", ""), chosen.calibration
        yield (*head, "round", chosen.round, "", "", chosen.criterion)
        yield (*head, "threshold", _text(chosen.threshold), "", "", "")
        if calibration.kind != "isotonic":
            yield (*head, "slope", calibration.slope, "", "", calibration.kind)
            yield (*head, "intercept", calibration.intercept, "", "", calibration.kind)
        for score, share in calibration.knots:
            yield (*head, "isotonic", share, "", "", f"x = {score}")
        for kind, loss in calibration.losses.items():
            yield (*head, "cross_validated_log_loss", loss, "", "", kind)
    for site, epsilon in results.protection.epsilon.items():
        yield ("privacy", "", "", site, "", "epsilon", _text(epsilon), "", "", "" if epsilon else "no bound is claimed")


def _auroc_rows(results: Results) -> Iterator[tuple[object, ...]]:
    for method, by_task in results.held_out.items():
        for task, held_out in by_task.items():
            head = ("held_out", task, method)
            yield (*head, "all", "", "auroc_pooled", *_cells(held_out.pooled))
            yield (*head, "all", "", "auroc_within_site_mean", *_cells(held_out.within_site))
            yield (*head, "all", "", "auroc_between_sites_sd", _text(held_out.between_sites_sd), "", "", "")
            if held_out.prediction is not None:
                yield (*head, "new site", "", "auroc_prediction", *_cells(held_out.prediction))
            for site, estimate in held_out.sites.items():
                yield (*head, site, "", "auroc", *_cells(estimate))
    for task, by_site in results.local_models.items():
        for site, estimate in by_site.items():
            yield ("held_out", task, f"local:{site}", "all", "", "auroc_pooled", *_cells(estimate))
    for task, by_trained in results.matrix.items():
        for trained, by_tested in by_trained.items():
            for tested, estimate in by_tested.items():
                yield ("matrix", task, f"local:{trained}", tested, "", "auroc", *_cells(estimate))


def _round_rows(round_: Round) -> Iterator[tuple[object, ...]]:
    values: dict[str, Any] = {
        "seconds": round_.seconds,
        "bytes": round_.bytes,
        "validation_auroc": round_.validation_auroc,
        "validation_loss": round_.validation_loss,
    }
    if round_.memory is not None:
        values["slot_movement_rad"] = round_.memory.slot_movement_rad
        values["effective_slots"] = round_.memory.effective_slots
    for metric, value in values.items():
        yield ("round", "", "", "", round_.round, metric, _text(value), "", "", "")
    for site, count in round_.bytes_by_site.items():
        yield ("round", "", "", site, round_.round, "bytes", count, "", "", "")
    for state, sites in round_.sites.items():
        for site in sites:
            yield ("round", "", "", site, round_.round, "state", state, "", "", "")


def _cells(estimate: Estimate) -> tuple[object, ...]:
    return (_text(estimate.value), _text(estimate.low), _text(estimate.high), estimate.reason or "")


def _text(value: object) -> object:
    return "" if value is None else value
