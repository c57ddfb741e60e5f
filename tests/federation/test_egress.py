"""The one door: nothing gets past it, each step fails closed, and what passed can be proved afterwards."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from momkd_fl.config.policy import Budget, Policy, SmallNumbers
from momkd_fl.config.site import Egress
from momkd_fl.errors import UserError
from momkd_fl.federation import messages
from momkd_fl.federation.anchor import payload_digest, read_receipt, with_heads
from momkd_fl.federation.anchors import FILE
from momkd_fl.federation.books import Books
from momkd_fl.federation.client import make_client_app
from momkd_fl.federation.contract import contract_for
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.egress import Gate
from momkd_fl.federation.local import LocalGrid
from momkd_fl.federation.messages import KINDS, TRAIN, Parcel, Train, TrainReply, ask
from momkd_fl.federation.session import Calls
from momkd_fl.federation.watch import unwatched
from momkd_fl.privacy.accountant import GaussianReleases
from momkd_fl.security.ledger import verify
from momkd_fl.security.signing import create_signing_key

pytestmark = pytest.mark.usefixtures("task")
PACKAGE = Path(messages.__file__).parents[1]
SOURCES = sorted(PACKAGE.rglob("*.py"))
CHARGE = (GaussianReleases(2.0),)


def policy(site: str = "ash") -> Policy:
    open_numbers = SmallNumbers(minimum_per_class=1, minimum_per_slot=1, scores="exact")
    return contract_for(
        site,
        "train",
        coordinator_sha256="0" * 64,
        runs=["*"],
        tasks=["*"],
        expires=date(2999, 1, 1),
        small_numbers=open_numbers,
        budget=Budget(epsilon=8.0),
    )


class Desk:
    """A site's books in a folder, which can be closed, copied and opened again."""

    def __init__(self, folder: Path, site: str = "ash") -> None:
        names = ("policy", "signing_key", "ledger", "odometer", "publications")
        self.folder, self.site = folder, site
        self.where = Egress.model_validate({name: folder / name for name in names})
        self.key = create_signing_key(folder, site)
        Books.create(self.where, self.key, site, policy().budget)
        self.books = self.open()

    def open(self) -> Books:
        self.books = Books.open(self.where, self.key, policy().budget)
        return self.books

    def gate(self) -> Gate:
        return Gate(policy(self.site), self.books)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "books")
    yield made
    made.books.close()


def send(gate: Gate, number: int = 1, charges: Any = CHARGE, value: float = 1.0) -> Message:
    body = Train(proximal_mu=0.0, learning_rate_share=1.0)
    request = ask(TRAIN, body, 7, run="trial", round=number, arrays={})
    parcel: Parcel[Any] = Parcel("train", "trial", number, body, {})
    reply = TrainReply(seconds={}, losses={}, loss_sum=[0.0, 0.0], monitors={})
    arrays = {"update": {"histology": np.full(9, value, np.float32)}}
    return gate.send(TRAIN, request, parcel, reply, arrays, task="PR", charges=charges)


# The door is the only one


def calls_of(path: Path, names: set[str]) -> set[str]:
    """Which of ``names`` a module uses, called, imported or passed on."""
    tree = ast.parse(path.read_text("utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return used & names


def users(*names: str, sources: list[Path] = SOURCES, root: Path = PACKAGE) -> set[str]:
    return {str(path.relative_to(root)) for path in sources if calls_of(path, set(names))}


def test_only_the_gate_makes_an_answer() -> None:
    near = [path for path in SOURCES if path.parent.name in ("federation", "cli")]  # no other room may import messages
    assert users("answer", sources=near) - {"federation/answering.py"} == {"federation/egress.py"}
    assert users("enveloped") == {"federation/messages.py", "federation/answering.py"}


def test_the_app_answers_through_the_gate_alone() -> None:
    """Whatever a Message is made of at a site is made in the gate, or is an error without content."""
    tree = ast.parse((PACKAGE / "federation" / "client.py").read_text("utf-8"))
    returned = [ast.unparse(node.value) for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value]
    inside = {text for text in returned if text.startswith(("reply", "messages."))}
    assert inside == {"reply", "messages.refuse(request, code)"}
    made = [ast.unparse(node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "reply"]  # fmt: skip
    assert made == ["gate.send(kind, request, parcel, body, arrays, task=task, charges=charges)"]


def test_messages_with_content_are_built_in_known_places() -> None:
    """``Message(Error...)`` has no content; any other construction is the coordinator's, the gate's or in process."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "Message"):
                continue
            first = ast.unparse(node.args[0]) if node.args else "content"
            if not first.startswith("Error("):
                found.add(str(path.relative_to(PACKAGE)))
    assert found == {
        "federation/messages.py",  # ask_each, the coordinator's
        "federation/answering.py",  # the gate's
        "federation/local.py",  # Grid.create_message, in process
        "federation/flower.py",  # the coordinator's packing and taking
        "federation/grid.py",  # Grid.create_message, the coordinator's
    }


def test_only_the_transport_reaches_the_network() -> None:
    network = {"httpx", "socket", "ssl", "urllib", "requests", "smtplib", "ftplib", "http", "xmlrpc", "aiohttp"}
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if network & {name.split(".")[0] for name in names}:
                found.add(str(path.relative_to(PACKAGE)))
    assert "federation/flower.py" in found
    assert found <= {
        "federation/flower.py",
        "federation/pinned.py",
        "federation/preflight.py",  # asks whether the server is there; a bare GET
        "federation/session.py",
        "federation/transport.py",
        "cli/consortium.py",  # looks for a free port on loopback
        "telemetry/metrics.py",  # listens on loopback
    }


def test_the_search_for_a_second_door_can_fail(tmp_path: Path) -> None:
    (tmp_path / "shortcut.py").write_text("from momkd_fl.federation.answering import answer as reply_with\n")
    (tmp_path / "other.py").write_text("from momkd_fl.federation import answering\nanswering.answer(1)\n")
    found = users("answer", sources=sorted(tmp_path.glob("*.py")), root=tmp_path)
    assert found == {"shortcut.py", "other.py"}


@pytest.mark.parametrize(
    ("module", "shortcut"),
    [
        ("federation/participant.py", "momkd_fl.federation.answering"),
        ("federation/work.py", "momkd_fl.federation.flower"),
        ("federation/egress.py", "momkd_fl.federation.transport"),
    ],
)
def test_the_import_contracts_find_a_second_door(tmp_path: Path, module: str, shortcut: str) -> None:
    copy = shutil.copytree(PACKAGE, tmp_path / "momkd_fl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGE.parent / "pyproject.toml", tmp_path)
    with (copy / module).open("a") as source:
        source.write(f"\nimport {shortcut}\n")
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    planted = module.removesuffix(".py").replace("/", ".")
    assert done.returncode == 1
    assert f"momkd_fl.{planted} -> {shortcut}" in done.stdout


# What needs no door carries nothing


def test_a_refusal_carries_a_code_and_nothing_else(desk: Desk) -> None:
    body = Train(proximal_mu=0.0, learning_rate_share=1.0)
    request = ask(TRAIN, body, 7, run="trial", round=1, arrays={})
    refusal = messages.refuse(request, "bag-empty")
    assert not refusal.has_content()
    assert (refusal.error.code, refusal.error.reason) == (messages.SITE_ERROR, "bag-empty")
    assert len(messages.refuse(request, "x" * 5000).error.reason) == 64


FIELDS = {
    "activate": {"ActivateNodeRequest": {"public_key", "heartbeat_interval"}},
    "receive": {
        "PullMessagesRequest": {"node"},
        "PullObjectRequest": {"node", "run_id", "object_id"},
        "ConfirmMessageReceivedRequest": {"node", "run_id", "message_object_id"},
    },
    "confirm": {"ConfirmMessageReceivedRequest": {"node", "run_id", "message_object_id"}},
    "beat": {"SendNodeHeartbeatRequest": {"node", "heartbeat_interval"}},
    "leave": {"DeactivateNodeRequest": {"node_id"}},
    "close": {},
}
"""Everything a site says to the server besides ``push``, and the fields it may fill: keys, ids and intervals."""


def test_heartbeats_and_questions_have_no_room_for_a_payload() -> None:
    methods = {name for name in vars(Calls) if not name.startswith("_")}
    assert methods == {*FIELDS, "push"}, "a new call needs its fields here"
    tree = ast.parse((PACKAGE / "federation" / "flower.py").read_text("utf-8"))
    (client,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "_FleetCalls"]
    calls = {
        method.name: [call for call in ast.walk(method) if isinstance(call, ast.Call)]
        for method in client.body
        if isinstance(method, ast.FunctionDef)
    }

    def reached(name: str) -> list[ast.Call]:
        """The method's calls and those of the class's own methods that it calls."""
        inner = [ast.unparse(call.func).removeprefix("self.") for call in calls[name]]
        return calls[name] + [call for each in inner if each in calls for call in reached(each)]

    for method in FIELDS:
        built = {
            ast.unparse(call.func): {str(word.arg) for word in call.keywords}
            for call in reached(method)
            if ast.unparse(call.func).endswith("Request")
        }
        assert built == FIELDS[method], method


def test_what_is_pushed_came_from_the_app_or_is_an_error() -> None:
    tree = ast.parse((PACKAGE / "federation" / "session.py").read_text("utf-8"))
    (work,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_work"]
    pushed = [ast.unparse(node.value) for node in ast.walk(work) if isinstance(node, ast.Assign)
              and ast.unparse(node.targets[0]).startswith("reply")]  # fmt: skip
    assert set(pushed) == {
        "app(message, context)",
        "Message(Error(APP_ERROR, type(problem).__name__), reply_to=message)",
        "pack(reply.content, salted=True)",
    }
    assert users("push") == {"federation/session.py"}


# Each step fails closed


def test_a_round_before_the_newest_is_not_worked_for_and_a_restart_does_not_forget_it(desk: Desk) -> None:
    body = Train(proximal_mu=0.0, learning_rate_share=1.0)

    def asked(gate: Gate, number: int, run: str = "trial") -> str:
        try:
            gate.refuse_question(Parcel("train", run, number, body, {}))
        except UserError as mistake:
            return mistake.code
        return ""

    gate = desk.gate()
    assert asked(gate, 1) == ""
    send(gate, 3)
    assert [asked(gate, number) for number in (1, 2, 3, 4)] == ["round-replayed", "round-replayed", "", ""]
    assert asked(gate, 1, "trial-0123abcd") == "", "another run has rounds of its own"
    narrow = Gate(policy().model_copy(update={"runs": ["trial"]}), desk.books)
    assert asked(narrow, 9, "another") == "contract-run"
    desk.books.close()
    desk.open()
    assert asked(desk.gate(), 2) == "round-replayed"
    simulated = Gate(policy(), None)
    send(simulated, 2, charges=())
    assert asked(simulated, 1) == "round-replayed"


def test_a_message_is_debited_entered_and_signed(desk: Desk) -> None:
    reply = send(desk.gate())
    (entry,) = verify(desk.where.ledger, desk.key.public_key()).entries
    assert (entry.run, entry.round, entry.kind, entry.bytes) == ("trial", 1, "train", 9 * 4 + 128)
    assert entry.digest == payload_digest(reply.content)
    assert entry.epsilon_spent == pytest.approx(desk.books.odometer.receipt.epsilon_spent)
    assert 0 < entry.epsilon_spent < 8
    found = read_receipt(reply.content, "ash")
    assert found is not None
    assert (found[0].anchor, found[0].key) == (desk.books.anchor, desk.key.public_key().public_bytes_raw())


def test_a_changed_message_breaks_its_receipt(desk: Desk) -> None:
    reply = send(desk.gate())
    array = reply.content["update"]["histology"]
    array.data = array.data[:-1] + bytes([array.data[-1] ^ 1])
    with pytest.raises(UserError, match="ash") as caught:
        read_receipt(reply.content, "ash")
    assert caught.value.code == "receipt-invalid"


def test_the_identical_bytes_are_debited_once_and_others_anew(desk: Desk) -> None:
    gate = desk.gate()
    send(gate)
    once = desk.books.odometer.receipt
    send(gate)
    assert desk.books.odometer.receipt == once
    send(gate, value=2.0)
    assert desk.books.odometer.receipt.epsilon_spent > once.epsilon_spent


def test_an_exhausted_budget_lets_nothing_out(desk: Desk) -> None:
    gate = desk.gate()
    for number in range(1, 10):
        send(gate, number)
    before = desk.books.anchor
    with pytest.raises(UserError) as caught:
        send(gate, 10, (GaussianReleases(0.62),))  # alone within the budget of 8
    assert caught.value.code == "budget-exhausted"
    assert desk.books.anchor == before
    assert len(verify(desk.where.ledger).entries) == 9


@pytest.mark.parametrize("book", ["ledger", "odometer"])
def test_a_book_that_cannot_be_written_lets_nothing_out(desk: Desk, book: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = desk.gate()
    if book == "ledger":
        desk.books.ledger.close()  # as after a failed write: it takes no more lines
    else:
        desk.where.odometer.unlink()
    with pytest.raises(UserError) as caught:
        send(gate)
    assert caught.value.code in ("ledger-not-written", "odometer-missing")


def test_a_site_without_its_books_sends_nothing(desk: Desk) -> None:
    desk.books.close()
    for book in ("ledger", "odometer", "publications"):
        path: Path = getattr(desk.where, book)
        moved = path.with_suffix(".away")
        path.rename(moved)
        with pytest.raises(UserError) as caught:
            desk.open()
        assert caught.value.code in ("ledger-missing", "odometer-missing", "publications-unreadable")
        moved.rename(path)


def test_messages_of_earlier_processes_count(desk: Desk) -> None:
    send(desk.gate(), charges=())
    desk.books.close()
    books = desk.open()
    assert books.sent == {("trial", "train"): 1}


# A whole run through real books


@pytest.fixture(scope="module")
def run(in_process: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, Desk], Path]]:
    """Two sites, two rounds, through gates with books; their desks and the coordinator's folder."""
    root = tmp_path_factory.mktemp("gate")
    sites = {"ash": "train", "birch": "train"}
    consortium = in_process(sites, root, rounds={"count": 2, "quorum": 2, "deadline_s": 5.0})
    desks = {site: Desk(root / "books" / site, site) for site in sites}
    outcome = Coordinator(
        consortium.config, grid_of(consortium, desks), unwatched(consortium.config), threading.Event(), lambda: {}
    ).run()
    assert outcome is not None
    yield consortium, desks, consortium.config.output_dir
    for desk in desks.values():
        desk.books.close()


def grid_of(consortium: Any, desks: dict[str, Desk]) -> LocalGrid:
    def context() -> Context:
        return Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})

    return LocalGrid(
        {
            site: (make_client_app(participant, participant.say, gate=desks[site].gate()), context())
            for site, participant in consortium.participants.items()
        }
    )


def test_every_message_of_a_run_is_in_the_ledger_and_its_head_with_the_coordinator(run: Any) -> None:
    _, desks, folder = run
    held = json.loads((folder / FILE).read_text())
    for site, desk in desks.items():
        found = verify(desk.where.ledger, desk.key.public_key())
        kinds = [entry.kind for entry in found.entries]
        assert kinds.count("train") == 2
        assert set(kinds) <= {kind.name for kind in KINDS}
        assert held[site]["heads"]["ledger"] == {"lines": found.head.lines, "digest": found.head.digest}
        assert held[site]["key"] == desk.key.public_key().public_bytes_raw().hex()


@pytest.mark.parametrize(("book", "code"), [("ledger", "ledger-truncated"), ("odometer", "odometer-rolled-back")])
def test_a_restored_backup_is_found_out_by_the_coordinator_s_heads(
    run: Any, tmp_path: Path, book: str, code: str
) -> None:
    """An old copy of a book is put back; the coordinator's next question, with the heads it holds, is refused."""
    consortium, desks, _ = run
    desk, participant = desks["ash"], consortium.participants["ash"]
    path: Path = getattr(desk.where, book)
    shutil.copy(path, tmp_path / "old")
    send(desk.gate(), 9, value=float(len(book)))
    held = desk.books.anchor
    question = ask(TRAIN, Train(proximal_mu=0.0, learning_rate_share=1.0), 7, run="small-0", round=3, arrays={})
    question.content = with_heads(question.content, held)
    question.metadata.__dict__["_message_id"] = "question"

    def answer() -> Message:
        app = make_client_app(participant, participant.say, gate=desk.gate())
        return app(question, Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={}))

    assert messages.site_code(answer()) == "plan-missing", "the control: with the newest books it gets past the heads"
    desk.books.close()
    shutil.copy(path, tmp_path / "newest")
    shutil.copy(tmp_path / "old", path)
    desk.open()
    assert messages.site_code(answer()) == code
    assert participant.over, "the site leaves the run"
    desk.books.close()
    shutil.copy(tmp_path / "newest", path)
    desk.open()


def test_the_coordinator_learns_a_code_and_the_site_a_sentence(run: Any) -> None:
    consortium, desks, _ = run
    participant = consortium.participants["birch"]
    said: list[str] = []
    narrow = policy("birch").model_copy(update={"runs": ["another"]})
    app = make_client_app(participant, said.append, gate=Gate(narrow, desks["birch"].books))
    federation = consortium.config.model_dump(mode="json", include=set(messages.SHARED_SECTIONS))
    request = ask(messages.HELLO, messages.Hello(federation=federation), 7, run="small-0", round=0, arrays={})
    request.metadata.__dict__["_message_id"] = "question"
    reply = app(request, Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={}))
    assert not reply.has_content()
    assert messages.site_code(reply) == "contract-run"
    assert any("another" in sentence for sentence in said)
    assert re.fullmatch(r"[a-z-]+", reply.error.reason)
