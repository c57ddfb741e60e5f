"""The one door out of a site: contract, suppression, budget, ledger, signature, message.

Nothing else in the package turns what a site has computed into a message: no other module may import answering.py (an
import contract holds it, and a test reads the source for it). Each step
may stop it, with a sentence for the site and a code for the coordinator; what has no payload (refusals, heartbeats,
questions for work) needs no door, and a test holds those to their fields.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from flwr.app import ConfigRecord, Message

from momkd_fl.config.policy import ANY, Policy, PrivacyRequired, SmallNumbers
from momkd_fl.config.site import SiteConfig
from momkd_fl.errors import UserError
from momkd_fl.federation.anchor import payload_digest, read_heads, receipt
from momkd_fl.federation.answering import answer
from momkd_fl.federation.books import Books
from momkd_fl.federation.challenges import Challenge, read_asked
from momkd_fl.federation.contract import (
    Outgoing,
    contract_for,
    load_contract,
    refuse_outside,
    refuse_question,
    refuse_task,
)
from momkd_fl.federation.messages import (
    ANCHOR,
    ARRAYS_BYTES_MAX,
    FINISH,
    HELLO,
    MASK,
    TRAIN,
    Arrays,
    Body,
    Evaluate,
    Kind,
    MaskReply,
    Parcel,
)
from momkd_fl.federation.publications import Publications
from momkd_fl.federation.small_numbers import Split, suppressed
from momkd_fl.federation.vault import CLEAR, Vault
from momkd_fl.privacy.accountant import Charge
from momkd_fl.security.signing import load_public_key, load_signing_key

Watch = Callable[[Outgoing, Message], None]
"""Sees a message as it is about to leave: what was decided, and the message itself."""


class Gate:
    """The door of one site.

    Parameters
    ----------
    policy : Policy
        The site's contract.
    books : Books or None
        None for a simulation or a trial, where no message leaves this process: nothing is debited or entered.
    watch : callable or None
        Sees each message that passes.
    today : callable
        The day in UTC.
    """

    def __init__(
        self,
        policy: Policy,
        books: Books | None,
        watch: Watch | None = None,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ) -> None:
        self.policy, self._books, self._watch, self._today = policy, books, watch, today
        self._challenge = Challenge(policy.witnesses, b"" if books is None else books.public_key)
        self._publications = Publications(None) if books is None else books.publications
        self._sent: dict[tuple[str, str], int] = {} if books is None else books.sent
        self._rounds: dict[str, int] = {} if books is None else books.rounds

    def admit(self, request: Message) -> None:
        """Look at what coordinator and peers hold of this site's books, before any work is done for it.

        Raises
        ------
        UserError
            ``odometer-rolled-back``, ``ledger-truncated``, ``ledger-forked``, ``message-schema``, ``peer-forked``.
        """
        held, signed = read_heads(request.content)
        _, answers = read_asked(request.content)
        if self._books is None:
            return
        own = self._books.public_key
        for anchor in (held, *(each.anchor for each in signed if each.key == own)):
            if anchor is not None:
                self._books.must_continue(anchor)
        self._books.witnesses.hear(each for each in signed if each.key != own)
        for told in self._challenge.own(answers):
            self._books.must_continue(told.held.anchor)
            self._challenge.heard(told)

    def note_withdrawn(self, patients: Collection[str]) -> None:
        """Enter who was withdrawn since the last message, and refuse to forget anybody who was.

        Raises
        ------
        UserError
            ``withdrawals-lost`` where the ledger has more than the site's list; as the ledger.
        """
        if self._books is not None:
            self._books.enter_withdrawn(patients)

    def hold(
        self,
        kind: Kind[Any, Any],
        parcel: Parcel[Any],
        body: Body,
        arrays: Arrays,
        *,
        task: str,
        charges: tuple[Charge, ...],
    ) -> tuple[Body, Arrays]:
        """What of an answer may go into a secure sum: the contract's lines and small numbers hold as for a message.

        Nothing leaves by it. The masked message is debited and entered when it goes through :meth:`send`.

        Raises
        ------
        UserError
            As :func:`~momkd_fl.federation.contract.refuse_outside` and
            :func:`~momkd_fl.federation.small_numbers.suppressed`.
        """
        outgoing = Outgoing(parcel.run, parcel.round, kind.name, task, body, arrays, charges)
        sent = sum(self._sent.get((parcel.run, name), 0) for name in (kind.name, _masked(kind.name)))
        refuse_outside(self.policy, outgoing, sent, self._today(), summed=True)
        return suppressed(outgoing, _split(parcel), self.policy.small_numbers, self._publications)

    def refuse_question(self, parcel: Parcel[Any]) -> None:
        """Refuse, before any work is done for it, what may not be answered, or what belongs to an earlier round.

        Raises
        ------
        UserError
            As :func:`~momkd_fl.federation.contract.refuse_question`; ``contract-task`` for a greeting of another task,
            before the site's files are read; ``round-replayed``: the site has trained for a
            later round of that run;
            ``peers-not-heard``. (For the same round a coordinator may ask again, after it was restarted.)
        """
        kind, run, number = parcel.kind, parcel.run, parcel.round
        if kind == FINISH.name:  # a site that may not answer learns all the same that, and why, its part is over
            return
        refuse_question(self.policy, kind, run, self._sent.get((run, kind), 0), self._today())
        if kind == HELLO.name:
            refuse_task(self.policy, kind, str(parcel.body.federation.get("task", "")))
            if self._books is not None:
                self._challenge.greeted(run, self._books.ledger.head.lines)
        if self._books is not None:
            self._challenge.must_be_heard(parcel)
        newest = self._rounds.get(run, 0)
        if kind == TRAIN.name and number < newest:
            raise UserError(
                "round-replayed",
                f"The coordinator asked for round {number} of run {run}, and this site has answered round {newest}. "
                "Nothing was done. The coordinator may have put an old copy of its state back: it must put back the "
                "newest, or start a new run.",
            )

    def send(
        self,
        kind: Kind[Any, Any],
        request: Message,
        parcel: Parcel[Any],
        body: Body,
        arrays: Arrays,
        *,
        task: str,
        charges: tuple[Charge, ...],
    ) -> Message:
        """The reply, if the site lets it go; when this returns it is debited, entered and signed.

        Raises
        ------
        UserError
            As :func:`~momkd_fl.federation.contract.refuse_outside`,
            :func:`~momkd_fl.federation.small_numbers.suppressed`, :class:`~momkd_fl.privacy.odometer.Odometer` and
            :class:`~momkd_fl.security.ledger.Ledger`. Then nothing may leave.
        """
        outgoing = Outgoing(parcel.run, parcel.round, kind.name, task, body, arrays, charges)
        refuse_outside(self.policy, outgoing, self._count(parcel.run, kind), self._today())
        body, arrays = suppressed(outgoing, _split(parcel), self.policy.small_numbers, self._publications)
        reply = answer(kind, request, parcel, body, arrays)
        if self._books is not None:
            self._account(self._books, outgoing, request, reply)
        else:
            entered = _entered(outgoing)
            self._sent[parcel.run, entered] = self._sent.get((parcel.run, entered), 0) + 1
        if kind is TRAIN:
            self._rounds[parcel.run] = max(parcel.round, self._rounds.get(parcel.run, 0))
        if self._watch is not None:
            self._watch(outgoing, reply)
        return reply

    def _count(self, run: str, kind: Kind[Any, Any]) -> int:
        """Messages of a kind so far in a run; masked ones are entered by the question that they answer."""
        masked = f"{MASK.name}-" if kind is MASK else None
        return sum(
            count
            for (of, name), count in self._sent.items()
            if of == run and (name == kind.name or (masked is not None and name.startswith(masked)))
        )

    def _account(self, books: Books, outgoing: Outgoing, request: Message, reply: Message) -> None:
        """Debit, enter, sign: in this order. The attempt is named by what is sent, so that other bytes are another."""
        digest = payload_digest(reply.content)
        attempt = f"{outgoing.run}/{outgoing.round}/{outgoing.kind}/{digest[:16]}"
        spent = books.debit(attempt, digest, outgoing.charges)
        books.enter(outgoing.run, outgoing.round, _entered(outgoing), digest, payload_bytes(reply), spent)
        if _entered(outgoing) in (TRAIN.name, _masked(TRAIN.name)):
            self._challenge.trained(books.ledger.head.lines)
        signed = receipt(books.key, digest, books.anchor, books.witnesses.held)
        asked = self._challenge.fields(books.key, request.content, books.witnesses.newest)
        reply.content[ANCHOR] = ConfigRecord({**signed, **asked})

    def close(self) -> None:
        """Let another process of the site open its books."""
        if self._books is not None:
            self._books.close()


def _masked(question: str) -> str:
    return f"{MASK.name}-{question}"


def _entered(outgoing: Outgoing) -> str:
    """What the ledger calls a message: of a masked one, also what it answers."""
    return _masked(outgoing.body.question) if isinstance(outgoing.body, MaskReply) else outgoing.kind


def payload_bytes(message: Message) -> int:
    """Bytes of the arrays a message carries."""
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())


def _split(parcel: Parcel[Any]) -> Split:
    """Of whose patients the scores in the reply are."""
    return parcel.body.split if isinstance(parcel.body, Evaluate) else "validation"


def open_gate(config: SiteConfig, vault: Vault = CLEAR) -> Gate:
    """The gate of a site that takes part over the network: its signed contract and its books.

    Raises
    ------
    UserError
        ``egress-missing``, and as :func:`contract_of` and :meth:`Books.open`.
    """
    policy = contract_of(config)
    assert config.egress is not None
    key = load_signing_key(config.egress.signing_key)
    return Gate(policy, Books.open(config.egress, key, policy.budget, vault))


def contract_of(config: SiteConfig, today: date | None = None) -> Policy:
    """The site's signed contract.

    Raises
    ------
    UserError
        ``egress-missing``, and as :func:`~momkd_fl.federation.contract.load_contract` and
        :func:`~momkd_fl.security.signing.load_signing_key`.
    """
    egress = config.egress
    if egress is None:
        raise UserError(
            "egress-missing",
            f"Site '{config.site}': the section 'egress' is missing, so nothing may leave. Add it, write a contract "
            "with 'momkd policy write', read it with 'momkd policy explain' and sign it with 'momkd policy sign'.",
        )
    if egress.policy_key is not None:
        signer = load_public_key(egress.policy_key)
    else:
        signer = load_signing_key(egress.signing_key).public_key()
    return load_contract(egress.policy, signer, config.site, today or datetime.now(UTC).date())


NOWHERE: Final = "0" * 64
"""Where a contract names the coordinator's certificate and there is none."""
_UNBOUNDED: Final = ARRAYS_BYTES_MAX // 4


def simulation_gate(site: str, watch: Watch | None = None) -> Gate:
    """For a site that lives in the same process as its coordinator: the same door with an open contract, no books.

    Nothing leaves the process, so that sums and scores pass as they are; counts of the cohort are withheld as ever,
    since a report shows them.
    """
    policy = contract_for(
        site,
        "train",
        coordinator_sha256=NOWHERE,
        runs=[ANY],
        tasks=[ANY],
        expires=datetime.now(UTC).date() + timedelta(days=3650),
        numbers_max=_UNBOUNDED,
        small_numbers=SmallNumbers(minimum_per_class=1, minimum_per_slot=1, scores="exact"),
    )
    return Gate(policy.model_copy(update={"dp_required": PrivacyRequired(noise="distributed")}), None, watch)
