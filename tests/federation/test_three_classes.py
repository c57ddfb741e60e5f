"""A task of three classes through a whole federation: memory, selection, evaluation, results."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from momkd_fl.config.base import load
from momkd_fl.config.site import SiteConfig, TaskLabels
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.federation.outcome import Circumstances, results_of, write_outcome
from momkd_fl.federation.simulate import simulate
from momkd_fl.federation.site_data import cohort_loader
from momkd_fl.federation.watch import unwatched

MEMBERS = {"ash": "train", "birch": "train", "cedar": "train", "holly": "evaluate"}
GRADES = ("low", "middle", "high")


@pytest.fixture(scope="module")
def ended(in_process: Any, hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The small hospitals with a grade for every patient; birch has nobody of grade 'high'."""
    folder = tmp_path_factory.mktemp("grades")
    consortium = in_process(
        MEMBERS, task="GRADE", classes=3, rounds={"count": 2, "quorum": 3, "deadline_s": 5.0, "gather_s": 0.01}
    )
    for site, participant in consortium.participants.items():
        table = pd.read_csv(hospitals / site / "labels.csv", dtype=str)
        table["grade"] = [GRADES[row % (2 if site == "birch" else 3)] for row in range(len(table))]
        table.to_csv(folder / f"{site}.csv", index=False)
        own = load(hospitals / site / "site.yaml", SiteConfig, {"role": MEMBERS[site]})
        task = TaskLabels(column="grade", classes=[[grade] for grade in GRADES])
        labels = own.data.labels.model_copy(update={"path": folder / f"{site}.csv"})
        data = own.data.model_copy(update={"labels": labels, "tasks": {"GRADE": task}})
        participant.load = cohort_loader(own.model_copy(update={"data": data}), participant.say)
    outcome = simulate(consortium.config, consortium.participants, unwatched(consortium.config), threading.Event())
    assert outcome is not None
    return consortium, outcome


def test_the_memory_has_slots_and_anchors_of_every_class_and_moves_them(ended: Any) -> None:
    _, outcome = ended
    assert outcome.state.memory["slots"].shape[:2] == (3, 2)
    assert outcome.state.memory["anchors"].shape[:2] == (3, 2)
    for record in outcome.state.history:
        assert set(record.states.values()) == {"trained"}
        assert record.slot_movement_rad > 1e-3
        assert record.moved_share == 1.0, "another site has the class that birch lacks"
    assert {"match", "align_genomics"} <= set(outcome.state.history[-1].losses)


def test_a_round_is_selected_and_every_class_evaluated(ended: Any) -> None:
    _, outcome = ended
    assert outcome.chosen.threshold is None
    assert ScoreHistogram.from_arrays(outcome.chosen.best.scores).counts.shape[:2] == (3, 3)
    tested = ScoreHistogram.from_arrays(outcome.evaluations["test"]["holly"].arrays["scores"])
    assert (tested.class_counts() > 0).all()
    assert tested.auroc(minimum=1) is not None


def test_each_site_s_predictions_have_a_probability_of_every_class(ended: Any) -> None:
    consortium, _ = ended
    table = pd.read_csv(consortium.participants["holly"].state_dir / "predictions_test.csv")
    assert set(table["label"]) == {0, 1, 2}
    np.testing.assert_allclose(table[["p0", "p1", "p2"]].sum(axis=1), 1.0, atol=1e-6)


def test_the_results_and_their_page_can_be_written(ended: Any, tmp_path: Path) -> None:
    consortium, outcome = ended
    results = results_of(consortium.config, outcome, Circumstances("simulation", 1.0, 1.0))
    assert results.tasks == ["GRADE"]
    assert results.selection["GRADE"].threshold is None
    assert write_outcome(results, tmp_path).is_file()
