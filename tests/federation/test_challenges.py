"""Sites that ask each other, for each run anew, how far their books are: old books are found out although the
coordinator leaves out what peers hold, and honest runs of every kind go on as before."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, Message, RecordDict

from momkd_fl.config.policy import Budget, SmallNumbers, Witnesses
from momkd_fl.config.site import Egress
from momkd_fl.errors import UserError
from momkd_fl.federation.anchor import Anchor, Signed, payload_digest, read_receipt, receipt
from momkd_fl.federation.books import Books
from momkd_fl.federation.challenges import Answer, Challenge, Relay, read_asked
from momkd_fl.federation.client import make_client_app
from momkd_fl.federation.contract import contract_for
from momkd_fl.federation.coordinator import Coordinator, Outcome
from momkd_fl.federation.egress import Gate
from momkd_fl.federation.messages import ANCHOR, TRAIN, Hello, Join, Parcel, Train, ask
from momkd_fl.federation.simulate import COORDINATOR
from momkd_fl.federation.watch import unwatched
from momkd_fl.privacy.odometer import Head
from momkd_fl.security import ledger
from momkd_fl.security.ledger import LedgerHead
from momkd_fl.security.signing import create_signing_key

pytestmark = pytest.mark.usefixtures("task")
SITES = ("ash", "birch", "cedar")
OPEN = SmallNumbers(minimum_per_class=1, minimum_per_slot=1, scores="exact")
BARE = {"source": "random", "slots": 2, "genomics": False}
PRIVATE = {"memory": "local", "epsilon": 8.0, "releases": 1, "release_every": 1, "site_patients": 500}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"memory": BARE},
    "robust": {"memory": BARE, "aggregation": {"kind": "robust"}},
    "secagg": {"memory": BARE, "aggregation": {"kind": "secagg"}},
    "private": {
        "memory": {"slots": 1, "assignment": "hard", "anchor_iterations": 2, "anchor_dim": 8},
        "training": {"patients_per_step": 8, "precision": "fp32", "standardise": "none"},
        "privacy": PRIVATE,
    },
}
Tamper = Callable[[str, int, str, dict[str, Any]], dict[str, Any] | None]
"""(kind, round, site, what goes beside a question): what the coordinator makes of it; None: the question is lost."""


class Desk:
    """One site's key and books, which can be copied and put back."""

    def __init__(self, folder: Path, site: str) -> None:
        names = ("policy", "signing_key", "ledger", "odometer", "publications")
        self.folder, self.site = folder, site
        self.where = Egress.model_validate({name: folder / name for name in names})
        self.key = create_signing_key(folder.with_name(f"{site}-key"), site)
        Books.create(self.where, self.key, site, Budget(epsilon=50.0))
        self.books = Books.open(self.where, self.key, Budget(epsilon=50.0))

    def copied(self) -> Path:
        copy = self.folder.with_name(f"{self.site}-backup")
        shutil.copytree(self.folder, copy)
        return copy

    def put_back(self, copy: Path) -> None:
        self.books.close()
        shutil.rmtree(self.folder)
        shutil.copytree(copy, self.folder)
        self.books = Books.open(self.where, self.key, Budget(epsilon=50.0))

    def count(self, kind: str) -> int:
        entries = ledger.verify(self.where.ledger, self.key.public_key()).entries
        return sum(entry.kind in (kind, f"mask-{kind}") for entry in entries)


class Party:
    """Three hospitals with books, and a coordinator that may change what goes beside its questions."""

    def __init__(self, in_process: Any, root: Path) -> None:
        self.in_process, self.root, self.runs = in_process, root, 0
        self.desks = {site: Desk(root / "books" / site, site) for site in SITES}
        self.pinned = {site: desk.key.public_key().public_bytes_raw().hex() for site, desk in self.desks.items()}

    def run(self, must_answer: int, tamper: Tamper = lambda kind, number, site, beside: beside, *,
            rounds: int = 3, present: Any = None, stop: threading.Event | None = None, deaf: bool = False,
            **sections: Any) -> Outcome | None:  # fmt: skip
        """A run in a new folder of the coordinator's: it holds no heads of earlier ones.

        ``deaf``: nor does it take back what peers hold of them.
        """
        self.runs += 1
        made = self.in_process(
            dict.fromkeys(SITES, "train"), self.root / f"run{self.runs}",
            rounds={"count": rounds, "quorum": 2, "deadline_s": 5.0, "gather_s": 0.01}, **sections,
        )  # fmt: skip
        grid = made.grid()
        self.heard = made.said
        for site, participant in made.participants.items():
            app = make_client_app(participant, participant.say, gate=self.gate(site, must_answer), keys=made.keys[site])
            context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
            grid._apps[site] = (tampered(app, site, tamper, deaf), context)
        grid.answers = lambda kind, number, site: tamper(kind, number, site, {}) is not None
        grid.present = present or grid.present
        watch = unwatched(made.config)
        keys = made.keys[COORDINATOR]
        return Coordinator(made.config, grid, watch, stop or threading.Event(), lambda: {}, keys=keys).run()

    def gate(self, site: str, must_answer: int) -> Gate:
        peers = {name: key for name, key in self.pinned.items() if name != site}
        policy = contract_for(
            site, "train", coordinator_sha256="0" * 64, runs=["*"], tasks=["PR"], expires=date(2999, 1, 1),
            small_numbers=OPEN, budget=Budget(epsilon=50.0),
        ).model_copy(update={"witnesses": Witnesses(must_answer=must_answer, peers=peers)})  # fmt: skip
        return Gate(policy, self.desks[site].books)


def tampered(app: Any, site: str, tamper: Tamper, deaf: bool) -> Any:
    def answer(request: Message, context: Context) -> Message:
        beside = request.content.get(ANCHOR)
        if beside is not None:
            kind, number = str(request.content["envelope"]["kind"]), int(request.metadata.group_id)
            request.content[ANCHOR] = ConfigRecord(tamper(kind, number, site, dict(beside)) or {})
        reply: Message = app(request, context)
        if deaf and reply.has_content():
            reply.content[ANCHOR] = ConfigRecord({**reply.content[ANCHOR], "peers": "[]"})
        return reply

    return answer


@pytest.fixture
def party(in_process: Any, tmp_path: Path) -> Iterator[Party]:
    made = Party(in_process, tmp_path)
    yield made
    for desk in made.desks.values():
        desk.books.close()


def bare(beside: dict[str, Any], *left: str) -> dict[str, Any]:
    """A question that leaves out everything but ``left``."""
    return {"peers": "[]", **{name: beside[name] for name in left if name in beside}}


# Honest runs


@pytest.mark.parametrize("kind", RUNS)
def test_an_honest_run_goes_on_and_takes_no_round_trip_more(party: Party, kind: str) -> None:
    outcome = party.run(2, **RUNS[kind])
    assert outcome is not None
    assert {state for record in outcome.state.history for state in record.states.values()} == {"trained"}
    for desk in party.desks.values():
        assert [desk.count(each) for each in ("hello", "plan", "train", "finish")] == [1, 1, 3, 1]


def test_a_site_that_comes_late_waits_one_round(party: Party) -> None:
    outcome = party.run(1, memory=BARE, present=lambda number, site: site != "cedar" or number >= 2)
    assert outcome is not None
    states = [record.states["cedar"] for record in outcome.state.history]
    assert states == ["missing", "refused:peers-not-heard", "trained"]


def test_a_lost_round_is_made_up_for(party: Party) -> None:
    """In round 2 nothing reaches cedar, so that in round 3 nobody knows what it holds: all are greeted, and go on."""

    def lose(kind: str, number: int, site: str, beside: dict[str, Any]) -> dict[str, Any] | None:
        return None if (number, site) == (2, "cedar") else beside

    outcome = party.run(2, lose, memory=BARE)
    assert outcome is not None
    assert outcome.state.round == 3
    assert party.desks["ash"].count("hello") == 2


# A coordinator that leaves out


def rolled_back(party: Party) -> int:
    """Ash's disk is as it was before the first run; what it has spent by then."""
    copy = party.desks["ash"].copied()
    assert party.run(2, rounds=1, **RUNS["private"]) is not None
    spent = party.desks["ash"].books.odometer.head.lines
    party.desks["ash"].put_back(copy)
    return spent


def withhold(*left: str) -> Tamper:
    return lambda kind, number, site, beside: bare(beside, *left) if site == "ash" else beside


def test_without_the_line_old_books_spend_again(party: Party) -> None:
    """The control: the limit that this closes."""
    spent = rolled_back(party)
    assert party.run(0, lambda *asked: bare(asked[-1]), rounds=1, deaf=True, **RUNS["private"]) is not None
    assert party.desks["ash"].books.odometer.head.lines == spent


@pytest.mark.parametrize("left", [(), ("challenges",)], ids=["nothing-passed", "answers-left-out"])
def test_who_leaves_answers_out_gets_nothing(party: Party, left: tuple[str, ...]) -> None:
    rolled_back(party)
    before = party.desks["ash"].books.odometer.head
    with pytest.raises(UserError):
        party.run(2, withhold(*left), rounds=1, deaf=True, **RUNS["private"])
    assert party.desks["ash"].books.odometer.head == before
    assert any("witnesses.must_answer" in said for said in party.heard["ash"])


def test_who_passes_answers_on_is_told_by_them(party: Party) -> None:
    rolled_back(party)
    before = party.desks["ash"].books.odometer.head
    with pytest.raises(UserError, match="odometer-rolled-back"):
        party.run(2, withhold("challenges", "answers"), rounds=1, deaf=True, **RUNS["private"])
    assert party.desks["ash"].books.odometer.head == before


def test_answers_of_an_earlier_run_do_not_serve_again(party: Party) -> None:
    kept: dict[str, str] = {}

    def record(kind: str, number: int, site: str, beside: dict[str, Any]) -> dict[str, Any]:
        if site == "ash" and "answers" in beside:
            kept["answers"] = beside["answers"]
        return beside

    assert party.run(2, record, rounds=1, memory=BARE) is not None
    assert kept
    with pytest.raises(UserError):
        party.run(2, lambda kind, number, site, beside: {**beside, **kept} if site == "ash" else beside,
                  rounds=1, **RUNS["private"])  # fmt: skip
    assert any("witnesses.must_answer" in said for said in party.heard["ash"])


def test_who_stops_passing_heads_on_gets_two_rounds_at_most(party: Party) -> None:
    """From round 1 on peers see no new heads, so that books of round 1 could be put back later; the sites stop."""
    stop, asked = threading.Event(), []

    def tamper(kind: str, number: int, site: str, beside: dict[str, Any]) -> dict[str, Any]:
        asked.append(kind)
        if asked.count("train") > 4 * len(SITES):
            stop.set()
        return bare(beside, "challenges", "answers") if number >= 1 or asked.count("train") else beside

    party.run(2, tamper, rounds=6, memory=BARE, stop=stop)
    assert {site: desk.count("train") for site, desk in party.desks.items()} == dict.fromkeys(SITES, 2)


# What is signed, and who counts


ASH, BIRCH, CEDAR = (Ed25519PrivateKey.generate() for _ in range(3))


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def heads(key: Ed25519PrivateKey, lines: int) -> Signed:
    content = ask(TRAIN, Train(proximal_mu=0.0, learning_rate_share=1.0), 7, run="trial", round=1, arrays={}).content
    anchor = Anchor(LedgerHead(lines, f"{lines:064x}"), Head(1, f"{1:064x}"))
    content[ANCHOR] = receipt(key, payload_digest(content), anchor)
    found = read_receipt(content, "any")
    assert found is not None
    return found[0]


TRAINING: Parcel[Any] = Parcel("train", "trial-1", 1, Train(proximal_mu=0.0, learning_rate_share=1.0), {})


class Asker:
    """Ash, in run trial-1, with ten lines in its ledger when it was greeted."""

    def __init__(self, must_answer: int = 1) -> None:
        peers = {"birch": raw(BIRCH).hex(), "cedar": raw(CEDAR).hex()}
        self.challenge = Challenge(Witnesses(must_answer=must_answer, peers=peers), raw(ASH))
        self.challenge.greeted("trial-1", 10)

    @property
    def nonce(self) -> str:
        return self.challenge.fields(ASH, RecordDict(), {})["challenge"]

    def hear(self, *answers: Answer) -> None:
        for each in self.challenge.own(answers):
            self.challenge.heard(each)

    def waits(self, parcel: Parcel[Any] = TRAINING) -> bool:
        try:
            self.challenge.must_be_heard(parcel)
        except UserError as mistake:
            return mistake.code == "peers-not-heard"
        return False


@pytest.mark.parametrize(
    ("signer", "about", "lines", "nonce", "waits"),
    [
        (BIRCH, ASH, 10, None, False),
        (BIRCH, ASH, 12, None, False),
        (BIRCH, ASH, 9, None, True),
        (BIRCH, ASH, 10, "0" * 32, True),
        (BIRCH, CEDAR, 10, None, True),
        (ASH, ASH, 10, None, True),
        (Ed25519PrivateKey.generate(), ASH, 10, None, True),
    ],
    ids=["control", "newer", "behind", "another-challenge", "of-another", "its-own-word", "not-in-the-contract"],
)
def test_what_counts_as_an_answer(
    signer: Ed25519PrivateKey, about: Ed25519PrivateKey, lines: int, nonce: str | None, waits: bool
) -> None:
    asker = Asker()
    asker.hear(Answer.sign(signer, nonce or asker.nonce, heads(about, lines)))
    assert asker.waits() is waits


def test_one_site_s_word_counts_once() -> None:
    asker = Asker(must_answer=2)
    asker.hear(*(Answer.sign(BIRCH, asker.nonce, heads(ASH, lines)) for lines in (10, 11, 12)))
    assert asker.waits()
    asker.hear(Answer.sign(CEDAR, asker.nonce, heads(ASH, 10)))
    assert not asker.waits()


def test_what_was_seen_of_the_round_before_the_last_is_asked_for_with_the_next() -> None:
    asker = Asker()
    asker.hear(Answer.sign(BIRCH, asker.nonce, heads(ASH, 10)))
    asker.challenge.trained(12)
    assert not asker.waits()
    asker.challenge.trained(13)
    assert asker.waits()
    asker.hear(Answer.sign(BIRCH, asker.nonce, heads(ASH, 12)))
    assert not asker.waits()


def test_another_run_asks_anew_and_the_same_one_greeted_again_does_not() -> None:
    asker = Asker()
    first = asker.nonce
    asker.hear(Answer.sign(BIRCH, first, heads(ASH, 10)))
    asker.challenge.greeted("trial-1", 14)
    assert (asker.nonce, asker.waits()) == (first, False)
    asker.challenge.greeted("trial-2", 14)
    assert asker.nonce != first
    assert asker.waits(Parcel("train", "trial-2", 1, TRAINING.body, {}))
    assert asker.waits(), "nor is the run that was left gone on with"


def test_only_what_may_cost_budget_waits() -> None:
    asker = Asker()
    join = {"body": "{}", "site_weights": {}}
    waits = {
        kind: asker.waits(Parcel(kind, "trial-1", 1, body, {}))
        for kind, body in {
            "hello": Hello(federation={}), "select": None, "plan": None, "initialise": None, "train": TRAINING.body,
            "evaluate": None, "join": Join(question="train", **join), "mask": None, "finish": None,
        }.items()
    }  # fmt: skip
    assert {kind for kind, does in waits.items() if does} == {"initialise", "train", "evaluate", "join"}
    assert not asker.waits(Parcel("join", "trial-1", 1, Join(question="select", **join), {}))


@pytest.mark.parametrize("field", ["nonce", "held", "key", "signature"])
def test_a_changed_answer_is_not_read(field: str) -> None:
    mine = Answer.sign(BIRCH, "ab" * 16, heads(ASH, 5)).plain()
    other = Answer.sign(CEDAR, "cd" * 16, heads(ASH, 6)).plain()
    assert Answer.from_plain(mine).plain() == mine
    with pytest.raises(ValueError):
        Answer.from_plain({**mine, field: other[field]})


def beside(**fields: str) -> RecordDict:
    return RecordDict({ANCHOR: ConfigRecord(dict(fields))})


def test_the_coordinator_drops_a_message_with_another_site_s_answer() -> None:
    relay, answer = Relay(), Answer.sign(BIRCH, "ab" * 16, heads(ASH, 5))
    relay.take("ash", raw(ASH), beside(challenge="ab" * 16))
    text = json.dumps([answer.plain()])
    for key, told in ((CEDAR, text), (BIRCH, "[7]"), (BIRCH, "{")):
        with pytest.raises(UserError) as caught:
            relay.take("birch", raw(key), beside(answers=told))
        assert caught.value.code == "receipt-invalid"
    relay.take("birch", raw(BIRCH), beside(answers=text))
    assert read_asked(beside(**relay.fields("ash")))[1] == (answer,)
    assert read_asked(beside(**relay.fields("birch")))[0] == {raw(ASH): "ab" * 16}
    relay.take("ash", raw(ASH), beside(challenge="cd" * 16))
    assert "answers" not in relay.fields("ash"), "an answer to what is no longer asked"


@pytest.mark.parametrize(
    "fields",
    [{"challenges": "[]"}, {"challenges": '{"zz": "' + "a" * 32 + '"}'}, {"challenges": '{"aa": 7}'},
     {"challenges": '{"aa": "b"}'}, {"answers": "7"}, {"answers": '["a"]'}, {"answers": "[" + " " * 400_001}],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(UserError) as caught:
        read_asked(beside(**fields))
    assert caught.value.code == "message-schema"
