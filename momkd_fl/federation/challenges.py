"""A site asks, for each run anew, how far others have seen its books, and works only once enough of them answered.

Heads that a coordinator passes on (anchor.py) it can also leave out, and a site whose disk was restored cannot know
that anything is missing. So the site puts a fresh number beside its replies; every other site signs that number
together with the newest heads that it holds of the asker. What the coordinator leaves out is then an answer that is
lacking, an old answer has another number, and two majorities have a site in common. All of it travels beside existing
messages.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import RecordDict

from momkd_fl.config.policy import Witnesses
from momkd_fl.errors import UserError
from momkd_fl.federation.anchor import PEERS_MAX, Signed
from momkd_fl.federation.messages import ANCHOR, EVALUATE, INITIALISE, JOIN, SELECT, TRAIN, Join, Parcel

_CONTEXT: Final = b"momkd-answer-1\n"
_NONCE_BYTES: Final = 16
_ENTRY_CHARACTERS: Final = 2000
_CHALLENGE, _CHALLENGES, _ANSWERS = "challenge", "challenges", "answers"
_WAIT: Final = frozenset({INITIALISE.name, TRAIN.name, EVALUATE.name, JOIN.name})
"""What a site does not begin unheard. Genes are chosen before peers can have answered, and cost no budget."""


@dataclass(frozen=True)
class Answer:
    """What one site holds of another's books, signed for one challenge.

    Attributes
    ----------
    nonce : of the challenge, hexadecimal
    held : newest heads held, with the asker's own signature
    key : raw Ed25519 public key of the site that answers
    """

    nonce: str
    held: Signed
    key: bytes
    signature: bytes

    @classmethod
    def sign(cls, key: Ed25519PrivateKey, nonce: str, held: Signed) -> Answer:
        """The answer of the site with that key."""
        return cls(nonce, held, key.public_key().public_bytes_raw(), key.sign(_signed(nonce, held)))

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "nonce": self.nonce,
            "held": self.held.plain(),
            "key": self.key.hex(),
            "signature": self.signature.hex(),
        }

    @classmethod
    def from_plain(cls, raw: Any) -> Answer:
        """The inverse of :meth:`plain`; raises ValueError, KeyError or TypeError, also where a signature is bad."""
        found = cls(
            str(raw["nonce"]),
            Signed.from_plain(raw["held"]),
            bytes.fromhex(raw["key"]),
            bytes.fromhex(raw["signature"]),
        )
        try:
            Ed25519PublicKey.from_public_bytes(found.key).verify(found.signature, _signed(found.nonce, found.held))
        except InvalidSignature:
            raise ValueError("the signature does not hold") from None
        return found


class Challenge:
    """The site's side: the number of its run at hand, and how far whom has seen its books since.

    Parameters
    ----------
    rule : Witnesses
        Who counts, and how many of them must answer.
    own : bytes
        The site's raw public key; what it says of itself does not count.
    """

    def __init__(self, rule: Witnesses, own: bytes) -> None:
        self._least, self._own = rule.must_answer, own
        self._counted = {bytes.fromhex(key) for key in rule.peers.values()} - {own}
        self._run = self._nonce = ""
        self._seen: dict[bytes, int] = {}
        self._wanted = self._next = 0

    def greeted(self, run: str, lines: int) -> None:
        """A run begins, with so many lines in the ledger; for the same run greeted again nothing changes."""
        if self._least and run != self._run:
            self._run, self._nonce, self._seen = run, secrets.token_hex(_NONCE_BYTES), {}
            self._wanted = self._next = lines

    def trained(self, lines: int) -> None:
        """A round's answer is in the ledger: with the next but one the others must have seen it."""
        self._wanted, self._next = self._next, lines

    def own(self, answers: Iterable[Answer]) -> Iterator[Answer]:
        """Those of counted sites to this challenge."""
        for each in answers:
            if each.nonce == self._nonce and each.held.key == self._own and each.key in self._counted:
                yield each

    def heard(self, told: Answer) -> None:
        """Count one of :meth:`own` whose heads the site's books continue."""
        self._seen[told.key] = max(told.held.anchor.ledger.lines, self._seen.get(told.key, 0))

    def must_be_heard(self, parcel: Parcel[Any]) -> None:
        """Refuse to begin what may cost budget before enough sites have said how far the books are.

        Raises
        ------
        UserError
            ``peers-not-heard``.
        """
        body = parcel.body
        if not self._least or parcel.kind not in _WAIT or (isinstance(body, Join) and body.question == SELECT.name):
            return
        known = sum(lines >= self._wanted for lines in self._seen.values()) if parcel.run == self._run else 0
        if known < self._least:
            raise UserError(
                "peers-not-heard",
                f"For run {parcel.run} {known} of the sites in the contract have signed that they hold the newest "
                f"heads of this site's books; it asks for {self._least} (witnesses.must_answer). Nothing was done. "
                "Some may be away; if they are not, the coordinator withholds what they say: ask them.",
            )

    def fields(self, key: Ed25519PrivateKey, request: RecordDict, newest: Mapping[bytes, Signed]) -> dict[str, str]:
        """What goes beside a reply: this site's challenge, and its answers to those beside the request."""
        asked, _ = read_asked(request)
        answers = [Answer.sign(key, nonce, newest[about]) for about, nonce in asked.items() if about in newest]
        own = {_CHALLENGE: self._nonce} if self._nonce else {}
        return own | ({_ANSWERS: _text(answers)} if answers else {})


class Relay:
    """The coordinator's side: who has asked what, and what came back. In memory: each reply of a site asks again."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[bytes, str]] = {}
        self._answers: dict[str, dict[bytes, Answer]] = {}

    def take(self, site: str, key: bytes, content: RecordDict) -> None:
        """Keep what is beside a reply whose receipt ``key`` has signed.

        Raises
        ------
        UserError
            ``receipt-invalid`` where an answer is not the site's own.
        """
        record = content[ANCHOR]
        try:
            answers = _answers(str(record.get(_ANSWERS, "[]")))
            if any(each.key != key for each in answers):
                raise ValueError
        except (KeyError, ValueError, TypeError, AttributeError):
            raise UserError(
                "receipt-invalid", f"site {site}: its answer to another site does not hold; the message was dropped."
            ) from None
        nonce = str(record.get(_CHALLENGE, ""))
        if nonce and self._asked.get(site) != (key, nonce):
            self._asked[site], self._answers[site] = (key, nonce), {}
        for each in answers:
            for asker, asked in self._asked.items():
                if asked == (each.held.key, each.nonce):
                    self._answers[asker][each.key] = each

    def fields(self, site: str) -> dict[str, str]:
        """What goes beside a question: the others' challenges, and answers to the site's own."""
        others = {key.hex(): nonce for asker, (key, nonce) in self._asked.items() if asker != site}
        answers = self._answers.get(site, {}).values()
        return ({_CHALLENGES: json.dumps(others)} if others else {}) | ({_ANSWERS: _text(answers)} if answers else {})


def read_asked(content: RecordDict) -> tuple[dict[bytes, str], tuple[Answer, ...]]:
    """Other sites' challenges by their keys, and answers to this site's, beside a question.

    Raises
    ------
    UserError
        ``message-schema``.
    """
    record = content.get(ANCHOR, {})
    try:
        asked = json.loads(str(record.get(_CHALLENGES, "{}")))
        if len(asked) > PEERS_MAX or not all(len(nonce) == 2 * _NONCE_BYTES for nonce in asked.values()):
            raise ValueError
        challenges = {bytes.fromhex(key): str(nonce) for key, nonce in asked.items()}
        return challenges, _answers(str(record.get(_ANSWERS, "[]")))
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError("message-schema", "the coordinator: what sites ask each other is not readable.") from None


def _signed(nonce: str, held: Signed) -> bytes:
    return _CONTEXT + json.dumps([nonce, held.plain()], sort_keys=True).encode()


def _text(answers: Iterable[Answer]) -> str:
    return json.dumps([each.plain() for each in answers])


def _answers(text: str) -> tuple[Answer, ...]:
    if len(text) > PEERS_MAX * _ENTRY_CHARACTERS:
        raise ValueError("too long")
    return tuple(Answer.from_plain(each) for each in json.loads(text))
