"""``momkd predict`` and ``momkd evaluate`` on a model that a run left."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from momkd_fl.cli import main
from momkd_fl.evaluation.results_file import read_results
from momkd_fl.training import checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, hospitals: Path):
    """A finished simulation's files; the sites' own state folders hold what a run over a network would leave there."""
    from tests.cli.conftest import SITES, Files

    found = Files(tmp_path_factory.mktemp("run"), hospitals)
    assert main.main(["simulate", "--federation", str(found.federation), "--plain"]) == 0
    for site in SITES:
        state = Path(yaml.safe_load(found.site(site.name).read_text())["state_dir"])
        shutil.copytree(found.output / "sites" / site.name, state, dirs_exist_ok=True)
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_of_the_run_and_of_everybody_with_slides(run, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "predictions.csv"
    assert main.main(["predict", "--site", str(run.site("holly")), "--out", str(out)]) == 0
    assert "scored for PR" in capsys.readouterr().out
    assert out.stat().st_mode & 0o777 == 0o600
    found = {row["patient"]: row for row in rows_of(out)}
    kept = {row["patient"]: row for row in rows_of(run.output / "sites" / "holly" / "predictions_test.csv")}
    assert len(found) > len(kept), "patients without a label are scored too"
    assert kept.keys() <= found.keys()
    for patient, row in kept.items():
        assert float(found[patient]["score"]) == pytest.approx(float(row["p1"]), abs=1e-6)
        assert found[patient]["label"] == row["label"]
    unlabelled = [row for patient, row in found.items() if patient not in kept]
    assert all(row["label"] == "" == row["split"] for row in unlabelled)
    assert all(abs(float(row["p0"]) + float(row["p1"]) - 1) < 1e-5 for row in found.values())
    threshold = checkpoint.load(run.output / "sites" / "holly" / "model.safetensors")[1]["threshold"]
    assert threshold is not None
    assert {row["called"] for row in found.values()} <= {"0", "1"}
    for row in found.values():
        assert int(row["called"]) == (float(row["score"]) >= threshold)


def test_no_genome_is_looked_at(run, tmp_path: Path) -> None:
    """The genomic site's scores are the same after its expression table's values were shuffled away."""
    raw = yaml.safe_load(run.site("ash").read_text())
    assert "genomics" in raw["data"]
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    assert main.main(["predict", "--site", str(run.site("ash")), "--out", str(first)]) == 0
    raw["data"].pop("genomics")
    blind = run.site("ash").with_name("blind.yaml")
    blind.write_text(yaml.safe_dump(raw))
    assert main.main(["predict", "--site", str(blind), "--out", str(second)]) == 0
    scores = [{row["patient"]: row["score"] for row in rows_of(path)} for path in (first, second)]
    assert scores[0] == scores[1]


def test_evaluate_names_the_model_of_the_report(run, tmp_path: Path, capsys) -> None:
    out = tmp_path / "figures.json"
    command = ["evaluate", "--site", str(run.site("holly")), "--out", str(out)]
    assert main.main([*command, "--model", str(run.output / "model.safetensors")]) == 0
    assert "none of them trained on" in capsys.readouterr().out
    found, results = json.loads(out.read_text()), read_results(run.output / "results.json")
    assert found["model_sha256"] == results.provenance.checkpoint
    reported = results.held_out["federated"]["PR"].pooled.value
    value = found["estimates"]["auroc"]["value"]
    assert (value is None) == (reported is None)
    if reported is not None:
        assert value == pytest.approx(reported, abs=0.02), "the report knows scores by histogram bin"
    assert main.main(["evaluate", "--site", str(run.site("ash"))]) == 0
    assert "the model was chosen on them" in capsys.readouterr().out


def without_labels(run, tmp_path: Path, rest: str) -> Path:
    raw = yaml.safe_load(run.site("holly").read_text())
    labels = tmp_path / "labels.csv"
    column = raw["data"]["tasks"]["PR"]["column"]
    table = rows_of(Path(raw["data"]["labels"]["path"]))
    with labels.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows({**row, column: rest} for row in table)
    raw["data"]["labels"]["path"] = str(labels)
    path = run.site("holly").with_name(f"unlabelled{rest}.yaml")
    path.write_text(yaml.safe_dump(raw))
    return path


def test_a_hospital_without_any_label(run, tmp_path: Path, capsys) -> None:
    out = tmp_path / "p.csv"
    site = without_labels(run, tmp_path, "")
    assert main.main(["predict", "--site", str(site), "--out", str(out)]) == 0
    assert "0 of them with a label" in capsys.readouterr().out
    assert {row["label"] for row in rows_of(out)} == {""}
    assert main.main(["evaluate", "--site", str(site)]) == 2
    assert "[label-values-unknown]" in capsys.readouterr().err


def test_labels_that_nobody_knows_are_still_a_mistake(run, tmp_path: Path, capsys) -> None:
    site = without_labels(run, tmp_path, "purple")
    assert main.main(["predict", "--site", str(site), "--out", str(tmp_path / "p.csv")]) == 2
    assert "'purple'" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()


def test_mistakes_get_a_sentence(run, tmp_path: Path, capsys) -> None:
    command = ["predict", "--site", str(run.site("holly")), "--out", str(tmp_path / "p.csv")]
    for model, code in {
        tmp_path / "nothing.safetensors": "model-missing",
        run.output / "checkpoint.safetensors": "model-other",
        run.site("holly"): "checkpoint-corrupt",
    }.items():
        assert main.main([*command, "--model", str(model)]) == 2
        assert f"[{code}]" in capsys.readouterr().err
    kept, meta = checkpoint.load(run.output / "model.safetensors")
    for changes, code in (
        ({"architecture": "0" * 64}, "model-version"),
        ({"federation": {**meta["federation"], "unheard": 1}}, "model-version"),
    ):
        checkpoint.write_durably(tmp_path / "m.safetensors", checkpoint.pack(kept, {**meta, **changes}))
        assert main.main([*command, "--model", str(tmp_path / "m.safetensors")]) == 2
        assert f"[{code}]" in capsys.readouterr().err
    assert main.main(["predict", "--site", str(run.site("holly")), "--out", str(run.federation / "p.csv")]) == 2
    assert "[predictions-unwritable]" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()
