"""A malicious server with up to two corrupt sites: any order, any subset, any tampering.

Invariant: it can compute no sum over fewer honest sites than the threshold leaves, and no gated sum over part of its
holders. What it knows is computed by :mod:`adversary` from the messages it has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from adversary import Adversary
from conftest import COUNTS, WEIGHTS, values_of
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from benchmarks.secagg_round import Consortium, Rehearsal
from momkd_fl.secagg import messages, site
from momkd_fl.secagg.manifest import SITES_MIN
from momkd_fl.secagg.messages import Opening, ShareKind
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.states import Consented, Dealt, Finished, Joined, Masked

PARTIES = Consortium.of(7)
NAMES = tuple(PARTIES.sites)
HOLDERS = NAMES[:SITES_MIN]
MANIFEST = PARTIES.manifest((WEIGHTS, replace(COUNTS, name="genomic", holders=HOLDERS)))
VALUES = values_of(MANIFEST)
OLD: list[bytes] = []
"""Messages of an earlier round of the same sites, for replays."""

SETTINGS = settings(
    max_examples=120,
    stateful_step_count=14,
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
sets = st.frozensets(st.sampled_from(NAMES), min_size=4)
a_site = st.integers(0, len(NAMES) - 1)


class MaliciousServer(RuleBasedStateMachine):
    """Sends honest sites whatever it likes, signed with every key that it has."""

    finished = sums = 0

    @initialize(corrupt=st.integers(0, 2), late=a_site, sets=st.lists(sets, min_size=3, max_size=3))
    def begin(self, corrupt: int, late: int, sets: list[frozenset[str]]) -> None:
        self.adversary = Adversary(PARTIES, MANIFEST, frozenset(NAMES[len(NAMES) - corrupt :]), VALUES)
        self.sets = [frozenset(NAMES), frozenset(NAMES) - {NAMES[late]}, *sets]
        self.sent: list[bytes] = list(OLD)
        self.checked = (0, 0)

    def message(self, name: str, view: int) -> bytes:
        """What the site waits for, under one of several views of who takes part."""
        adversary, state, chosen = self.adversary, self.adversary.states[name], self.sets[view]
        if isinstance(state, Joined):
            return adversary.roster(chosen)
        if isinstance(state, Dealt):
            return adversary.delivery(name, chosen & state.keys.keys())
        if isinstance(state, Masked):
            survivors = chosen & frozenset(state.dealers)
            return adversary.survivors(survivors, frozenset(state.dealers) - survivors)
        return adversary.consents_for(name, chosen)

    def send(self, name: str, message: bytes) -> None:
        before = self.adversary.states[name]
        self.sent.append(message)
        try:
            self.adversary.send(name, message)
        except SecAggError:
            assert self.adversary.states[name] is before
        if isinstance(self.adversary.states[name], Finished) and not isinstance(before, Finished):
            type(self).finished += 1

    @rule(views=st.lists(st.integers(0, 4), min_size=len(NAMES), max_size=len(NAMES)))
    def a_step_of_all_under_several_views(self, views: list[int]) -> None:
        for name, view in zip(self.adversary.honest, views, strict=False):
            self.send(name, self.message(name, view))

    @rule(view=st.integers(0, 4))
    def a_step_of_all_under_one_view(self, view: int) -> None:
        for name in self.adversary.honest:
            self.send(name, self.message(name, view))

    @rule(survivors=st.integers(0, 4))
    def all_to_the_end(self, survivors: int) -> None:
        for view in (0, 0, survivors, 0):
            self.a_step_of_all_under_one_view(view)

    @rule(place=a_site, view=st.integers(0, 4))
    def one_site(self, place: int, view: int) -> None:
        name = self.adversary.honest[place % len(self.adversary.honest)]
        self.send(name, self.message(name, view))

    @rule(place=a_site, view=st.integers(0, 4), at=st.integers(0, 1 << 16), bit=st.integers(0, 7), signed=st.booleans())
    def tampered(self, place: int, view: int, at: int, bit: int, signed: bool) -> None:
        name = self.adversary.honest[place % len(self.adversary.honest)]
        message = bytearray(self.message(name, view))
        message[at % len(message)] ^= 1 << bit
        if signed:
            try:
                envelope = messages.open_message(
                    bytes(message), kind_of(self.adversary, name), MANIFEST, self.adversary.digest
                )
                message = bytearray(self.adversary.sign(envelope.kind, [bytes(envelope.body)]))
            except SecAggError:
                return
        self.send(name, bytes(message))

    @rule(place=a_site, survivors=sets, dropped=st.frozensets(st.sampled_from(NAMES)))
    def overlapping_survivors(self, place: int, survivors: frozenset[str], dropped: frozenset[str]) -> None:
        name = self.adversary.honest[place % len(self.adversary.honest)]
        self.send(name, self.adversary.survivors(survivors, dropped))

    @rule(place=a_site, which=st.integers(0, 1 << 16))
    def replayed(self, place: int, which: int) -> None:
        if self.sent:
            name = self.adversary.honest[place % len(self.adversary.honest)]
            self.send(name, self.sent[which % len(self.sent)])

    @invariant()
    def no_small_sum_is_known(self) -> None:
        seen = len(self.adversary.openings), len(self.adversary.masked)
        if not self.adversary.openings or seen == self.checked:
            return
        self.checked = seen
        honest_least = MANIFEST.threshold - len(self.adversary.corrupt)
        assert not self.adversary.revealed(honest_least - 1)
        for group in self.adversary.revealed(len(self.adversary.honest)):
            assert np.array_equal(self.adversary.sum_of(group), self.adversary.truth(group))
            type(self).sums += 1
        for group in self.adversary.revealed(len(self.adversary.honest), 2):
            assert not set(HOLDERS) & set(group) or set(HOLDERS) <= set(group)


def kind_of(adversary: Adversary, name: str) -> messages.Kind:
    kinds = messages.Kind
    waits = {Joined: kinds.ROSTER, Dealt: kinds.DELIVERY, Masked: kinds.SURVIVORS, Consented: kinds.CONSENTS}
    return waits.get(type(adversary.states[name]), kinds.ROSTER)


@pytest.fixture(autouse=True, scope="module")
def an_earlier_round() -> None:
    earlier = Rehearsal(
        PARTIES,
        replace(MANIFEST, round_number=0),
        VALUES,
        {name: PARTIES.policy(name, holds=frozenset({"genomic"})) for name in NAMES},
        keep=True,
    )
    earlier.run()
    OLD.extend(earlier.messages)


@contextmanager
def opening(replacement) -> Iterator[None]:
    before = site._opening
    site._opening = replacement
    try:
        yield
    finally:
        site._opening = before


def test_a_malicious_server_learns_no_small_sum():
    MaliciousServer.finished = MaliciousServer.sums = 0
    run_state_machine_as_test(MaliciousServer, settings=SETTINGS)
    assert MaliciousServer.finished > 100  # else the machine would have tested refusals only
    assert MaliciousServer.sums > 30  # sums that it came to know, each compared with the truth


def both_kinds(here, shares, peer, survivors):
    pieces = [shares[at : at + 33] for at in range(0, len(shares), 33)]
    return Opening(ShareKind.SELF_SEEDS, dict(enumerate(pieces)))


def every_segment(here, shares, peer, survivors):
    pieces = [shares[at : at + 33] for at in range(0, len(shares), 33)]
    if peer in survivors:
        return Opening(ShareKind.SELF_SEEDS, dict(enumerate(pieces[1:], start=1)))
    return Opening(ShareKind.MASK_KEY, {0: pieces[0]})


@pytest.mark.parametrize("weaker", [both_kinds, every_segment])
def test_a_weaker_site_is_found_out(weaker):
    """Control: the machine finds the attack once a site releases more than it may."""
    unshrunk = settings(SETTINGS, phases=[Phase.generate])
    with opening(weaker), pytest.raises(AssertionError):
        run_state_machine_as_test(MaliciousServer, settings=unshrunk)
