"""Attacks that a defence stops; and that succeed, to the last bit, once the defence is taken out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from adversary import Adversary
from conftest import COUNTS, WEIGHTS, values_of

from benchmarks.secagg_round import MODEL, Consortium
from momkd_fl.secagg import manifest as manifest_module
from momkd_fl.secagg import masking, messages, site, wire
from momkd_fl.secagg.messages import Opening, ShareKind
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.wire import Kind

Consortia = Callable[[int], Consortium]


def started(consortium: Consortium, corrupt: int, segments=(WEIGHTS, COUNTS)) -> Adversary:
    """A round in which the last sites are corrupt, up to the masked vectors."""
    manifest = consortium.manifest(segments)
    wicked = frozenset(manifest.participants[len(manifest.participants) - corrupt :])
    adversary = Adversary(consortium, manifest, wicked, values_of(manifest))
    everyone = manifest.participants
    for name in adversary.honest:
        adversary.send(name, adversary.roster(everyone))
    for name in adversary.honest:
        adversary.send(name, adversary.delivery(name, everyone))
    return adversary


def consent_to(adversary: Adversary, name: str, dropped: set[str]) -> None:
    adversary.send(name, adversary.survivors(set(adversary.manifest.participants) - dropped, dropped))


def refused(code: str, work: Callable[[], object]) -> None:
    with pytest.raises(SecAggError) as problem:
        work()
    assert problem.value.code == code


def test_an_honest_round_reveals_no_set_smaller_than_all(consortium: Consortia):
    adversary = started(consortium(5), 1)
    for name in adversary.honest:
        consent_to(adversary, name, set())
    for name in adversary.honest:
        adversary.send(name, adversary.consents_for(name, adversary.honest))
    assert adversary.revealed(4) == [adversary.honest]  # the corrupt site's own part is known to it
    assert np.array_equal(adversary.sum_of(adversary.honest), adversary.truth(adversary.honest))


# Each honest site is told of other survivors, so that three of them seem dropped to three honest sites each: with
# two corrupt sites' shares, that is the five it takes to recover their mask keys.
SPLIT = {"S00": {"S01", "S02"}, "S01": {"S00", "S02"}, "S02": {"S00", "S01"}, "S03": {"S00", "S01"}, "S04": {"S02"}}


def test_sites_that_were_told_of_other_survivors_notice(consortium: Consortia):
    adversary = started(consortium(7), 2)
    for name, dropped in SPLIT.items():
        consent_to(adversary, name, dropped)
    for name in adversary.honest:
        refused("survivors-differ", lambda name=name: adversary.send(name, adversary.consents_for(name, SPLIT)))
        refused("consents-too-few", lambda name=name: adversary.send(name, adversary.consents_for(name, [name])))
    assert not adversary.revealed(4)


def test_without_consents_the_sum_of_two_sites_comes_out(consortium: Consortia):
    """Control of the test above."""
    adversary = started(consortium(7), 2)
    for name, dropped in SPLIT.items():
        consent_to(adversary, name, dropped)
    for name in adversary.honest:
        state = adversary.states[name]
        lax = replace(state.round, manifest=replace(adversary.manifest, threshold=1))
        adversary.states[name] = replace(state, round=lax)
        adversary.send(name, adversary.consents_for(name, [name]))
    assert adversary.revealed(2) == [("S03", "S04")]
    assert np.array_equal(adversary.sum_of(("S03", "S04")), adversary.truth(("S03", "S04")))


def finish_with_one_dropped(adversary: Adversary) -> None:
    """S00's vector has arrived, but the others are told that it has not."""
    others = adversary.honest[1:]
    for name in others:
        consent_to(adversary, name, {"S00"})
    for name in others:
        adversary.send(name, adversary.consents_for(name, others))


def test_a_vector_that_is_said_to_be_late_keeps_its_own_mask(consortium: Consortia):
    adversary = started(consortium(4), 0)
    finish_with_one_dropped(adversary)
    assert adversary.secret("S00", 0) is not None
    assert adversary.secret("S00", 1) is None
    assert adversary.revealed(2) == []


def test_if_both_kinds_of_share_were_released_it_would_be_bare(consortium: Consortia, monkeypatch: pytest.MonkeyPatch):
    """Control of the test above."""

    def both(here, shares, peer, survivors):
        pieces = [shares[at : at + 33] for at in range(0, len(shares), 33)]
        return Opening(ShareKind.SELF_SEEDS, dict(enumerate(pieces)))

    adversary = started(consortium(4), 0)
    monkeypatch.setattr(site, "_opening", both)
    finish_with_one_dropped(adversary)
    assert ("S00",) in adversary.revealed(1)
    assert np.array_equal(adversary.sum_of(("S00",)), adversary.truth(("S00",)))


def gated_round(consortium: Consortium) -> Adversary:
    """Genomic sums of which the third holder has dropped out."""
    genomic = replace(COUNTS, name="genomic", holders=("S00", "S01", "S02"))
    adversary = started(consortium, 0, (WEIGHTS, genomic))
    others = [name for name in adversary.honest if name != "S02"]
    for name in others:
        consent_to(adversary, name, {"S02"})
    for name in others:
        adversary.send(name, adversary.consents_for(name, others))
    return adversary


def test_a_sum_over_two_holders_stays_masked(consortium: Consortia):
    adversary = gated_round(consortium(5))
    survivors = ("S00", "S01", "S03", "S04")
    assert adversary.revealed(4, 1) == [survivors]
    assert adversary.revealed(4, 2) == []


def test_without_the_least_number_of_holders_it_comes_out(consortium: Consortia, monkeypatch: pytest.MonkeyPatch):
    """Control of the test above: the other two sites mask zeros, so this is the sum over two."""
    monkeypatch.setattr(manifest_module, "HOLDERS_MIN", 2)
    adversary = gated_round(consortium(5))
    survivors = ("S00", "S01", "S03", "S04")
    assert adversary.revealed(4, 2) == [survivors]
    assert np.array_equal(adversary.sum_of(survivors, 2), adversary.truth(("S00", "S01"), 2))


def impostor(adversary: Adversary, victim: str) -> tuple[bytes, bytes]:
    """An announcement in the victim's name with keys that the coordinator made, and its private mask key."""
    private = os.urandom(32)
    commitments = tuple(bytes(32) for _ in adversary.manifest.segments)
    keys = messages.Announcement(masking.public_of(private), masking.public_of(os.urandom(32)), commitments)
    key = adversary.consortium.coordinator
    return wire.close_envelope(Kind.ANNOUNCEMENT, adversary.digest, victim, keys.body(), key), private


def test_a_swapped_key_is_noticed(consortium: Consortia, monkeypatch: pytest.MonkeyPatch):
    manifest = consortium(3).manifest((WEIGHTS,))
    adversary = Adversary(consortium(3), manifest, frozenset(), values_of(manifest))
    forged, private = impostor(adversary, "S01")
    refused("signature-wrong", lambda: adversary.send("S00", adversary.roster(adversary.honest, {"S01": forged})))
    refused("roster-own-changed", lambda: adversary.send("S01", adversary.roster(("S00", "S02"), {})))
    # control: without signatures of sites, S00 shares its mask with the coordinator
    monkeypatch.setattr(wire.Envelope, "verify", lambda envelope, public: None)
    adversary.send("S00", adversary.roster(adversary.honest, {"S01": forged}))
    state = adversary.states["S00"]
    assert isinstance(state, site.Dealt)
    mine = masking.pair_key(private, state.keys["S00"].mask_public, adversary.digest, "S01", "S00")
    assert mine == masking.pair_key(state.mask_private, state.keys["S01"].mask_public, adversary.digest, "S00", "S01")


def test_another_model_for_one_site_is_noticed_before_masking(consortium: Consortia):
    parties = consortium(3)
    manifest = parties.manifest((WEIGHTS,))
    adversary = Adversary(parties, manifest, frozenset(), values_of(manifest))
    other = Adversary(parties, replace(manifest, round_number=2), frozenset(), values_of(manifest))
    mixed = adversary.roster(adversary.honest, {"S01": other.announcements["S01"]})
    refused("manifest-differs", lambda: adversary.send("S00", mixed))
    # and the site itself refuses a manifest over a model that it did not receive
    policy = parties.policy("S00")
    forged = replace(manifest, model=bytes(32)).signed(parties.coordinator)
    refused("model-differs", lambda: site.join(policy, parties.sites["S00"], forged, MODEL))
