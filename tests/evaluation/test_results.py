from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from momkd_fl.errors import UserError
from momkd_fl.evaluation.results import Curve, Estimate, Results, Round
from momkd_fl.evaluation.results_file import from_json, json_schema, read_results, to_csv, to_json, write_results


def test_json_gives_back_the_same_results(results: Results, federation_results: Results, tmp_path: Path) -> None:
    for number, one in enumerate((results, federation_results)):
        path, _ = write_results(one, tmp_path / str(number))
        assert read_results(path) == one


def test_json_has_the_documented_keys(results: Results) -> None:
    raw = json.loads(to_json(results))
    assert raw["schema"] == "momkd-results/1"
    assert set(raw["seconds"]) >= {"install", "run"}
    assert raw["peak_rss_mb"] > 0
    assert set(raw["held_out"]) == {"federated", "pooled", "local_median", "no_genomics_control"}
    estimate = raw["held_out"]["federated"]["PR"]["sites"]["granby"]
    assert estimate["low"] < estimate["value"] < estimate["high"]
    assert raw["rounds"][5]["sites"]["missing"] == ["dunmere"]
    assert raw["rounds"][5]["bytes"] > 0
    assert raw["provenance"]["configuration"]
    assert set(json_schema()["required"]) <= set(raw)


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("schema",), "momkd-results/0", "schema"),
        (("peak_rss_mb",), None, "peak_rss_mb"),
        (("rounds", 0, "seconds"), "4", "rounds.0.seconds"),
        (("rounds", 0, "colour"), "blue", "rounds.0.colour"),
        (("held_out", "oracle"), {}, "held_out.oracle"),
        (("provenance", "code"), "no digest", "provenance.code"),
        (("held_out", "federated", "PR", "pooled", "value"), None, "held_out.federated.PR.pooled"),
        (("rounds", 0, "sites", "missing"), ["ashford"], "rounds.0"),
        (("rounds", 0, "sites", "trained"), ["nowhere"], "the top level"),
        (("tasks",), ["HER2"], "the top level"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_field(
    results: Results, tmp_path: Path, path: tuple[str | int, ...], value: object, field: str
) -> None:
    raw = json.loads(to_json(results))
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file = tmp_path / "results.json"
    file.write_text(json.dumps(raw))
    with pytest.raises(UserError) as caught:
        read_results(file)
    assert caught.value.code == "results-invalid"
    assert f"'{field}" in caught.value.sentence
    assert str(file) in caught.value.sentence


def test_text_that_is_not_json_and_a_missing_file_get_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="results-invalid"):
        from_json("{", "half.json")
    with pytest.raises(UserError, match=r"results\.json.*results-missing"):
        read_results(tmp_path / "results.json")


def test_a_number_that_is_not_finite_is_never_written(results: Results, tmp_path: Path) -> None:
    broken = replace(results, peak_rss_mb=float("nan"))
    with pytest.raises(UserError) as caught:
        write_results(broken, tmp_path)
    assert "peak_rss_mb" in caught.value.sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Estimate(None),
        lambda: Estimate(None, 0.1, 0.2, "few"),
        lambda: Estimate(0.5, 0.4),
        lambda: Estimate(0.5, 0.6, 0.4),
        lambda: Curve("roc", "PR", "federated", [0.0, 1.0], [0.0]),
        lambda: Curve("roc", "PR", "federated", [], []),
        lambda: Round(1, 1.0, 1, {"trained": ["a"], "late": ["a"]}),
    ],
)
def test_contradictions_are_refused_where_they_are_made(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError):
        make()


def test_csv_has_every_estimate_one_a_line(results: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    pooled = results.held_out["pooled"]["PR"].pooled
    (row,) = [r for r in rows if (r["method"], r["metric"]) == ("pooled", "auroc_pooled")]
    assert (float(row["value"]), float(row["low"]), float(row["high"])) == (pooled.value, pooled.low, pooled.high)
    assert sum(r["section"] == "round" and r["metric"] == "state" for r in rows) == 20 * 6
    assert {r["method"] for r in rows} >= {"local:ashford", "federated - pooled"}
    assert {r["note"] for r in rows if r["metric"] == "excluded"} == {"equivocal", "missing"}


def test_csv_says_why_a_number_is_not_there(federation_results: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(federation_results))))
    (row,) = [r for r in rows if (r["section"], r["site"], r["metric"]) == ("held_out", "harrow", "auroc")]
    assert row["value"] == ""
    assert row["note"] == "fewer than 11 patients of a class"
    assert "<11" in {r["value"] for r in rows if r["metric"] == "patients"}


def test_csv_has_what_the_page_shows(full_results: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(full_results))))

    def one(**wanted: str) -> dict[str, str]:
        (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
        return found

    cell = full_results.matrix["ODX"]["ashford"]["brinmore"]
    found = one(section="matrix", method="local:ashford", site="brinmore")
    assert (float(found["value"]), float(found["low"]), float(found["high"])) == (cell.value, cell.low, cell.high)
    assert one(section="matrix", method="local:ashford", site="ashford")["note"] == "trained there"
    transfer = next(t for t in full_results.transfer if t.patients == "held_out" and t.site is None)
    after = one(section="calibration", method="after", site="all", metric="brier")
    assert float(after["value"]) == transfer.after["brier"].value
    assert one(section="calibration", method="before", site="training validation", metric="brier")
    assert one(section="selection", task="ODX", metric="cross_validated_log_loss", note="isotonic")
    points = [row for row in rows if row["section"] == "curve"]
    assert len(points) == sum(len(curve.x) for curve in full_results.curves)
    assert one(section="failure", metric="message-not-finite")["site"] == "brinmore"
    assert sum(row["section"] == "memory" for row in rows) == len(full_results.memory_map)
    assert {len(row) for row in rows} == {10}
