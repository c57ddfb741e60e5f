"""Old books put back are found out by what the coordinator holds, and where it holds nothing by what peers hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message

from momkd_fl.config.policy import Budget, SmallNumbers
from momkd_fl.config.site import Egress
from momkd_fl.errors import UserError
from momkd_fl.federation.anchor import PEERS_MAX, Anchor, Signed, payload_digest, read_receipt, receipt
from momkd_fl.federation.anchors import AnchoringGrid, Anchors
from momkd_fl.federation.books import PEERS_FILE, Books
from momkd_fl.federation.contract import contract_for
from momkd_fl.federation.egress import Gate
from momkd_fl.federation.messages import TRAIN, Parcel, Train, TrainReply, ask, refuse, site_code
from momkd_fl.federation.witnesses import Witnesses
from momkd_fl.privacy.accountant import GaussianReleases
from momkd_fl.privacy.odometer import Head
from momkd_fl.security.ledger import LedgerHead
from momkd_fl.security.signing import create_signing_key

pytestmark = pytest.mark.usefixtures("task")
NODES = {"ash": 7, "birch": 8}
BODY = Train(proximal_mu=0.0, learning_rate_share=1.0)


class Site:
    """A gate with real books, which can be copied and put back."""

    def __init__(self, folder: Path, name: str) -> None:
        names = ("policy", "signing_key", "ledger", "odometer", "publications")
        self.folder, self.where = (
            folder / "books",
            Egress.model_validate({each: folder / "books" / each for each in names}),
        )
        self.key = create_signing_key(folder / "key", name)
        self.policy = contract_for(
            name, "train", coordinator_sha256="0" * 64, runs=["*"], tasks=["*"], expires=date(2999, 1, 1),
            small_numbers=SmallNumbers(minimum_per_class=1, minimum_per_slot=1, scores="exact"),
            budget=Budget(epsilon=50.0),
        )  # fmt: skip
        Books.create(self.where, self.key, name, self.policy.budget)
        self.open()

    def open(self) -> None:
        self.books = Books.open(self.where, self.key, self.policy.budget)
        self.gate = Gate(self.policy, self.books)

    def back_up(self) -> Path:
        copy = self.folder.with_name("backup")
        shutil.copytree(self.folder, copy)
        return copy

    def put_back(self, copy: Path) -> None:
        self.books.close()
        shutil.rmtree(self.folder)
        shutil.copytree(copy, self.folder)
        self.open()

    def answer(self, request: Message, number: int) -> Message:
        try:
            self.gate.admit(request)
        except UserError as mistake:
            return refuse(request, mistake.code)
        parcel: Parcel[Any] = Parcel("train", "trial", number, BODY, {})
        said = TrainReply(seconds={}, losses={}, loss_sum=[0.0, 0.0], monitors={})
        update = {"update": {"histology": np.full(3, number, np.float32)}}
        return self.gate.send(TRAIN, request, parcel, said, update, task="PR", charges=(GaussianReleases(20.0),))


class Party:
    """A coordinator's anchors and two sites, who answer in the order asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        self.sites_by_name = {name: Site(folder / name, name) for name in NODES}
        self.sites = {node: name for name, node in NODES.items()}
        self.coordinator("first")

    def coordinator(self, name: str) -> None:
        """Another folder: the coordinator that begins there holds nothing."""
        self.anchors = Anchors(self.folder / name / "anchors.json")
        self.grid = AnchoringGrid(self, self.anchors)
        (self.folder / name).mkdir(exist_ok=True)

    def node_of(self, site: str) -> int:
        return NODES[site]

    def online(self) -> set[str]:
        return set(NODES)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            yield self.sites_by_name[self.sites[message.metadata.dst_node_id]].answer(message, self.number)

    def round(self, *sites: str) -> dict[str, str]:
        """Ask the sites once, one after the other; each one's refusal, or ''."""
        self.number += 1
        asked = [ask(TRAIN, BODY, NODES[site], run="trial", round=self.number, arrays={}) for site in sites or NODES]
        for message in asked:
            message.metadata.__dict__["_message_id"] = f"question-{self.number}-{message.metadata.dst_node_id}"
        replies = self.grid.send_and_receive(asked)
        return {self.sites[one.metadata.src_node_id]: site_code(one) if one.has_error() else "" for one in replies}


@pytest.fixture
def party(tmp_path: Path) -> Iterator[Party]:
    made = Party(tmp_path)
    yield made
    for site in made.sites_by_name.values():
        site.books.close()


FINE = {"ash": "", "birch": ""}


def rolled_back(party: Party) -> Site:
    """Three rounds, of which ash's books know one."""
    ash = party.sites_by_name["ash"]
    assert party.round() == FINE
    copy = ash.back_up()
    assert [party.round(), party.round()] == [FINE, FINE]
    ash.put_back(copy)
    return ash


def test_an_honest_coordinator_s_heads_find_it_out(party: Party) -> None:
    rolled_back(party)
    assert party.round() == {"ash": "odometer-rolled-back", "birch": ""}


def test_a_coordinator_that_has_lost_its_state_hears_it_from_a_peer(party: Party) -> None:
    ash = rolled_back(party)
    party.coordinator("second")
    assert party.round("birch") == {"birch": ""}
    assert party.round("ash") == {"ash": "odometer-rolled-back"}
    assert ash.books.odometer.head.lines == 2, "nothing was spent again"


def test_a_peer_that_answers_first_has_the_reply_of_the_same_question_dropped(party: Party) -> None:
    rolled_back(party)
    party.coordinator("second")
    assert party.round("birch", "ash") == {"birch": "", "ash": "receipt-older"}


def test_a_site_that_answered_before_its_peer_is_found_out_with_the_next_question(party: Party) -> None:
    rolled_back(party)
    party.coordinator("second")
    for _ in range(2):
        assert party.round("ash") == {"ash": ""}
    assert party.round("birch") == {"birch": ""}
    assert party.round("ash") == {"ash": "odometer-rolled-back"}


def test_a_site_that_has_gone_past_where_it_was_is_found_out_too(party: Party) -> None:
    rolled_back(party)
    party.coordinator("second")
    for _ in range(9):
        assert party.round("ash") == {"ash": ""}
    party.round("birch")
    assert party.round("ash") == {"ash": "odometer-rolled-back"}


def test_without_a_peer_that_holds_anything_it_is_not_found_out(party: Party) -> None:
    """The control: it is what peers hold that tells."""
    rolled_back(party)
    party.sites_by_name["birch"].books.witnesses._held.clear()
    party.coordinator("second")
    assert [party.round(), party.round()] == [FINE, FINE]


def test_honest_sites_go_on_with_a_coordinator_that_has_lost_its_state(party: Party) -> None:
    assert [party.round(), party.round()] == [FINE, FINE]
    party.coordinator("second")
    assert [party.round("ash"), party.round("birch"), party.round()] == [{"ash": ""}, {"birch": ""}, FINE]


def test_what_peers_hold_outlives_their_processes(party: Party) -> None:
    rolled_back(party)
    birch = party.sites_by_name["birch"]
    birch.books.close()
    birch.open()
    party.coordinator("second")
    party.round("birch")
    assert party.round("ash") == {"ash": "odometer-rolled-back"}


def test_a_peer_refuses_to_go_on_once_two_lines_contradict_each_other(party: Party) -> None:
    """Coordinator and site together: the coordinator tells the site nothing, and passes on what it signs."""
    ash, birch = rolled_back(party), party.sites_by_name["birch"]
    party.coordinator("second")
    birch.books.witnesses, kept = Witnesses(party.folder / "none.json"), birch.books.witnesses  # is not asked
    while party.round("ash") == {"ash": ""} and ash.books.ledger.head.lines < kept.held[-1].anchor.ledger.lines:
        pass
    birch.books.witnesses = kept
    assert party.round("birch") == {"birch": "peer-forked"}


# The file


def signed(lines: int, debits: int = 1, key: Ed25519PrivateKey | None = None, salt: int = 0) -> Signed:
    anchor = Anchor(LedgerHead(lines, f"{lines + salt:064x}"), Head(debits, f"{debits + salt:064x}"))
    return from_receipt(key or KEY, anchor)


def from_receipt(key: Ed25519PrivateKey, anchor: Anchor) -> Signed:
    content = ask(TRAIN, BODY, 7, run="trial", round=1, arrays={}).content
    content["anchor"] = receipt(key, payload_digest(content), anchor)
    found = read_receipt(content, "ash")
    assert found is not None
    return found[0]


KEY = Ed25519PrivateKey.generate()


def test_the_newest_is_kept_and_what_is_older_changes_nothing(tmp_path: Path) -> None:
    witnesses = Witnesses(tmp_path / PEERS_FILE)
    witnesses.hear([signed(5, 3)])
    witnesses.hear([signed(4, 3)])
    witnesses.hear([signed(5, 3)])
    assert Witnesses(tmp_path / PEERS_FILE).held == (signed(5, 3),)


@pytest.mark.parametrize(
    "told",
    [lambda: signed(5, 3, salt=1), lambda: signed(6, 2), lambda: signed(4, 4), lambda: signed(9, 3, salt=1)],
    ids=["another-line", "odometer-shorter", "odometer-longer", "another-debit"],
)
def test_a_contradiction_is_refused_and_not_kept(tmp_path: Path, told: Callable[[], Signed]) -> None:
    witnesses = Witnesses(tmp_path / PEERS_FILE)
    witnesses.hear([signed(5, 3)])
    with pytest.raises(UserError) as caught:
        witnesses.hear([told()])
    assert caught.value.code == "peer-forked"
    assert witnesses.held == (signed(5, 3),)


def test_a_few_older_ones_are_kept_to_be_given_back(tmp_path: Path) -> None:
    witnesses = Witnesses(tmp_path / PEERS_FILE)
    for lines in range(2, 9):
        witnesses.hear([signed(lines, 1)])
    assert Witnesses(tmp_path / PEERS_FILE).held == (signed(6, 1), signed(7, 1), signed(8, 1))


def test_made_up_keys_fill_no_disk(tmp_path: Path) -> None:
    witnesses = Witnesses(tmp_path / PEERS_FILE)
    witnesses.hear([signed(5, 3)])
    witnesses.hear([signed(5, 3, Ed25519PrivateKey.generate()) for _ in range(PEERS_MAX)])
    assert len(witnesses.held) == PEERS_MAX
    assert witnesses.held[0] == signed(5, 3)


@pytest.mark.parametrize("field", ["heads", "key", "digest", "signature"])
def test_what_was_changed_is_not_believed(field: str) -> None:
    raw, other = signed(5, 3).plain(), signed(6, 4, Ed25519PrivateKey.generate()).plain()
    assert Signed.from_plain(raw) == signed(5, 3)
    with pytest.raises(ValueError):
        Signed.from_plain({**raw, field: other[field] if field != "digest" else "0" * 64})


def test_a_file_that_cannot_be_read_stops_the_site(tmp_path: Path) -> None:
    (tmp_path / PEERS_FILE).write_text("{")
    with pytest.raises(UserError) as caught:
        Witnesses(tmp_path / PEERS_FILE)
    assert caught.value.code == "peers-unreadable"
