"""The coordinator's memory of the sites' books: what it keeps, what it drops, what it sends back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message

from momkd_fl.errors import UserError
from momkd_fl.federation.anchor import Anchor, payload_digest, read_heads, receipt
from momkd_fl.federation.anchors import AnchoringGrid, Anchors
from momkd_fl.federation.messages import ANCHOR, TRAIN, Train, ask, open_request, site_code
from momkd_fl.privacy.odometer import Head
from momkd_fl.security.ledger import LedgerHead

pytestmark = pytest.mark.usefixtures("task")
KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


def heads(lines: int, debits: int = 1) -> Anchor:
    return Anchor(LedgerHead(lines, f"{lines:064x}"), Head(debits, f"{debits:064x}"))


def question(node: int = 7) -> Message:
    asked = ask(TRAIN, Train(proximal_mu=0.0, learning_rate_share=1.0), node, run="r", round=1, arrays={
        "weights": {"histology": np.ones(5, np.float32)}})  # fmt: skip
    asked.metadata.__dict__["_message_id"] = f"question-{node}"
    return asked


def signed(anchor: Anchor | None, key: Ed25519PrivateKey = KEY, node: int = 7) -> Message:
    """A reply; its content does not matter here."""
    asked = question(node)
    reply = Message(asked.content, reply_to=asked)
    if anchor is not None:
        reply.content[ANCHOR] = receipt(key, payload_digest(reply.content), anchor)
    return reply


def refused(anchors: Anchors, reply: Message) -> str:
    with pytest.raises(UserError, match="ash") as caught:
        anchors.take("ash", reply)
    return caught.value.code


def test_the_newest_heads_are_kept_over_restarts(tmp_path: Path) -> None:
    anchors = Anchors(tmp_path / "anchors.json")
    assert anchors.of("ash") is None
    anchors.take("ash", signed(heads(2)))
    anchors.take("ash", signed(heads(5, 3)))
    assert Anchors(tmp_path / "anchors.json").of("ash") == heads(5, 3)


@pytest.mark.parametrize(
    ("anchor", "key", "code"),
    [
        (heads(4, 3), KEY, "receipt-older"),
        (heads(5, 3), KEY, "receipt-older"),  # the same message again is no new line
        (heads(6, 2), KEY, "receipt-older"),
        (heads(6, 3), OTHER, "receipt-key"),
        (None, KEY, "receipt-missing"),
    ],
)
def test_a_site_that_goes_back_is_refused(
    tmp_path: Path, anchor: Anchor | None, key: Ed25519PrivateKey, code: str
) -> None:
    reply = signed(anchor, key)
    anchors = Anchors(tmp_path / "anchors.json")
    anchors.take("ash", signed(heads(5, 3)))
    assert refused(anchors, reply) == code
    assert anchors.of("ash") == heads(5, 3)
    anchors.take("ash", signed(heads(6, 3)))


def test_a_receipt_of_another_message_does_not_hold(tmp_path: Path) -> None:
    reply, other = signed(heads(2)), signed(heads(3))
    reply.content[ANCHOR] = other.content[ANCHOR]
    reply.content["weights"]["histology"].data = b"x" + reply.content["weights"]["histology"].data[1:]
    assert refused(Anchors(tmp_path / "anchors.json"), reply) == "receipt-invalid"


def test_a_file_that_cannot_be_read_stops_the_coordinator(tmp_path: Path) -> None:
    (tmp_path / "anchors.json").write_text("{")
    with pytest.raises(UserError) as caught:
        Anchors(tmp_path / "anchors.json")
    assert caught.value.code == "anchors-unreadable"


class Grid:
    """Two sites that answer with what they were told to."""

    def __init__(self, replies: dict[int, Message]) -> None:
        self.sites, self.replies, self.asked = {7: "ash", 8: "birch"}, replies, []  # type: ignore[var-annotated]

    def node_of(self, site: str) -> int:
        return {"ash": 7, "birch": 8}[site]

    def online(self) -> set[str]:
        return set(self.sites.values())

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        self.asked = list(messages)
        return [self.replies[message.metadata.dst_node_id] for message in self.asked]


def test_each_site_gets_its_own_heads_and_a_bad_receipt_is_an_error(tmp_path: Path) -> None:
    anchors = Anchors(tmp_path / "anchors.json")
    anchors.take("ash", signed(heads(5)))
    inner = Grid({7: signed(heads(6)), 8: signed(heads(2), node=8)})
    grid = AnchoringGrid(inner, anchors)
    first, second = list(grid.send_and_receive([question(7), question(8)]))
    assert not first.has_error()
    assert not second.has_error()
    assert [read_heads(asked.content)[0] for asked in inner.asked] == [heads(5), None]
    assert open_request(inner.asked[0], TRAIN).arrays["weights"]["histology"].tolist() == [1.0] * 5
    assert (anchors.of("ash"), anchors.of("birch")) == (heads(6), heads(2))
    bad, good = list(grid.send_and_receive([question(7), question(8)], timeout=1.0))
    assert site_code(bad) == "receipt-older"
    assert bad.metadata.src_node_id == 7
    assert site_code(good) == "receipt-older"
