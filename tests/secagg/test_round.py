"""Whole rounds: exact sums, sites that drop out, and a network that changes what it carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from conftest import COUNTS, WEIGHTS, values_of
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.secagg_round import MODEL, STEPS, Consortium, rehearse
from momkd_fl.secagg import aggregator, messages, shamir, wire
from momkd_fl.secagg.aggregator import Step
from momkd_fl.secagg.encoding import encode
from momkd_fl.secagg.manifest import Manifest, least_threshold
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.site import Values, join, receive
from momkd_fl.secagg.unmasking import Sum
from momkd_fl.secagg.wire import Kind

Consortia = Callable[[int], Consortium]


def plain(manifest: Manifest, values: Mapping[str, Values], survivors: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The sums of the encoded vectors, without any mask."""
    found = {}
    for segment in manifest.segments:
        total = np.zeros(segment.length, np.uint64)
        for site in survivors:
            if segment.name in values[site]:
                out = np.empty(segment.length, np.uint64)
                encode(values[site][segment.name], segment.encoding, out)
                total += out
        found[segment.name] = total
    return found


def right(found: Sum, manifest: Manifest, values: Mapping[str, Values]) -> bool:
    true = plain(manifest, values, found.survivors)
    return all(np.array_equal(integers, true[name]) for name, integers in found.integers.items())


@pytest.mark.parametrize("n", range(3, 11))
def test_the_sum_is_exact_to_the_bit(consortium: Consortia, n: int):
    manifest = consortium(n).manifest((WEIGHTS, COUNTS))
    values = values_of(manifest, n)
    found = rehearse(consortium(n), manifest, values).run()
    assert found.survivors == manifest.participants
    assert right(found, manifest, values)
    assert not right(found, manifest, values_of(manifest, n + 1))  # control
    true = sum(values[site]["weights"] for site in manifest.participants)
    assert np.abs(found.values["weights"] - true).max() <= WEIGHTS.encoding.error_max(n)
    assert found.values["counts"].tolist() == sum(values[site]["counts"] for site in manifest.participants).tolist()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("n", [4, 7, 10])
def test_as_many_sites_as_the_threshold_allows_may_drop_out_at_any_step(consortium: Consortia, n: int, step: Step):
    manifest = consortium(n).manifest((WEIGHTS, COUNTS))
    gone = manifest.participants[: n - manifest.threshold]
    values = values_of(manifest)
    found = rehearse(consortium(n), manifest, values).run(dict.fromkeys(gone, step))
    in_sum = step in (Step.CONSENTS, Step.UNMASKING)  # their vectors have arrived by then
    assert found.survivors == (manifest.participants if in_sum else manifest.participants[len(gone) :])
    assert right(found, manifest, values)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("n", [3, 4, 7])
def test_one_more_and_there_is_no_sum(consortium: Consortia, n: int, step: Step):
    """With three sites, that is any dropping out at all."""
    manifest = consortium(n).manifest((WEIGHTS,))
    gone = manifest.participants[: n - manifest.threshold + 1]
    with pytest.raises(SecAggError) as problem:
        rehearse(consortium(n), manifest, values_of(manifest)).run(dict.fromkeys(gone, step))
    assert problem.value.code == ("shares-too-few" if step == Step.UNMASKING else "sites-too-few")


@pytest.mark.parametrize(("first", "second"), list(product(STEPS, STEPS)))
def test_sites_may_drop_out_at_different_steps(consortium: Consortia, first: Step, second: Step):
    manifest = consortium(7).manifest((WEIGHTS,))
    values = values_of(manifest)
    found = rehearse(consortium(7), manifest, values).run({"S01": first, "S05": second})
    assert right(found, manifest, values)


def test_a_gated_sum_needs_three_surviving_holders(consortium: Consortia):
    genomic = replace(COUNTS, name="genomic", holders=("S00", "S02", "S03", "S06"))
    manifest = consortium(7).manifest((genomic, WEIGHTS))
    values = values_of(manifest)
    one = rehearse(consortium(7), manifest, values).run({"S02": Step.VECTORS})
    assert one.withheld == ()
    assert right(one, manifest, values)
    two = rehearse(consortium(7), manifest, values).run({"S02": Step.VECTORS, "S06": Step.SHARES})
    assert two.withheld == ("genomic",)
    assert two.values.keys() == {"weights"}
    assert right(two, manifest, values)


def test_holders_that_few_sites_know_are_not_counted_by_them(consortium: Consortia):
    """The coordinator's list of holders may be of sites it has invented: each site counts those of its contract."""
    genomic = replace(COUNTS, name="genomic", holders=("S00", "S01", "S06"))
    manifest = consortium(7).manifest((WEIGHTS, genomic))
    values = values_of(manifest)
    round_ = rehearse(consortium(7), manifest, values)
    pinned = frozenset(consortium(7).sites) - {"S06"}
    round_.policies = {site: replace(policy, pinned=pinned) for site, policy in round_.policies.items()}
    found = round_.run()
    assert found.withheld == ("genomic",)
    assert right(found, manifest, values)


def test_above_fifty_sites_each_has_a_few_neighbours(consortium: Consortia):
    n, degree = 60, 12
    manifest = consortium(n).manifest((WEIGHTS,), degree=degree)
    values = values_of(manifest)
    gone = {f"S{number:02d}": step for number, step in zip((7, 21, 30, 44, 59), STEPS, strict=True)}
    round_ = rehearse(consortium(n), manifest, values)
    found = round_.run(gone)
    assert len(found.survivors) == n - 3
    assert right(found, manifest, values)
    assert manifest.share_threshold == least_threshold(degree + 1)


# --- a network that changes what it carries ---------------------------------------------------------------------------

N, WICKED = 4, "S03"
PARTIES = Consortium.of(N)
MANIFEST = PARTIES.manifest((replace(WEIGHTS, length=5), replace(COUNTS, holders=("S00", "S01", "S02"))))
VALUES = values_of(MANIFEST)

operations = st.sampled_from(["flip", "drop", "twice", "cut", "longer", "older", "another's", "wicked", "nothing"])
noise = st.dictionaries(st.integers(0, 2 * N * len(STEPS)), st.tuples(operations, st.integers(0, 1 << 16)), max_size=4)


class Network:
    """Carries messages, and does to the numbered ones what it was told."""

    def __init__(self, told: Mapping[int, tuple[str, int]]) -> None:
        self.told, self.number, self.seen = told, 0, [b""]

    def carry(self, message: bytes) -> list[bytes]:
        operation, at = self.told.get(self.number, ("nothing", 0))
        self.number += 1
        older, self.seen = self.seen[at % len(self.seen)], [*self.seen, message]
        flipped = bytearray(message)
        flipped[at % len(message)] ^= 1 << (at % 8)
        return {
            "flip": [bytes(flipped)],
            "drop": [],
            "twice": [message, message],
            "cut": [message[: at % len(message)]],
            "longer": [message + bytes(1 + at % 9)],
            "older": [older],
            "another's": [older, message],
            "wicked": [wicked(message, at)],
        }.get(operation, [message])


def wicked(message: bytes, at: int) -> bytes:
    """Shares of a corrupt site with a bit turned over, signed by it; other messages as they are.

    Not its masked vector or its keys: with those it adds to the sum whatever it wants, as any member can.
    """
    envelope = wire.open_envelope(message, None, 1 << 20)
    if envelope.sender != WICKED or envelope.kind not in (Kind.SHARES, Kind.UNMASKING):
        return message
    body = bytearray(envelope.body)
    body[at % len(body)] ^= 1 << (at % 8)
    return wire.close_envelope(envelope.kind, envelope.manifest, WICKED, [body], PARTIES.sites[WICKED])


def noisy_round(told: Mapping[int, tuple[str, int]]) -> tuple[Sum, set[str]]:
    """A round over such a network; a party that refuses a message waits for a better one, which may never come."""
    network, states, refusals = Network(told), {}, set()
    state, out = aggregator.begin(MANIFEST.signed(PARTIES.coordinator), PARTIES.identities, PARTIES.coordinator)
    for step in STEPS:
        for site, message in out.items():
            for arrived in network.carry(message):
                try:
                    if site in states:
                        states[site], reply = receive(states[site], arrived, VALUES[site])
                    else:
                        policy = PARTIES.policy(site, holds=frozenset({"counts"} if site != WICKED else ()))
                        states[site], reply = join(policy, PARTIES.sites[site], arrived, MODEL)
                except SecAggError as problem:
                    refusals.add(problem.code)
                    continue
                for answer in network.carry(reply):
                    try:
                        state = aggregator.receive(state, answer)
                    except SecAggError as problem:
                        refusals.add(problem.code)
        if step != Step.UNMASKING:
            state, out = aggregator.close(state)
    return aggregator.finish(state), refusals


OUTCOMES: list[str] = []


@given(noise)
@settings(max_examples=150, deadline=None, derandomize=True)
def never_a_wrong_sum(told: dict[int, tuple[str, int]]) -> None:
    try:
        found, refusals = noisy_round(told)
    except SecAggError as problem:
        OUTCOMES.append(problem.code)
        return
    OUTCOMES.append("sum after refusals" if refusals else "sum")
    assert right(found, MANIFEST, VALUES)
    assert len(found.survivors) >= MANIFEST.threshold


def test_a_wrong_sum_is_never_accepted():
    OUTCOMES.clear()
    never_a_wrong_sum()
    assert {"sum", "sum after refusals", "sites-too-few"} <= set(OUTCOMES)


FLIP_IN_A_VECTOR = {2 * N * STEPS.index(Step.VECTORS) + 1: ("flip", 120)}


def test_a_bit_of_a_vector_turned_over_leaves_that_vector_out():
    found, refusals = noisy_round(FLIP_IN_A_VECTOR)
    assert refusals == {"signature-wrong"}
    assert found.survivors == ("S01", "S02", "S03")
    assert right(found, MANIFEST, VALUES)


def test_without_signatures_the_wrong_sum_would_be_accepted(monkeypatch: pytest.MonkeyPatch):
    """Control of the two tests above."""
    monkeypatch.setattr(wire.Envelope, "verify", lambda envelope, public: None)
    found, refusals = noisy_round(FLIP_IN_A_VECTOR)
    assert refusals == set()
    assert not right(found, MANIFEST, VALUES)


def round_with(forge: Callable[[messages.Unmasking], messages.Unmasking]) -> Sum:
    """A round whose last message of the corrupt site is forged (and signed by it)."""
    states = {}
    state, out = aggregator.begin(MANIFEST.signed(PARTIES.coordinator), PARTIES.identities, PARTIES.coordinator)
    for step in STEPS:
        for site, message in out.items():
            if site in states:
                states[site], reply = receive(states[site], message, VALUES[site])
            else:
                policy = PARTIES.policy(site, holds=frozenset({"counts"} if site != WICKED else ()))
                states[site], reply = join(policy, PARTIES.sites[site], message, MODEL)
            if step == Step.UNMASKING and site == WICKED:
                envelope = wire.open_envelope(reply, Kind.UNMASKING, 1 << 20)
                body = forge(messages.Unmasking.read(envelope, MANIFEST)).body()
                reply = wire.close_envelope(Kind.UNMASKING, envelope.manifest, WICKED, body, PARTIES.sites[WICKED])
            state = aggregator.receive(state, reply)
        if step != Step.UNMASKING:
            state, out = aggregator.close(state)
    return aggregator.finish(state)


def opened(unmasking: messages.Unmasking, **change: object) -> messages.Unmasking:
    """The same with S01's opening changed."""
    return messages.Unmasking({**unmasking.openings, "S01": replace(unmasking.openings["S01"], **change)})


def test_a_wrong_share_is_left_out_and_both_suspects_are_named():
    def flipped(unmasking: messages.Unmasking) -> messages.Unmasking:
        shares = unmasking.openings["S01"].shares
        return opened(unmasking, shares={**shares, 1: shares[1][:-1] + bytes([shares[1][-1] ^ 1])})

    found = round_with(flipped)
    assert found.doubtful == ((WICKED, "S01"),)
    assert right(found, MANIFEST, VALUES)


@pytest.mark.parametrize(
    "forge",
    [
        lambda given: opened(given, kind=messages.ShareKind.MASK_KEY),
        lambda given: opened(given, shares={0: bytes(33)}),
        lambda given: opened(given, shares={**given.openings["S01"].shares, 0: bytes(33)}),
        lambda given: messages.Unmasking({}),
        lambda given: messages.Unmasking({**dict(list(given.openings.items())[1:]), "S09": given.openings["S01"]}),
    ],
)
def test_shares_of_the_wrong_kind_are_refused(forge: Callable[[messages.Unmasking], messages.Unmasking]):
    with pytest.raises(SecAggError) as problem:
        round_with(forge)
    assert (problem.value.code, problem.value.site) == ("share-kind", WICKED)


def test_a_dealer_whose_shares_do_not_belong_together_is_named(monkeypatch: pytest.MonkeyPatch):
    """It committed to each of them, so only what they recover shows it."""
    real = shamir.deal

    def crooked(secret: bytes, *rest: object) -> dict[int, bytes]:
        shares = real(secret, *rest)
        return {point: bytes(32) + bytes([point]) if point == 1 else share for point, share in shares.items()}

    monkeypatch.setattr(shamir, "deal", crooked)
    with pytest.raises(SecAggError) as problem:
        round_with(lambda given: given)
    assert (problem.value.code, problem.value.site) == ("secret-wrong", "S00")
