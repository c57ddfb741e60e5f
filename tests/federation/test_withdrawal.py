"""A patient withdrawn between rounds, while the client runs: gone from the next message on, and in the ledger."""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from momkd_fl.config.base import load
from momkd_fl.config.site import Egress, SiteConfig
from momkd_fl.data.withdrawal import read_withdrawn, withdraw, withdrawn_file
from momkd_fl.errors import UserError
from momkd_fl.federation.books import WITHDRAWAL, Books
from momkd_fl.federation.client import make_client_app
from momkd_fl.federation.contract import contract_for
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.egress import Gate, simulation_gate
from momkd_fl.federation.local import LocalGrid
from momkd_fl.federation.messages import Parcel, Train
from momkd_fl.federation.participant import Participant
from momkd_fl.federation.site_data import cohort_loader
from momkd_fl.federation.site_outputs import forget_predictions
from momkd_fl.federation.vault import Vault
from momkd_fl.federation.watch import unwatched
from momkd_fl.security.ledger import verify
from momkd_fl.security.seal import Sealed
from momkd_fl.security.signing import create_signing_key

DAY = date(2026, 3, 1)


class Site:
    """A site of the consortium ``run`` with a state folder, a list of withdrawals and books of its own."""

    def __init__(self, hospitals: Path, folder: Path, name: str = "ash") -> None:
        state = {"state_dir": str(folder / "state")}
        self.own = load(hospitals / name / "site.yaml", SiteConfig, state)
        names = ("policy", "signing_key", "ledger", "odometer", "publications")
        self.where = Egress.model_validate({each: folder / each for each in names})
        self.key = create_signing_key(folder, name)
        self.policy = contract_for(
            name, "train", coordinator_sha256="0" * 64, runs=["*"], tasks=["*"], expires=date(2999, 1, 1)
        )  # fmt: skip
        Books.create(self.where, self.key, name, self.policy.budget)

    def participant(self) -> Participant:
        return Participant(
            self.own.site, "train", cohort_loader(self.own, lambda said: None), self.own.state_dir,
            torch.device("cpu"), lambda said: None,
            withdrawn=lambda: frozenset(read_withdrawn(withdrawn_file(self.own))),
        )  # fmt: skip

    def books(self) -> Books:
        return Books.open(self.where, self.key, self.policy.budget)

    def leave(self, patient: str) -> None:
        assert withdraw(withdrawn_file(self.own), patient, "asked", [], DAY)


@pytest.fixture
def site(hospitals: Path, tmp_path: Path) -> Site:
    return Site(hospitals, tmp_path)


class BetweenRounds(LocalGrid):
    """Does something just before the training of a round."""

    def __init__(self, apps: Any, before: Callable[[int], None]) -> None:
        super().__init__(apps)
        self.before, self.requests = before, {}

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        for message in messages:
            kind, number = message.content["envelope"]["kind"], int(message.metadata.group_id)
            if kind == "train" and (number, self.sites[message.metadata.dst_node_id]) not in self.requests:
                self.before(number)
                self.requests[number, self.sites[message.metadata.dst_node_id]] = message
            yield from super().send_and_receive([message])


@pytest.mark.parametrize("split", ["train", "validation"])
def test_withdrawn_between_rounds_while_the_client_runs(in_process, site: Site, split: str) -> None:
    run = in_process({"ash": "train", "birch": "train"}, rounds={"count": 2, "quorum": 2, "deadline_s": 5.0})
    ash = run.participants["ash"] = site.participant()
    left: list[Any] = []

    def before(number: int) -> None:
        if number == 2 and not left:
            cohort, _ = ash._loaded
            left.append(cohort.labelled(split)[0])
            assert cohort.cache.get(left[0].key) is not None, "the control was never read"
            site.leave(left[0].id)

    apps = {
        name: (
            make_client_app(each, each.say, gate=simulation_gate(name)),
            Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        )
        for name, each in run.participants.items()
    }
    grid = BetweenRounds(apps, before)
    outcome = Coordinator(run.config, grid, unwatched(run.config), threading.Event(), lambda: {}).run()
    assert outcome is not None
    assert outcome.state.round == 2
    (gone,) = left
    cohort = ash._work.cohort
    assert gone.id not in {patient.id for patient in cohort.patients}
    assert cohort.cache.get(gone.key) is None
    written = csv.DictReader((site.own.state_dir / "predictions_validation.csv").open(encoding="utf-8"))
    assert gone.id not in {row["patient"] for row in written}


def request(state: Any, number: int) -> Parcel[Train]:
    sent = {"weights": state.weights, "memory": state.memory}
    return Parcel("train", state.run, number, Train(proximal_mu=0.0, learning_rate_share=1.0), sent)


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return all(np.array_equal(one[g][n], two[g][n]) for g in one for n in one[g])


def test_nothing_of_the_patient_is_left_in_a_running_client(in_process, site: Site) -> None:
    """Its next answer is, bit for bit, that of a client that starts only now; a client that goes on answers another."""
    run = in_process({"ash": "train", "birch": "train"}, rounds={"count": 1, "quorum": 2, "deadline_s": 5.0})
    running = run.participants["ash"] = site.participant()
    outcome = Coordinator(run.config, run.grid(), unwatched(run.config), threading.Event(), lambda: {}).run()
    assert outcome is not None
    _, control = site.participant().train(request(outcome.state, 2))
    gone = running._loaded[0].labelled("train")[0].id
    site.leave(gone)
    _, one = running.train(request(outcome.state, 2))
    _, two = site.participant().train(request(outcome.state, 2))
    assert same(one, two)
    for group in ("update", "statistics"):
        assert not same({group: one[group]}, {group: control[group]})
    counts, before = (float(each["statistics"]["counts.histology"].sum()) for each in (one, control))
    assert before - counts == pytest.approx(1.0, abs=1e-3), "one patient is missing from the sums"


def test_the_ledger_has_a_line_that_names_nobody(site: Site) -> None:
    books = site.books()
    gate = Gate(site.policy, books)
    gate.note_withdrawn([])
    assert verify(site.where.ledger).entries == ()
    for _ in range(2):
        gate.note_withdrawn(["patient-17", "patient-18"])
    books.close()
    entries = verify(site.where.ledger).entries
    assert [entry.kind for entry in entries] == [WITHDRAWAL] * 2
    assert len({entry.digest for entry in entries}) == 2
    assert all((entry.run, entry.round, entry.bytes) == ("none", 0, 0) for entry in entries)
    assert b"patient-17" not in site.where.ledger.read_bytes()
    again = site.books()
    again.enter_withdrawn(["patient-18", "patient-17", "patient-19"])
    again.close()
    assert len(verify(site.where.ledger).entries) == 3


def test_the_digest_cannot_be_matched_without_the_key(site: Site, tmp_path: Path) -> None:
    other = create_signing_key(tmp_path / "other", "ash")
    from momkd_fl.federation.books import withdrawal_digest

    assert withdrawal_digest(site.key, "p1") == withdrawal_digest(site.key, "p1")
    assert withdrawal_digest(site.key, "p1") != withdrawal_digest(other, "p1")


def test_a_list_that_lost_a_patient_stops_the_site(site: Site) -> None:
    books = site.books()
    books.enter_withdrawn(["p1", "p2"])
    with pytest.raises(UserError) as error:
        Gate(site.policy, books).note_withdrawn(["p1"])
    assert error.value.code == "withdrawals-lost"
    books.close()


@pytest.mark.usefixtures("task")
def test_and_ends_its_part_of_the_run(in_process, site: Site) -> None:
    from momkd_fl.federation.messages import HELLO, SHARED_SECTIONS, Hello, ask

    run = in_process({"ash": "train"}, rounds={"count": 1, "quorum": 1, "deadline_s": 5.0})
    books, participant = site.books(), site.participant()
    site.leave("p1")
    books.enter_withdrawn(["p1"])
    withdrawn_file(site.own).unlink()
    app = make_client_app(participant, lambda said: None, gate=Gate(site.policy, books))
    shared = run.config.model_dump(mode="json", include=set(SHARED_SECTIONS))
    asked = ask(HELLO, Hello(federation=shared), 7, run="run-1", round=0, arrays={})
    reply: Message = app(asked, Context(run_id=0, node_id=7, node_config={}, state=RecordDict(), run_config={}))
    assert reply.has_error()
    assert reply.error.reason == "withdrawals-lost"
    assert participant.over
    books.close()


def test_rows_of_predictions_go(tmp_path: Path) -> None:
    for name in ("predictions_validation.csv", "predictions_test.csv"):
        (tmp_path / name).write_text("patient,label,p0,p1\np1,0,0.5,0.5\np12,1,0.2,0.8\n", "utf-8")
    assert forget_predictions(tmp_path, "p1") == 2
    assert forget_predictions(tmp_path, "p1") == 0
    kept = (tmp_path / "predictions_test.csv").read_text("utf-8")
    assert kept == "patient,label,p0,p1\np12,1,0.2,0.8\n"


def test_rows_of_sealed_predictions_go_while_a_client_runs(tmp_path: Path) -> None:
    client, command = Vault(bytes(32)), Vault(bytes(32))
    path = tmp_path / "predictions_test.csv"
    sealed = Sealed("predictions", "run-1", 4)
    client.write(path, b"patient,label,p0,p1\np1,0,0.5,0.5\np12,1,0.2,0.8\n", sealed)
    client.write(tmp_path / "plan.safetensors", b"before", Sealed("plan", "run-1", 0))
    assert forget_predictions(tmp_path, "p1", command) == 1
    client.write(tmp_path / "plan.safetensors", b"after", Sealed("plan", "run-1", 0))
    assert client.read(path, "predictions") == b"patient,label,p0,p1\np12,1,0.2,0.8\n"
    assert client.sealed_as(path, "predictions") == sealed
