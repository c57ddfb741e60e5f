"""One site's answers: what it refuses, what survives a restart, what leaves it."""

from __future__ import annotations

import csv
import dataclasses
import threading
from typing import Any

import numpy as np
import pytest

from momkd_fl.errors import UserError
from momkd_fl.federation import state as states
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.messages import SHARED_SECTIONS, Evaluate, Finish, Hello, Initialise, Parcel, Plan, Train
from momkd_fl.federation.participant import Participant
from momkd_fl.federation.publications import Publications, published_cohort
from momkd_fl.federation.watch import unwatched
from momkd_fl.training import checkpoint

MEMBERS = {"ash": "train", "birch": "train", "holly": "evaluate"}


@pytest.fixture(scope="module")
def finished(in_process) -> tuple[Any, states.ServerState]:
    """A consortium whose run is over, and the coordinator's last state."""
    consortium = in_process(MEMBERS, rounds={"count": 1, "quorum": 2, "deadline_s": 5.0, "gather_s": 0.01})
    watch = unwatched(consortium.config)
    outcome = Coordinator(consortium.config, consortium.grid(), watch, threading.Event(), lambda: {}).run()
    assert outcome is not None
    return consortium, outcome.state


def restarted(participant: Participant) -> Participant:
    """The same site as a new process: it has its files and its state folder, nothing else."""
    return Participant(
        participant.site,
        participant.role,
        participant.load,
        participant.state_dir,
        participant.device,
        participant.say,
    )


def train_request(state: states.ServerState, **arrays: Any) -> Parcel[Train]:
    sent = {"weights": state.weights, "memory": state.memory, **arrays}
    return Parcel("train", state.run, state.round + 1, Train(proximal_mu=0.0, learning_rate_share=1.0), sent)


def evaluate_request(state: states.ServerState, split: str, *, final: bool = False) -> Parcel[Evaluate]:
    body = Evaluate.model_validate({"split": split, "threshold": None, "calibration": None, "final": final})
    return Parcel("evaluate", state.run, state.round, body, {"weights": state.weights, "memory": state.memory})


def test_a_site_that_evaluates_refuses_to_train(finished) -> None:
    consortium, state = finished
    with pytest.raises(UserError, match="'holly' evaluates only") as caught:
        consortium.participants["holly"].train(train_request(state))
    assert caught.value.code == "role-mismatch"


def test_a_restarted_site_goes_on_from_its_own_plan_and_answers_the_same(finished) -> None:
    consortium, state = finished
    one, other = (restarted(consortium.participants["ash"]) for _ in range(2))
    first, arrays = one.train(train_request(state))
    again, same = other.train(train_request(state))
    assert first.losses == again.losses
    for group, members in arrays.items():
        for name, value in members.items():
            np.testing.assert_array_equal(value, same[group][name])
    assert set(arrays) == {"update", "statistics", "scores"}
    assert np.abs(arrays["update"]["histology"]).max() > 0


def test_a_site_without_the_plan_of_the_run_says_so(finished, tmp_path) -> None:
    consortium, state = finished
    lost = restarted(consortium.participants["ash"])
    lost.state_dir = tmp_path
    with pytest.raises(UserError) as caught:
        lost.train(train_request(state))
    assert caught.value.code == "plan-missing"
    another = dataclasses.replace(state, run="another-run")
    with pytest.raises(UserError) as caught:
        restarted(consortium.participants["ash"]).train(train_request(another))
    assert caught.value.code == "plan-missing"


def test_a_plan_without_a_greeting_is_refused(finished) -> None:
    consortium, _ = finished
    body = Plan(panel=[], architecture="0" * 64)
    with pytest.raises(UserError) as caught:
        restarted(consortium.participants["ash"]).plan(Parcel("plan", "unheard-of", 0, body, {}))
    assert caught.value.code == "plan-missing"


def test_weights_of_another_size_are_refused_before_anything_is_trained(finished) -> None:
    consortium, state = finished
    site = restarted(consortium.participants["ash"])
    short = {branch: value[:-1] for branch, value in state.weights.items()}
    with pytest.raises(UserError, match="weights") as caught:
        site.train(train_request(state, weights=short))
    assert caught.value.code == "message-shape"


def test_what_a_round_sends_has_no_id_no_label_and_no_gene_value(finished) -> None:
    consortium, state = finished
    site = restarted(consortium.participants["ash"])
    reply, arrays = site.train(train_request(state))
    assert site._work is not None
    cohort = site._work.cohort
    text = reply.model_dump_json()
    assert not [patient.id for patient in cohort.patients if patient.id in text]
    assert not [gene for gene in cohort.panel if gene in text]
    genes = np.stack([patient.genes for patient in cohort.patients if patient.genes is not None])
    sent = np.concatenate([value.ravel() for members in arrays.values() for value in members.values()])
    assert not np.isin(genes.astype(np.float32), sent).any()


def test_a_site_without_genomics_sends_none(finished) -> None:
    consortium, state = finished
    _, arrays = restarted(consortium.participants["birch"]).train(train_request(state))
    assert set(arrays["update"]) == {"histology"}
    assert not [name for name in arrays["statistics"] if "genomics" in name]
    _, arrays = restarted(consortium.participants["ash"]).train(train_request(state))
    assert set(arrays["update"]) == {"histology", "genomics"}


def test_predictions_are_written_at_the_site_for_the_final_evaluation_only(finished) -> None:
    consortium, state = finished
    site = restarted(consortium.participants["holly"])
    path = site.state_dir / "predictions_test.csv"
    path.unlink()
    _, arrays = site.evaluate(evaluate_request(state, "test"))
    assert not path.exists()
    site.evaluate(evaluate_request(state, "test", final=True))
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert site._work is not None
    labels = {patient.id: patient.label for patient in site._work.cohort.labelled("test")}
    assert {row["patient"]: int(row["label"]) for row in rows} == labels
    assert all(float(row["p0"]) + float(row["p1"]) == pytest.approx(1, abs=1e-6) for row in rows)
    assert float(sum(value.sum() for value in arrays["scores"].values())) == len(rows)


def test_a_small_count_is_withheld_from_the_cohort_that_is_sent(finished) -> None:
    consortium, state = finished
    reply, _ = restarted(consortium.participants["holly"]).evaluate(evaluate_request(state, "test"))
    sent = published_cohort(reply.cohort, 11, Publications(None))
    task = sent.tasks["PR"]
    assert None in (sent.patients, task.labelled), "together they would give the small count away by subtraction"
    cohort = restarted(consortium.participants["holly"])
    cohort.ready(state.run)
    assert cohort._work is not None
    small = [count for count in cohort._work.cohort.exclusions.values() if 0 < count < 11]
    assert small, "this cohort has a small count to withhold"
    assert all(task.excluded[reason] is None for reason, n in cohort._work.cohort.exclusions.items() if 0 < n < 11)


def test_a_refusal_keeps_its_sentence_and_no_model(finished, tmp_path) -> None:
    consortium, _ = finished
    site = restarted(consortium.participants["ash"])
    site.state_dir = tmp_path
    body = Finish(outcome="refused", code="fingerprint-mismatch", sentence="site ash: field 'dim' is 3.")
    site.finish(Parcel("finish", "run", 0, body, {}))
    assert site.over
    assert site.mistake is not None
    assert site.mistake.sentence == "site ash: field 'dim' is 3."
    assert list(tmp_path.iterdir()) == []


def test_the_selected_model_is_kept_with_what_is_needed_to_use_it(finished) -> None:
    consortium, state = finished
    tensors, meta = checkpoint.load(consortium.participants["ash"].state_dir / "model.safetensors")
    assert state.best is not None
    for branch, value in state.best.weights.items():
        np.testing.assert_array_equal(tensors[f"weights/{branch}"], value)
    for name, value in state.space.items():
        np.testing.assert_array_equal(tensors[f"space/{name}"], value)
    assert tuple(meta["panel"]) == state.panel
    assert meta["architecture"] == state.architecture


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"encoder": {"name": "synthetic-16", "dim": 24}}, "dim-mismatch"),
        ({"encoder": {"name": "uni2-h", "dim": 16}}, "encoder-mismatch"),
        ({"task": "KRAS"}, "task-unknown"),
        ({"classes": 3}, "task-classes"),
    ],
)
def test_a_federation_that_asks_for_other_data_gets_a_sentence(finished, change: dict[str, Any], code: str) -> None:
    consortium, _ = finished
    shared = consortium.config.model_dump(mode="json", include=set(SHARED_SECTIONS)) | change
    site = restarted(consortium.participants["ash"])
    with pytest.raises(UserError) as caught:
        site.hello(Parcel("hello", "run", 0, Hello(federation=shared), {}))
    assert caught.value.code == code
    assert len(caught.value.sentence) > 30


def test_an_initialisation_step_without_its_arrays_is_a_sentence_or_a_code_never_a_guess(finished) -> None:
    consortium, state = finished
    site = restarted(consortium.participants["ash"])
    body = Initialise(step="slots", iteration=0)
    with pytest.raises(UserError) as caught:
        site.initialise(Parcel("initialise", state.run, 0, body, {}))
    assert caught.value.code == "message-shape"
