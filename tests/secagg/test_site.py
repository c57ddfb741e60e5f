"""What a site refuses in each step, and that its state survives a refusal."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from adversary import Adversary
from conftest import COUNTS, WEIGHTS, values_of

from benchmarks.secagg_round import MODEL, Consortium
from momkd_fl.secagg import aggregator, messages, wire
from momkd_fl.secagg.encoding import Encoding
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.site import join, receive
from momkd_fl.secagg.states import Finished, Joined
from momkd_fl.secagg.wire import Kind

Consortia = Callable[[int], Consortium]
GENOMIC = replace(COUNTS, name="genomic", holders=("S00", "S01", "S02"))
EVERYONE = ("S00", "S01", "S02", "S03")


@pytest.fixture
def adversary(consortium: Consortia) -> Adversary:
    manifest = consortium(4).manifest((WEIGHTS, GENOMIC))
    return Adversary(consortium(4), manifest, frozenset(), values_of(manifest))


def advance(adversary: Adversary, steps: int) -> None:
    """Every site so many steps on, honestly."""
    for step in range(steps):
        for name in adversary.honest:
            message = (
                adversary.roster(EVERYONE),
                adversary.delivery(name, EVERYONE) if step == 1 else b"",
                adversary.survivors(EVERYONE, ()),
                adversary.consents_for(name, EVERYONE),
            )[step]
            adversary.send(name, message)


def refused(adversary: Adversary, code: str, message: bytes, name: str = "S00") -> None:
    before = adversary.states[name]
    with pytest.raises(SecAggError) as problem:
        adversary.send(name, message)
    assert problem.value.code == code
    assert adversary.states[name] is before


def test_a_roster_is_refused(adversary: Adversary, consortium: Consortia):
    refused(adversary, "sites-too-few", adversary.roster(("S00", "S01")))
    refused(adversary, "roster-own-changed", adversary.roster(("S01", "S02", "S03")))
    again = messages.Announcement(os.urandom(32), os.urandom(32), (bytes(32), bytes(32)))
    own = adversary.sign(Kind.ANNOUNCEMENT, again.body(), "S00")
    refused(adversary, "roster-own-changed", adversary.roster(EVERYONE, {"S00": own}))
    keys = messages.Announcement.read(
        wire.open_envelope(adversary.announcements["S01"], None, 1 << 20), adversary.manifest
    )
    copied = adversary.sign(Kind.ANNOUNCEMENT, keys.body(), "S03")
    refused(adversary, "key-repeated", adversary.roster(EVERYONE, {"S03": copied}))
    weak = adversary.sign(
        Kind.ANNOUNCEMENT, replace(keys, mask_public=os.urandom(32), seal_public=bytes(32)).body(), "S03"
    )
    refused(adversary, "key-weak", adversary.roster(EVERYONE, {"S03": weak}))
    stranger = wire.close_envelope(Kind.ANNOUNCEMENT, adversary.digest, "X", keys.body(), consortium(4).coordinator)
    body = messages.Blobs((*adversary.announcements.values(), stranger)[1:]).body()
    refused(adversary, "sender-unknown", adversary.sign(Kind.ROSTER, body))
    twice = messages.Blobs((adversary.announcements["S00"],) * 4).body()
    refused(adversary, "message-malformed", adversary.sign(Kind.ROSTER, twice))
    by_a_site = adversary.sign(Kind.ROSTER, messages.Blobs(tuple(adversary.announcements.values())).body(), "S01")
    refused(adversary, "sender-unknown", by_a_site)
    advance(adversary, 4)


def test_a_delivery_is_refused(adversary: Adversary):
    advance(adversary, 1)
    refused(adversary, "sites-too-few", adversary.delivery("S00", ("S00", "S01")))
    refused(adversary, "roster-differs", adversary.delivery("S00", ("S01", "S02", "S03")))
    missing = messages.Delivery(EVERYONE, {"S01": b"", "S02": b""})
    refused(adversary, "roster-differs", adversary.sign(Kind.DELIVERY, missing.body()))
    swapped = {name: adversary.dealt[name].dealings["S00"].sealed for name in EVERYONE[1:]}
    swapped["S01"], swapped["S02"] = swapped["S02"], swapped["S01"]
    refused(adversary, "share-not-opened", adversary.sign(Kind.DELIVERY, messages.Delivery(EVERYONE, swapped).body()))
    refused(adversary, "share-not-opened", _for_another(adversary))
    refused(adversary, "message-unexpected", adversary.roster(EVERYONE))


def _for_another(adversary: Adversary) -> bytes:
    sealed = {name: adversary.dealt[name].dealings["S01" if name != "S01" else "S02"].sealed for name in EVERYONE[1:]}
    return adversary.sign(Kind.DELIVERY, messages.Delivery(EVERYONE, sealed).body())


def test_survivors_are_refused(adversary: Adversary):
    advance(adversary, 2)
    refused(adversary, "survivors-overlap", adversary.survivors(EVERYONE, ("S03",)))
    refused(adversary, "survivors-overlap", adversary.survivors(EVERYONE[:3], ()))
    refused(adversary, "survivors-overlap", adversary.survivors((*EVERYONE[:3], "S09"), ("S03",)))
    refused(adversary, "survivors-without-self", adversary.survivors(EVERYONE[1:], ("S00",)))
    refused(adversary, "sites-too-few", adversary.survivors(("S00", "S01"), ("S02", "S03")))
    state = adversary.states["S00"]
    known = replace(state.round, policy=replace(state.round.policy, pinned=frozenset({"S01"})))
    adversary.states["S00"] = replace(state, round=known)
    refused(adversary, "pinned-too-few", adversary.survivors(EVERYONE, ()))


def test_consents_are_refused(adversary: Adversary):
    advance(adversary, 2)
    for name in EVERYONE[:3]:
        adversary.send(name, adversary.survivors(EVERYONE[:3], ("S03",)))
    adversary.send("S03", adversary.survivors(EVERYONE, ()))
    refused(adversary, "consents-too-few", adversary.consents_for("S00", ("S00", "S01")))
    refused(adversary, "survivors-differ", adversary.consents_for("S00", ("S00", "S01", "S03")))
    one = adversary.consents["S01"]
    thrice = messages.Blobs((one, one, one)).body()
    refused(adversary, "sender-unknown", adversary.sign(Kind.CONSENTS, thrice))
    outside = messages.Consent(adversary.states["S00"].statement).body()
    late = messages.Blobs((*(adversary.consents[name] for name in EVERYONE[:3]),)).messages
    with_late = messages.Blobs((*late, adversary.sign(Kind.CONSENT, outside, "S03"))).body()
    refused(adversary, "sender-unknown", adversary.sign(Kind.CONSENTS, with_late))
    forged = wire.close_envelope(Kind.CONSENT, adversary.digest, "S01", outside, adversary.consortium.coordinator)
    body = messages.Blobs((adversary.consents["S00"], forged, adversary.consents["S02"])).body()
    refused(adversary, "signature-wrong", adversary.sign(Kind.CONSENTS, body))
    refused(adversary, "message-unexpected", adversary.survivors(EVERYONE, ()))  # a second set of survivors
    adversary.send("S00", adversary.consents_for("S00", EVERYONE[:3]))


def test_after_the_end_nothing_is_said(adversary: Adversary):
    advance(adversary, 4)
    assert isinstance(adversary.states["S00"], Finished)
    for message in (
        adversary.roster(EVERYONE),
        adversary.survivors(EVERYONE[:3], ("S03",)),
        adversary.consents_for("S00", EVERYONE),
    ):
        refused(adversary, "message-unexpected", message)


def test_secrets_go_when_they_are_no_longer_needed(adversary: Adversary):
    first = adversary.states["S00"]
    assert isinstance(first, Joined)
    private = first.mask_private
    assert private in _secrets(first)
    advance(adversary, 2)
    assert private not in _secrets(adversary.states["S00"])
    assert repr(private) not in repr(first)


def _secrets(state: object) -> list[bytes]:
    return [value for value in vars(state).values() if isinstance(value, bytes)]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"weights": None}, "values-wrong"),
        ({"weights": np.zeros(36)}, "values-wrong"),
        ({"weights": np.zeros((37, 1))}, "values-wrong"),
        ({"unknown": np.zeros(3)}, "values-wrong"),
        ({"weights": np.full(37, 65.0)}, "values-saturate"),
        ({"weights": np.full(37, np.nan)}, "values-saturate"),
        ({"genomic": np.ones(6)}, "values-not-held"),
        ({"genomic": np.zeros(6)}, None),
    ],
)
def test_values_are_what_the_manifest_says(adversary: Adversary, change: dict[str, object], code: str | None):
    """S03 is no holder of the genomic sums."""
    advance(adversary, 1)
    good = dict(adversary.values["S03"])
    given = {name: values for name, values in {**good, **change}.items() if values is not None}
    adversary.values = {**adversary.values, "S03": given}
    message = adversary.delivery("S03", EVERYONE)
    if code is not None:
        refused(adversary, code, message, "S03")
        adversary.values = {**adversary.values, "S03": good}
    adversary.send("S03", message)


def test_a_weight_scales_its_segment_only(consortium: Consortia):
    parties = consortium(3)
    heavy = replace(WEIGHTS, encoding=Encoding(24, 64.0, 4.0))
    manifest = parties.manifest((heavy, COUNTS))
    values = values_of(manifest)
    states = {}
    state, out = aggregator.begin(manifest.signed(parties.coordinator), parties.identities, parties.coordinator)
    for step in aggregator.Step:
        for name, message in out.items():
            if name in states:
                states[name], reply = receive(states[name], message, values[name], {"weights": 2.5})
            else:
                states[name], reply = join(parties.policy(name), parties.sites[name], message, MODEL)
            state = aggregator.receive(state, reply)
        if step != aggregator.Step.UNMASKING:
            state, out = aggregator.close(state)
    found = aggregator.finish(state)
    true = 2.5 * sum(one["weights"] for one in values.values())
    assert np.abs(found.values["weights"] - true).max() <= heavy.encoding.error_max(3)
    assert np.array_equal(found.values["counts"], sum(one["counts"] for one in values.values()))


def test_the_masked_vector_shows_nothing_of_zeros(adversary: Adversary):
    """A crude look at the mask: of zeros, half of the bits are set, and no two sites' vectors agree anywhere."""
    adversary.values = {
        name: {key: np.zeros_like(value) for key, value in one.items()} for name, one in adversary.values.items()
    }
    advance(adversary, 2)
    vectors = [masked.vector for masked in adversary.masked.values()]
    bits = np.unpackbits(np.concatenate(vectors).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(bits))
    assert len(np.unique(np.concatenate(vectors))) == 4 * adversary.manifest.length
