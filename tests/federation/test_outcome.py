"""From a finished run to its results: what the coordinator can know, and nothing that a site kept."""

from __future__ import annotations

import dataclasses
import json
import threading

import numpy as np
import pandas as pd
import pytest

from momkd_fl.evaluation.comparison import Scores
from momkd_fl.evaluation.metrics import auroc
from momkd_fl.federation.coordinator import Coordinator, Outcome
from momkd_fl.federation.outcome import (
    Circumstances,
    binned_scores,
    checkpoint_digest,
    compared,
    results_of,
    write_outcome,
)
from momkd_fl.federation.watch import unwatched

MEMBERS = {"ash": "train", "birch": "train", "holly": "evaluate"}
WHERE = Circumstances("federation", 12.0, 300.0)


@pytest.fixture(scope="module")
def ended(in_process):
    consortium = in_process(MEMBERS, rounds={"count": 2, "quorum": 2, "deadline_s": 5.0})
    outcome = Coordinator(
        consortium.config, consortium.grid(), unwatched(consortium.config), threading.Event(), lambda: {}
    ).run()
    assert outcome is not None
    return consortium, outcome


def own_predictions(consortium, site: str) -> pd.DataFrame:
    return pd.read_csv(consortium.participants[site].state_dir / "predictions_test.csv")


def test_the_results_tell_the_run(ended) -> None:
    consortium, outcome = ended
    results = results_of(consortium.config, outcome, WHERE)
    assert results.name == outcome.state.run
    assert [entry.round for entry in results.rounds] == [1, 2]
    assert all(entry.sites == {"trained": ["ash", "birch"]} for entry in results.rounds)
    assert results.selection["PR"].round == outcome.chosen.best.round
    assert {cohort.site for cohort in results.cohorts} == set(MEMBERS)
    assert results.protection.transport == "mutual_tls"
    assert results.provenance.architecture == outcome.state.architecture
    assert results.failures == []


def test_the_auroc_from_histograms_is_that_of_the_site_s_own_predictions(ended) -> None:
    consortium, outcome = ended
    table = own_predictions(consortium, "holly")
    exact = auroc(table["label"].to_numpy(), table[["p0", "p1"]].to_numpy())
    binned = binned_scores(outcome)["federated"]
    assert isinstance(binned, Scores)
    assert auroc(binned.labels, binned.probabilities) == pytest.approx(exact, abs=0.05)
    assert sorted(binned.labels) == sorted(table["label"])


def test_with_the_patients_own_predictions_the_results_hold_the_exact_figure(ended) -> None:
    consortium, outcome = ended
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 30)
    positive = np.clip(rng.normal(0.4 + 0.2 * label, 0.2), 0.01, 0.99)
    names = tuple(f"p{number}" for number in range(60))
    scores = Scores(names, label, np.column_stack([1 - positive, positive]), ("holly",) * 60)
    found = compared(results_of(consortium.config, outcome, WHERE), consortium.config, {"federated": scores})
    exact = auroc(label, scores.probabilities)
    assert found.held_out["federated"]["PR"].sites["holly"].value == pytest.approx(exact)
    assert found.held_out["federated"]["PR"].pooled.value == pytest.approx(exact)


def test_a_federation_says_whether_a_low_score_may_spare_a_test(ended) -> None:
    consortium, outcome = ended
    assert results_of(consortium.config, outcome, WHERE).rule_out == []
    sparing = consortium.config.model_copy(update={"rule_out": True})
    assert results_of(sparing, outcome, WHERE).rule_out == ["PR"]


def test_a_site_with_few_patients_of_a_class_gets_no_figure_of_its_own(ended) -> None:
    consortium, outcome = ended
    table = own_predictions(consortium, "holly")
    assert min(table["label"].value_counts()) < 11
    estimate = results_of(consortium.config, outcome, WHERE).held_out["federated"]["PR"].sites["holly"]
    assert estimate.value is None
    assert estimate.reason


def test_no_patient_and_no_local_path_is_in_what_is_written(ended, tmp_path) -> None:
    consortium, outcome = ended
    page = write_outcome(results_of(consortium.config, outcome, WHERE), tmp_path)
    assert page == tmp_path / "report.html"
    names = {path.name for path in tmp_path.iterdir()}
    assert {"results.json", "report.html"} <= names
    ids = [patient for site in MEMBERS for patient in labels(consortium, site)]
    for path in tmp_path.iterdir():
        text = path.read_text("utf-8")
        assert not [patient for patient in ids if patient in text], path
        assert str(consortium.config.output_dir.parent) not in text, path
    json.loads((tmp_path / "results.json").read_text("utf-8"))


def labels(consortium, site: str) -> list[str]:
    cohort = consortium.participants[site]._loaded
    assert cohort is not None
    return [patient.id for patient in cohort[0].patients]


def test_the_digest_of_the_model_changes_with_one_number(ended) -> None:
    _, outcome = ended
    before = checkpoint_digest(outcome)
    best = outcome.chosen.best
    weights = {name: value.copy() for name, value in best.weights.items()}
    weights["histology"][0] += np.float32(1e-3)
    changed = dataclasses.replace(outcome.chosen, best=dataclasses.replace(best, weights=weights))
    assert checkpoint_digest(Outcome(outcome.state, changed, {}, [])) != before
    assert checkpoint_digest(Outcome(outcome.state, outcome.chosen, {}, [])) == before


def test_a_refusal_stands_among_the_failures(ended) -> None:
    consortium, outcome = ended
    record = dataclasses.replace(outcome.state.history[1], states={"ash": "trained", "birch": "refused:internal-error"})
    state = outcome.state.after(history=(outcome.state.history[0], record))
    lost = Outcome(state, outcome.chosen, outcome.evaluations, [("cedar", "fingerprint-mismatch")])
    found = [(one.site, one.code, one.round) for one in results_of(consortium.config, lost, WHERE).failures]
    assert found == [("cedar", "fingerprint-mismatch", None), ("birch", "internal-error", 2)]
