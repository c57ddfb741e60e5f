"""Rules that every manifest keeps, and a site's policy, line by line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import COUNTS, WEIGHTS

from benchmarks.secagg_round import MODEL, Consortium
from momkd_fl.secagg import refusal
from momkd_fl.secagg.encoding import Encoding
from momkd_fl.secagg.manifest import Manifest, Policy, Segment, least_threshold, read_manifest
from momkd_fl.secagg.refusal import REFUSALS, SecAggError
from momkd_fl.secagg.site import join

Consortia = Callable[[int], Consortium]
GENOMIC = replace(COUNTS, name="genomic", holders=("S00", "S01", "S03"))


def code_of(work: Callable[[], object]) -> str:
    with pytest.raises(SecAggError) as problem:
        work()
    return problem.value.code


@pytest.mark.parametrize(("n", "least"), [(3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (9, 7), (10, 7), (50, 34)])
def test_the_least_threshold(n: int, least: int):
    assert least_threshold(n) == least
    assert 3 * least > 2 * n  # so two signed sets share more honest sites than may be corrupt: 2t - n > n - t


def test_a_manifest_is_read_as_it_was_signed(consortium: Consortia):
    parties = consortium(4)
    manifest = parties.manifest((WEIGHTS, GENOMIC))
    found, digest = read_manifest(
        manifest.signed(parties.coordinator), parties.coordinator.public_key().public_bytes_raw()
    )
    assert found == manifest
    assert found.length == WEIGHTS.length + GENOMIC.length
    again = replace(manifest, model=bytes(32)).signed(parties.coordinator)
    assert read_manifest(again, parties.coordinator.public_key().public_bytes_raw())[1] != digest


def test_only_the_coordinator_signs_manifests(consortium: Consortia):
    parties = consortium(4)
    forged = parties.manifest((WEIGHTS,)).signed(parties.sites["S00"])
    assert code_of(lambda: read_manifest(forged, parties.coordinator.public_key().public_bytes_raw())) == (
        "signature-wrong"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"participants": ("S00", "S01")},
        {"participants": ("S00", "S01", "S01", "S02")},
        {"participants": ("S01", "S00", "S02", "S03")},
        {"participants": tuple(f"X{number:02d}" for number in range(51)), "threshold": 35},
        {"threshold": 2},
        {"threshold": 5},
        {"model": bytes(31)},
        {"round_number": -1},
        {"round_number": 1 << 32},
        {"degree": 3},
        {"segments": ()},
        {"segments": (WEIGHTS, WEIGHTS)},
        {"segments": (replace(WEIGHTS, length=0),)},
        {"segments": (replace(WEIGHTS, length=1 << 29),)},
        {"segments": (replace(WEIGHTS, encoding=Encoding(40, 2.0**21)),)},
        {"segments": (replace(WEIGHTS, name="with space"),)},
        {"segments": (replace(GENOMIC, holders=("S00", "S09", "S01")),)},
        {"segments": (replace(GENOMIC, holders=("S01", "S00", "S02")),)},
        {"run": ""},
    ],
)
def test_a_manifest_that_breaks_a_rule_is_not_signed(consortium: Consortia, change: dict[str, object]):
    manifest: Manifest = replace(consortium(4).manifest((WEIGHTS, GENOMIC)), **change)
    assert code_of(lambda: manifest.signed(consortium(4).coordinator)) == "manifest-invalid"


def test_more_than_fifty_sites_need_neighbours(consortium: Consortia):
    participants = tuple(f"S{number:02d}" for number in range(51))
    manifest = replace(consortium(4).manifest((WEIGHTS,)), participants=participants, threshold=35)
    for degree, sound in ((0, False), (2, False), (11, False), (10, True), (50, True), (51, False)):
        one = replace(manifest, degree=degree)
        if sound:
            one.check()
        else:
            assert code_of(one.check) == "manifest-invalid"


@pytest.mark.parametrize(
    ("policy", "manifest", "code"),
    [
        ({}, {}, None),
        ({"runs": frozenset({"another"})}, {}, "run-not-allowed"),
        ({"last_round": 0}, {}, None),
        ({"last_round": 1}, {}, "round-not-rising"),
        ({"last_round": 2}, {}, "round-not-rising"),
        ({}, {"model": bytes(32)}, "model-differs"),
        ({"site": "S09"}, {}, "site-not-listed"),
        ({"identities": {"S00": bytes(32)}}, {}, "site-not-allowed"),
        ({"pinned": frozenset({"S01", "S02"})}, {}, None),  # and itself: as many as the threshold
        ({"pinned": frozenset({"S01"})}, {}, "pinned-too-few"),
        ({"pinned": frozenset({"S01", "S07"})}, {}, "pinned-too-few"),
        ({"holds": frozenset()}, {}, "holder-false"),
        ({"gated": frozenset({"genomic"})}, {}, None),
        ({"gated": frozenset({"genomic", "weights"})}, {}, "segment-ungated"),
    ],
)
def test_each_line_of_the_policy_denies(
    consortium: Consortia, policy: dict[str, object], manifest: dict[str, object], code: str | None
):
    parties = consortium(4)
    message = replace(parties.manifest((WEIGHTS, GENOMIC)), **manifest).signed(parties.coordinator)
    agreed: Policy = replace(parties.policy("S00", holds=frozenset({"genomic"})), **policy)
    if code is None:
        join(agreed, parties.sites["S00"], message, MODEL)
    else:
        assert code_of(lambda: join(agreed, parties.sites["S00"], message, MODEL)) == code


def test_neighbours_only_must_be_allowed(consortium: Consortia):
    parties = consortium(60)
    message = parties.manifest((WEIGHTS,), degree=12).signed(parties.coordinator)
    refused = code_of(lambda: join(parties.policy("S00"), parties.sites["S00"], message, MODEL))
    assert refused == "pairing-not-allowed"
    join(parties.policy("S00", neighbours_only=True), parties.sites["S00"], message, MODEL)


def test_a_segment_is_released_over_three_counted_holders():
    segment = Segment("x", 1, Encoding(0, 1.0), ("A", "B", "C", "D"))
    everyone = frozenset("ABCDEF")
    assert segment.released(everyone, everyone)
    assert segment.released(everyone - {"D"}, everyone)
    assert not segment.released(everyone - {"D", "C"}, everyone)
    assert not segment.released(everyone, everyone - {"A", "B"})
    assert replace(segment, holders=None).released(frozenset("EFA"), everyone)


def test_a_refusal_has_a_known_code_and_names_the_site():
    problem = SecAggError("share-kind", "S01")
    assert (problem.code, problem.site) == ("share-kind", "S01")
    assert str(problem) == f"S01: {REFUSALS['share-kind']} [share-kind]"
    assert SecAggError("made up").code == "codes-are-closed"


def test_the_codes_are_those_that_are_raised():
    source = "".join(path.read_text("utf-8") for path in Path(refusal.__file__).parent.glob("*.py"))
    raised = set(re.findall(r'SecAggError\("([a-z-]+)"', source))
    assert raised == set(REFUSALS) - {"codes-are-closed"}
