"""A deny-test for every line of the contract: the same message goes with one value of the line, not with another."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Message, RecordDict
from pydantic import BaseModel

from momkd_fl.cli.consortium import provision
from momkd_fl.config.base import _models
from momkd_fl.config.policy import Policy, policy_text
from momkd_fl.config.site import Egress
from momkd_fl.errors import UserError
from momkd_fl.evaluation.results import Cohort, TaskCohort
from momkd_fl.federation.anchor import payload_digest, read_receipt, receipt
from momkd_fl.federation.books import Books
from momkd_fl.federation.challenges import Answer
from momkd_fl.federation.contract import TENSORS, contract_for, load_contract, refuse_task
from momkd_fl.federation.egress import Gate
from momkd_fl.federation.messages import (
    EVALUATE,
    KINDS,
    TRAIN,
    Evaluate,
    EvaluateReply,
    Hello,
    Parcel,
    Train,
    TrainReply,
    ask,
)
from momkd_fl.federation.pinned import NOT_PINNED
from momkd_fl.federation.transport import client_context, server_context
from momkd_fl.privacy.accountant import GaussianReleases, PoissonSteps
from momkd_fl.security.detached import sign_file
from momkd_fl.security.pki import certificate_sha256
from momkd_fl.security.signing import create_signing_key

pytestmark = pytest.mark.usefixtures("task")
RUN, TODAY = "trial-0123abcd", date(2026, 6, 1)
COHORT = Cohort("ash", "train", 60, 70, 30, {"PR": TaskCohort(60, 0.5, {})})
BOTH = (GaussianReleases(2.0), PoissonSteps(3.0, 0.1, 5))


def policy(**changes: Any) -> Policy:
    """A contract under which :func:`reply` may leave, with some lines changed: ``small_numbers__scores="exact"``."""
    made = contract_for(
        "ash", "train", coordinator_sha256="0" * 64, runs=["trial"], tasks=["PR"], expires=date(2027, 1, 1)
    )
    raw = made.model_dump(mode="json")
    for name, value in changes.items():
        *path, last = name.split("__")
        place = raw
        for step in path:
            place = place[step.replace("_dot_", ".")]
        if value is None and last in place:
            del place[last]
        else:
            place[last] = value
    return Policy.model_validate(raw)


def histogram(per_class: tuple[int, int] = (20, 20)) -> np.ndarray:
    counts = np.zeros((1, 2, 100), np.float32)
    for label, patients in enumerate(per_class):
        counts[0, label, 10 : 10 + patients] = 1
    return counts


def train_parts(slots: float = 15.0) -> tuple[TrainReply, dict[str, Any]]:
    body = TrainReply(seconds={}, losses={}, loss_sum=[5.0, 6.0], monitors={})
    counts = np.full((2, 2), slots, np.float32)
    statistics = {"sums.histology": np.ones((2, 2, 3), np.float32), "counts.histology": counts}
    return body, {
        "update": {"histology": np.ones(7, np.float32)},
        "statistics": statistics,
        "scores": {"counts": histogram()},
    }


def send(asked: Policy, books: Books | None = None, charges: Any = (), **parts: Any) -> Message:
    """A ``train`` reply through the gate; ``parts`` replaces groups of arrays."""
    body, arrays = train_parts()
    request = ask(TRAIN, Train(proximal_mu=0.0, learning_rate_share=1.0), 7, run=RUN, round=1, arrays={})
    parcel: Parcel[Any] = Parcel("train", RUN, 1, Train(proximal_mu=0.0, learning_rate_share=1.0), {})
    gate = Gate(asked, books, today=lambda: TODAY)
    return gate.send(TRAIN, request, parcel, body, {**arrays, **parts}, task="PR", charges=charges)


def evaluated(asked: Policy, cohort: Cohort = COHORT) -> EvaluateReply:
    """What is left of an ``evaluate`` reply."""
    question = Evaluate(split="test", threshold=None, calibration=None, final=True)
    request = ask(EVALUATE, question, 7, run=RUN, round=1, arrays={})
    reply = EvaluateReply(loss_sum=[5.0, 6.0], cohort=cohort)
    gate = Gate(asked, None, today=lambda: TODAY)
    parcel: Parcel[Any] = Parcel("evaluate", RUN, 1, question, {})
    message = gate.send(EVALUATE, request, parcel, reply, {"scores": {"counts": histogram()}}, task="PR", charges=())
    return EvaluateReply.model_validate_json(str(message.content["envelope"]["body"]))


def group(message: Message, name: str) -> dict[str, np.ndarray]:
    return {key: array.numpy() for key, array in message.content[name].items()}


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Callable[[Policy], Books]]:
    opened: list[Books] = []

    def open_books(asked: Policy) -> Books:
        folder = tmp_path / f"books{len(opened)}"
        names = ("policy", "signing_key", "ledger", "odometer", "publications")
        where = Egress.model_validate({name: folder / name for name in names})
        key = create_signing_key(folder, "ash")
        Books.create(where, key, "ash", asked.budget)
        opened.append(Books.open(where, key, asked.budget))
        return opened[-1]

    yield open_books
    for each in opened:
        each.close()


def code_of(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert caught.value.sentence
    return caught.value.code


# each entry: the line, as in the file; what it is changed to; the code that refuses the message
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "runs": ({"runs": ["another"]}, "contract-run"),
    "tasks": ({"tasks": ["HER2"]}, "contract-task"),
    "expires": ({"expires": "2026-05-31"}, "contract-expired"),
    "messages": ({"messages__train": None}, "contract-message"),
    "messages.bytes_max": ({"messages__train__bytes_max": 50}, "contract-bytes"),
    "messages.times_max": ({"messages__train__times_max": 0}, "contract-times"),
    "messages.tensors": ({"messages__train__tensors__update_dot_histology": None}, "contract-tensor"),
    "messages.tensors.numbers_max": (
        {"messages__train__tensors__update.histology__numbers_max": 6}, "contract-numbers",
    ),
    "messages.tensors.shape": ({"messages__train__tensors__update.histology__shape": [8]}, "contract-shape"),
    "messages.tensors.dtype": ({"messages__train__tensors__update.histology__dtype": "uint64"}, "contract-dtype"),
    "dp_required.memory": ({"dp_required__memory": True}, "contract-dp-memory"),
    "dp_required.weights": ({"dp_required__weights": True}, "contract-dp-weights"),
    "summed.required": ({"summed__required": True}, "contract-summed"),
}  # fmt: skip


@pytest.mark.parametrize("line", REFUSED)
def test_a_line_that_forbids_refuses_the_message(line: str) -> None:
    changes, code = REFUSED[line]
    if line == "messages.tensors":
        changes = {"messages__train__tensors": {"statistics.sums.histology": {"numbers_max": 99}}}
    assert send(policy()).has_content(), "the control: the contract lets it go"
    assert code_of(lambda: send(policy(**changes))) == code


WITHHELD = ("small_numbers.minimum_per_class", "small_numbers.minimum_per_slot", "small_numbers.scores",
            "small_numbers.minimum_cell")  # fmt: skip


def test_minimum_per_class_withholds_classes_scores_and_losses() -> None:
    control, stopped = send(policy()), send(policy(small_numbers__minimum_per_class=31))
    assert group(control, "statistics")["sums.histology"].any()
    assert group(control, "scores")["counts"].sum() == 40
    assert not group(stopped, "statistics")["sums.histology"].any()
    assert not group(stopped, "scores")["counts"].any()
    assert TrainReply.model_validate_json(str(stopped.content["envelope"]["body"])).loss_sum == [0.0, 0.0]


def test_minimum_per_slot_withholds_the_class() -> None:
    assert group(send(policy(small_numbers__minimum_per_slot=15)), "statistics")["counts.histology"].all()
    assert not group(send(policy(small_numbers__minimum_per_slot=16)), "statistics")["counts.histology"].any()


def test_scores_leave_exactly_in_cells_or_not() -> None:
    exact, cells, none = (
        group(send(policy(small_numbers__scores=how)), "scores")["counts"] for how in ("exact", "cells", "withheld")
    )
    assert np.array_equal(exact, histogram())
    assert cells.sum() == 40
    assert cells[cells > 0].min() >= 11
    assert not none.any()


def test_minimum_cell_withholds_counts_of_the_cohort() -> None:
    cohort = Cohort("ash", "train", 60, 70, 45, {"PR": TaskCohort(60, 0.5, {})})
    assert evaluated(policy(small_numbers__minimum_cell=15), cohort).cohort.with_genomics == 45
    assert evaluated(policy(small_numbers__minimum_cell=16), cohort).cohort.with_genomics is None


@pytest.mark.parametrize("line", ["budget.epsilon", "budget.delta"])
def test_a_smaller_budget_refuses_the_release(line: str, books: Callable[[Policy], Books]) -> None:
    charge = (GaussianReleases(1.0),)  # epsilon 4.38 at 1e-5, 6.5 at 1e-10
    wide = policy(budget__epsilon=5.0)
    assert send(wide, books(wide), charge).has_content()
    tight = (
        policy(budget__epsilon=4.0) if line == "budget.epsilon" else policy(budget__epsilon=5.0, budget__delta=1e-10)
    )
    kept = books(tight)
    before = kept.anchor
    assert code_of(lambda: send(tight, kept, charge)) == "budget-exhausted"
    assert kept.anchor == before, "neither the odometer nor the ledger has a line more"


def test_the_contract_of_another_site_is_refused(tmp_path: Path) -> None:
    key = create_signing_key(tmp_path, "ash")
    path = tmp_path / "policy.yaml"
    path.write_text(policy_text(policy()), "utf-8")
    sign_file(path, key)
    assert load_contract(path, key.public_key(), "ash", TODAY) == policy()
    assert code_of(lambda: load_contract(path, key.public_key(), "birch", TODAY)) == "contract-site"
    assert code_of(lambda: load_contract(path, key.public_key(), "ash", date(2028, 1, 1))) == "contract-expired"


def test_another_coordinator_gets_no_handshake(tmp_path: Path) -> None:
    provision(tmp_path, "small", ["ash"])
    server, own = tmp_path / "server", tmp_path / "ash"
    ca = tmp_path / "root" / "ca.crt"
    pinned = certificate_sha256(server / "server.crt")
    assert shake(tmp_path, server, own, ca, pinned) is None
    problem = shake(tmp_path, server, own, ca, "1" * 64)
    assert isinstance(problem, ssl.SSLCertVerificationError)
    assert problem.verify_code == NOT_PINNED


def shake(root: Path, server: Path, own: Path, ca: Path, sha256: str) -> Exception | None:
    """A handshake with the server under a contract that names ``sha256``."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        context = server_context(ca, server / "server.crt", server / "server.key", None)
        connection, _ = listening.accept()
        try:
            context.wrap_socket(connection, server_side=True).close()
        except OSError:
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    context = client_context(ca, own / "ash.crt", own / "ash.key", None, sha256)
    try:
        with socket.create_connection(listening.getsockname()) as plain:
            context.wrap_socket(plain, server_hostname="localhost").close()
    except ssl.SSLError as problem:
        return problem
    finally:
        thread.join(10)
        listening.close()
    return None


def lines(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every line of the contract; of a section by name, the section itself too, since its keys are lines."""
    for name, field in model.model_fields.items():
        inner = _models(field.annotation)
        if not inner or "dict" in str(field.annotation):
            yield prefix + name
        for below in inner:
            yield from lines(below, f"{prefix}{name}.")


def test_every_line_of_the_contract_has_a_deny_test() -> None:
    elsewhere = {
        "site", "coordinator_sha256", "budget.epsilon", "budget.delta", "summed.peers", "dp_required.noise",
        "witnesses.must_answer", "witnesses.peers",
    }  # fmt: skip
    assert set(lines(Policy)) == {*REFUSED, *WITHHELD, *elsewhere}


def test_noise_that_the_contract_asks_for_lets_the_message_go() -> None:
    asked = policy(dp_required__memory=True, dp_required__weights=True)
    assert send(asked, charges=BOTH).has_content()
    assert code_of(lambda: send(asked, charges=BOTH[:1])) == "contract-dp-weights"
    assert code_of(lambda: send(asked, charges=BOTH[1:])) == "contract-dp-memory"


def held(asked: Policy, charges: Any, statistics: Any = None) -> Any:
    """What of a ``train`` answer goes into a secure sum."""
    body, arrays = train_parts()
    parcel: Parcel[Any] = Parcel("train", RUN, 1, Train(proximal_mu=0.0, learning_rate_share=1.0), {})
    made = arrays if statistics is None else {**arrays, "statistics": statistics}
    return Gate(asked, None, today=lambda: TODAY).hold(TRAIN, parcel, body, made, task="PR", charges=charges)


def test_a_share_of_noise_goes_into_a_sum_only_and_only_where_the_contract_allows_it() -> None:
    share, whole = (GaussianReleases(2.0, noise_sites=3),), (GaussianReleases(2.0),)
    allowed = policy(dp_required__noise="distributed", dp_required__memory=True)
    assert held(policy(), whole), "the control: the whole noise goes by the contract to start from"
    assert code_of(lambda: held(policy(), share)) == "contract-dp-noise"
    assert held(allowed, share)
    assert code_of(lambda: send(allowed, charges=share)) == "contract-dp-noise", "in the clear it is a share alone"
    assert send(allowed, charges=whole).has_content()


def test_exact_shares_go_into_a_sum_where_the_contract_names_single_precision() -> None:
    wide = {name: value.astype(np.float64) for name, value in train_parts()[1]["statistics"].items()}
    allowed = policy(dp_required__noise="distributed")
    _, arrays = held(allowed, (GaussianReleases(2.0, noise_sites=3),), wide)
    assert {value.dtype for value in arrays["statistics"].values()} == {np.dtype(np.float64)}
    assert code_of(lambda: send(allowed, statistics=wide)) == "contract-dtype", "in the clear it stays as it was"


def test_who_must_be_heard_first_closes_the_gate(books: Callable[[Policy], Books]) -> None:
    """Birch signs what it holds of ash: that opens the gate where birch is named, and not where another key is."""
    peer = Ed25519PrivateKey.generate()
    named = {"birch": peer.public_key().public_bytes_raw().hex()}
    kept = books(policy())
    training: Parcel[Any] = Parcel("train", RUN, 1, Train(proximal_mu=0.0, learning_rate_share=1.0), {})

    def begun(must_answer: int, peers: dict[str, str], *, answered: bool) -> None:
        asked = policy(witnesses__must_answer=must_answer, witnesses__peers=peers)
        gate = Gate(asked, kept, today=lambda: TODAY)
        gate.refuse_question(Parcel("hello", RUN, 0, Hello(federation={"task": "PR"}), {}))
        if answered:
            request = ask(TRAIN, training.body, 7, run=RUN, round=1, arrays={})
            request.content["anchor"] = receipt(kept.key, payload_digest(request.content), kept.anchor)
            found = read_receipt(request.content, "ash")
            assert found is not None
            nonce = gate._challenge.fields(kept.key, RecordDict(), {})["challenge"]
            answers = json.dumps([Answer.sign(peer, nonce, found[0]).plain()])
            request.content["anchor"] = ConfigRecord({"peers": "[]", "answers": answers})
            gate.admit(request)
        gate.refuse_question(training)

    begun(1, named, answered=True)
    begun(0, named, answered=False)
    assert code_of(lambda: begun(1, named, answered=False)) == "peers-not-heard"
    assert code_of(lambda: begun(1, {"birch": "0" * 64}, answered=True)) == "peers-not-heard"


def test_a_run_s_name_is_no_pattern() -> None:
    assert code_of(lambda: send(policy(runs=["tri.l"]))) == "contract-run"
    assert code_of(lambda: send(policy(runs=["tria"]))) == "contract-run"
    assert send(policy(runs=[RUN])).has_content()
    assert send(policy(runs=["*"])).has_content()


def test_a_greeting_of_another_task_is_refused_before_any_file_is_read() -> None:
    def greet(tasks: list[str], asked: dict[str, Any]) -> None:
        Gate(policy(tasks=tasks), None, today=lambda: TODAY).refuse_question(
            Parcel("hello", RUN, 0, Hello(federation=asked), {})
        )

    greet(["HER2", "PR"], {"task": "PR"})
    greet(["*"], {"task": "ER"})
    for tasks, asked in ((["HER2"], {"task": "PR"}), ([], {"task": "PR"}), (["HER2"], {}), (["HER2"], {"task": 7})):
        assert code_of(lambda tasks=tasks, asked=asked: greet(tasks, asked)) == "contract-task"


def test_only_a_farewell_may_be_for_no_task() -> None:
    refuse_task(policy(), "finish", "")
    for kind, task in (("finish", "HER2"), ("train", ""), ("hello", "")):
        assert code_of(lambda kind=kind, task=task: refuse_task(policy(), kind, task)) == "contract-task"


def test_the_contract_to_start_from_knows_every_message() -> None:
    assert set(TENSORS) == {kind.name for kind in KINDS}
    for kind in KINDS:
        assert {name.split(".")[0] for name in TENSORS[kind.name]} == set(kind.reply_groups)
