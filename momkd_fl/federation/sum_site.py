"""A site's part in secure sums: what it would have answered is held back, and leaves masked (secagg/site.py).

A question comes with the manifest of the sum. The site checks it against its contract and its own plan, stores the
sum's number on disk, works out the answer, passes it through the gate's rules, and announces its keys. Only the newest
sum is known; a restart forgets it, and then every further step of it is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.federation import messages
from momkd_fl.federation.egress import Gate
from momkd_fl.federation.messages import (
    CONSENT,
    DEAL,
    EVALUATE,
    INCOMING,
    INITIALISE,
    JOIN,
    MASK,
    OUTGOING,
    SECAGG,
    SELECT,
    TRAIN,
    UNMASK,
    Arrays,
    Body,
    EvaluateReply,
    Hello,
    HelloReply,
    Join,
    JoinReply,
    Kind,
    MaskReply,
    Parcel,
)
from momkd_fl.federation.participant import Participant
from momkd_fl.federation.private_plan import released_in
from momkd_fl.federation.site_outputs import unmeasured_row
from momkd_fl.federation.student import reply_shapes
from momkd_fl.federation.sum_bounds import bounded
from momkd_fl.federation.sum_holdings import claimed, contributing, holdings, withheld
from momkd_fl.federation.sum_keys import SumKeys
from momkd_fl.federation.sum_numbers import SITE_FILE, SumNumbers
from momkd_fl.federation.sum_parts import (
    Flat,
    Part,
    agreed_noise,
    evaluate_parts,
    flat_answer,
    question_digest,
    select_parts,
    sites_min,
    start_parts,
    start_shapes,
    train_parts,
)
from momkd_fl.privacy.accountant import Charge
from momkd_fl.secagg.manifest import Manifest, Policy, read_manifest
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.site import join, receive
from momkd_fl.secagg.states import Consented, Dealt, Joined, Masked, State

Answer = tuple[Body, Arrays]
WEIGHTS_RATIO_MAX: Final = 10.0
"""Public weights may differ by so much: far apart, a weighted sum would be one site's."""
QUESTIONS: Final[Mapping[str, Kind[Any, Any]]] = {kind.name: kind for kind in (SELECT, INITIALISE, TRAIN, EVALUATE)}
_STATE_BEFORE: Final[Mapping[str, type]] = {
    DEAL.name: Joined, MASK.name: Dealt, CONSENT.name: Masked, UNMASK.name: Consented,
}  # fmt: skip


@dataclass
class _Sum:
    """The newest sum: the protocol's state, the answer until it is masked, the last reply for sending it again."""

    run: str
    question: messages.Question
    state: State
    values: Mapping[str, NDArray[np.float64]] | None
    weights: Mapping[str, float]
    charges: tuple[Charge, ...]
    last: tuple[str, bytes, bytes]


@dataclass
class _Answer:
    """What the site answers to one question, until it is masked; ``asked`` is run, round and the question's digest."""

    asked: tuple[str, int, bytes]
    made: Flat
    kept: Flat
    charges: tuple[Charge, ...]


class SumSite:
    """One site's part.

    Parameters
    ----------
    keys : SumKeys or None
        None where the site has none (a trial on its own): then it takes part in no sum.
    """

    def __init__(self, participant: Participant, gate: Gate, keys: SumKeys | None) -> None:
        self._participant, self._gate, self._keys = participant, gate, keys
        self._numbers = SumNumbers(participant.state_dir / SITE_FILE)
        self._sum: _Sum | None = None
        self._charges: tuple[Charge, ...] = ()
        self._ready: _Answer | None = None
        self._work: dict[str, Callable[[Parcel[Any]], tuple[Any, Arrays]]] = {
            SELECT.name: participant.select,
            INITIALISE.name: participant.initialise,
            TRAIN.name: participant.train,
            EVALUATE.name: participant.evaluate,
        }

    def hello(self, request: Parcel[Hello]) -> tuple[HelloReply, Arrays]:
        """The greeting; where sums are secure, with what the site can contribute to."""
        body, arrays = self._participant.hello(request)
        config = self._participant.config_of(request.run)
        if config.aggregation.kind != "secagg":
            return body, arrays
        return body.model_copy(update={"holds": sorted(self._holdings(config))}), arrays

    def take_charges(self) -> tuple[Charge, ...]:
        """What the masked answer just made costs; empty for every other step."""
        taken, self._charges = self._charges, ()
        return taken

    def in_the_clear(self, kind: Kind[Any, Any]) -> Callable[[Parcel[Any]], Answer]:
        """The work behind a question that comes by itself: refused where the run's answers go into sums.

        Then only what holds nothing of patients is answered: that the fixed space is kept, that a split was scored.
        """

        def work(parcel: Parcel[Any]) -> Answer:
            if self._participant.config_of(parcel.run).aggregation.kind != "secagg":
                return self._work[kind.name](parcel)
            if kind is EVALUATE:
                self._participant.evaluate(parcel)
                cohort = self._participant.cohort_for(self._participant.config_of(parcel.run))
                return EvaluateReply(loss_sum=[], cohort=unmeasured_row(cohort)), {}
            if kind is INITIALISE and parcel.body.step == "fixed":
                return self._participant.initialise(parcel)
            raise UserError(
                "sum-asked-plain",
                f"The coordinator asked for '{kind.name}' in the clear, but this run's answers go into secure sums "
                "(aggregation: secagg). Nothing was sent.",
            )

        return work

    def join(self, parcel: Parcel[Join]) -> tuple[JoinReply, Arrays]:
        """Check the manifest, work out the answer, keep it, announce keys.

        Without keys, a list of what this site withholds and the manifest lists it for: it takes no part in this sum.
        Its answer waits for the next sum of the same question, as it does where a sum ended before it was masked.
        """
        message = _message(parcel, JOIN)
        if self._sum is not None and self._sum.last[:2] == (JOIN.name, _digest(message)):
            return JoinReply(), {SECAGG: {OUTGOING[JOIN.name]: _array(self._sum.last[2])}}
        keys, config = self._agreed(parcel.run)
        asked = parcel.body
        question = _question(parcel)
        weights = _weights(asked)
        parts = self._parts(question, config, weights)
        policy, manifest = self._policy(config, keys, parcel.run, message, parts)
        names = contributing(manifest, self._participant.site)
        if lost := claimed(parts, names) - self._holdings(config):
            return self._without(lost)
        arrays = {group: members for group, members in parcel.arrays.items() if group != SECAGG}
        model = question_digest(asked.question, asked.body, asked.site_weights, arrays, agreed_noise(config))
        try:
            state, reply = join(policy, keys.identity, message, model)
        except SecAggError as problem:
            raise _refusal(problem) from None
        self._sum = None
        self._numbers.store(parcel.run, manifest.round_number)
        worked = self._answer(question, model)
        if lacking := withheld(parts, names, worked.made, worked.kept):
            return self._without(lacking)
        kept = bounded(worked.kept, config, parts)
        values = {part.name: part.of(kept) for part in parts if part.name in names}
        own = asked.site_weights.get(self._participant.site, 1.0)
        weighted = {part.name: own for part in parts if part.weighted}
        last = (JOIN.name, _digest(message), reply)
        self._sum = _Sum(parcel.run, asked.question, state, values, weighted, worked.charges, last)
        return JoinReply(), {SECAGG: {OUTGOING[JOIN.name]: _array(reply)}}

    def _without(self, gates: frozenset[str]) -> tuple[JoinReply, Arrays]:
        """The answer of a site that holds less than the sum lists it for: how much less, and no keys."""
        told = sorted(gates)
        self._participant.say(
            f"Small numbers: this site adds nothing of {', '.join(told)} to a secure sum that lists it for them, and "
            "has said so. The coordinator writes another list."
        )
        return JoinReply(withholds=told), {}

    def step(self, kind: Kind[Any, Any]) -> Callable[[Parcel[Any]], Answer]:
        """The work behind one of the four later steps; the same message again gets the same bytes again."""

        def work(parcel: Parcel[Any]) -> Answer:
            message, now = _message(parcel, kind), self._sum
            if now is None or now.run != parcel.run:
                raise UserError(
                    "sum-unknown",
                    f"A '{kind.name}' message belongs to a secure sum that this site has no part in, or forgot when it "
                    "was started again. The coordinator begins a new one.",
                )
            if now.last[:2] != (kind.name, _digest(message)):
                self._advance(now, kind, message)
                if kind is MASK:
                    self._ready = None
            body = MaskReply(question=now.question) if kind is MASK else kind.reply()
            self._charges = now.charges if kind is MASK else ()
            return body, {SECAGG: {OUTGOING[kind.name]: _array(now.last[2])}}

        return work

    @staticmethod
    def _advance(now: _Sum, kind: Kind[Any, Any], message: bytes) -> None:
        """The next state, with the answer gone once it is masked."""
        if not isinstance(now.state, _STATE_BEFORE[kind.name]):
            raise UserError("sum-step", f"A '{kind.name}' message came at another step of the secure sum.")
        try:
            now.state, reply = receive(now.state, message, now.values, now.weights)
        except SecAggError as problem:
            raise _refusal(problem) from None
        now.last = (kind.name, _digest(message), reply)
        if kind is MASK:
            now.values = None

    def _agreed(self, run: str) -> tuple[SumKeys, FederationConfig]:
        config = self._participant.config_of(run)
        if config.aggregation.kind != "secagg":
            raise UserError("sum-not-agreed", f"Run {run} is not one of secure sums, but its coordinator began one.")
        if self._keys is None:
            raise UserError("sum-keys-missing", "This site has no signing key at hand, so it takes part in no sum.")
        return self._keys, config

    def _answer(self, question: Parcel[Any], model: bytes) -> _Answer:
        """What the site would have sent, as made and as the gate lets it go into a sum, and what it costs."""
        asked = (question.run, question.round, model)
        if self._ready is None or self._ready.asked != asked:
            self._ready = None
            kind = QUESTIONS[question.kind]
            body, arrays = self._work[kind.name](question)
            charges = self._participant.take_charges()
            made, task = flat_answer(body, arrays), self._participant.task
            body, arrays = self._gate.hold(kind, question, body, arrays, task=task, charges=charges)
            self._ready = _Answer(asked, made, flat_answer(body, arrays), charges)
        return self._ready

    def _parts(self, question: Parcel[Any], config: FederationConfig, weights: list[float]) -> list[Part]:
        """What the answer consists of, from this site's own plan."""
        body, memory = question.body, question.arrays.get("memory", {})
        if question.kind == SELECT.name:
            return select_parts(config, len(body.candidates))
        if question.kind == EVALUATE.name:
            return evaluate_parts(config, body.split)
        work = self._participant.ready(question.run)
        if question.kind == TRAIN.name:
            released = released_in(config, question.round)
            shapes = reply_shapes(config, work.layout, memory, True)
            return train_parts(config, shapes, released=released, weights=weights)
        if body.step == "fixed" or (body.step in ("anchors", "slots") and body.step not in memory):
            raise UserError("message-schema", f"The coordinator: no sums belong to step '{body.step}' as it was asked.")
        return start_parts(config, body.step, start_shapes(config, body.step, len(work.cohort.panel), memory))

    def _policy(
        self, config: FederationConfig, keys: SumKeys, run: str, message: bytes, parts: list[Part]
    ) -> tuple[Policy, Manifest]:
        """What this site agreed to, and the manifest, every segment of which is one that it expects."""
        peers, pinned = keys.peers(), self._gate.policy.summed.peers
        try:
            manifest, _ = read_manifest(message, peers.coordinator)
        except SecAggError as problem:
            raise _refusal(problem) from None
        expected = {part.name: part for part in parts}
        for segment in manifest.segments:
            part = expected.get(segment.name)
            if part is None or part.segment(segment.holders) != segment:
                raise UserError(
                    "sum-segment",
                    f"The secure sum has a segment '{segment.name}' that is not as this run's settings make it. "
                    "Nothing was sent. Install the same version of momkd-fl everywhere.",
                )
        own = self._holdings(config)
        counted = {site for site, key in peers.identities.items() if not pinned or pinned.get(site) == key.hex()}
        return Policy(
            site=self._participant.site,
            coordinator=peers.coordinator,
            identities=peers.identities,
            pinned=frozenset(counted),
            runs=frozenset({run}),
            last_round=self._numbers.last(run),
            holds=frozenset(part.name for part in parts if part.gate in own),
            gated=frozenset(part.name for part in parts if part.gate is not None),
            sites_min=sites_min(config, parts),
        ), manifest

    def _holdings(self, config: FederationConfig) -> frozenset[str]:
        cohort = self._participant.cohort_for(config)
        return holdings(cohort, config, self._gate.policy.small_numbers)


def _question(parcel: Parcel[Join]) -> Parcel[Any]:
    """The question inside, as if it had come by itself."""
    kind = QUESTIONS[parcel.body.question]
    try:
        body = kind.request.model_validate_json(parcel.body.body)
    except ValidationError:
        raise UserError(
            "message-schema", f"The coordinator: '{kind.name}' in a secure sum is not as it must be."
        ) from None
    arrays = {group: members for group, members in parcel.arrays.items() if group != SECAGG}
    if not arrays.keys() <= kind.request_groups:
        raise UserError("message-schema", f"The coordinator: '{kind.name}' in a secure sum carries more than it may.")
    return Parcel(kind.name, parcel.run, parcel.round, body, arrays)


def _weights(asked: Join) -> list[float]:
    """The public weights (raises UserError ``sum-weights`` where they are so uneven that a sum would be one site's)."""
    weights = list(asked.site_weights.values())
    if any(not 0 < weight < np.inf for weight in weights) or max([1.0, *weights]) > WEIGHTS_RATIO_MAX * min(
        [1.0, *weights]
    ):
        raise UserError(
            "sum-weights",
            f"The sites' public weights differ by more than {WEIGHTS_RATIO_MAX:g} times. Nothing was sent. Ask the "
            "coordinator to change strategy.site_weights.",
        )
    return weights


def _message(parcel: Parcel[Any], kind: Kind[Any, Any]) -> bytes:
    found = parcel.arrays.get(SECAGG, {})
    if set(found) != {INCOMING[kind.name]}:
        raise UserError("message-schema", f"The coordinator: '{kind.name}' came without its '{INCOMING[kind.name]}'.")
    return bytes(found[INCOMING[kind.name]].tobytes())


def _array(message: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(message, np.uint8)


def _digest(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()


def _refusal(problem: SecAggError) -> UserError:
    return UserError(
        "sum-refused", f"This site leaves the secure sum: {problem}. Nothing of it has been used; tell the coordinator."
    )
