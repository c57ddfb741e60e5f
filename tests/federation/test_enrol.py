"""The handshake before round 1: who differs in what, what follows, and that the report says it."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

from momkd_fl.data.fingerprint import joined
from momkd_fl.errors import UserError
from momkd_fl.evaluation.report import html
from momkd_fl.evaluation.results_file import from_json, to_csv, to_json
from momkd_fl.federation.coordinator import Coordinator, Outcome
from momkd_fl.federation.enrol import call_roll
from momkd_fl.federation.outcome import Circumstances, results_of
from momkd_fl.federation.watch import unwatched

MEMBERS = {"ash": "train", "birch": "train", "cedar": "train"}
ROUNDS = {"count": 1, "quorum": 1, "deadline_s": 5.0, "gather_s": 0.01}


def states(consortium: Any, site: str, **fields: Any) -> None:
    """Have a site state other fields in its fingerprint."""
    participant = consortium.participants[site]
    read = participant.load

    def load(federation: Any) -> Any:
        cohort, fingerprint = read(federation)
        return cohort, dataclasses.replace(fingerprint, **fields)

    participant.load = load


def roll_of(consortium: Any, members: Any = None, sites: Any = None) -> Any:
    return call_roll(consortium.grid(), consortium.config, "r", sites or set(consortium.participants), members)


def run(consortium: Any, grid: Any = None) -> Outcome:
    watch = unwatched(consortium.config)
    outcome = Coordinator(consortium.config, grid or consortium.grid(), watch, threading.Event(), lambda: {}).run()
    assert outcome is not None
    return outcome


@pytest.mark.parametrize(
    ("field", "here", "there"),
    [
        ("magnification", 40.0, 20.0),
        ("preparation", "frozen", "ffpe"),
        ("class_names", joined(["PR positive", "PR negative"]), joined(["PR negative", "PR positive"])),
        ("gene_scale", "zscore", "log2tpm"),
    ],
)
def test_a_field_that_must_match_keeps_the_site_out_and_names_both(in_process, field, here, there) -> None:
    consortium = in_process(MEMBERS, rounds=ROUNDS)
    states(consortium, "ash", **{field: there})
    states(consortium, "cedar", **{field: here})
    roll = roll_of(consortium)
    assert set(roll.accepted) == {"ash", "birch"}
    assert roll.refused["cedar"].code == "fingerprint-mismatch"
    for part in ("site cedar", f"'{field}'", str(here), str(there)):
        assert part in roll.refused["cedar"].sentence
    assert roll.warnings == []


@pytest.mark.parametrize("field", ["scanner", "definition", "preprocessing", "software"])
def test_a_field_that_only_warns_does_so_unless_the_federation_says_otherwise(in_process, field) -> None:
    for level, kept in (("warn", True), ("must", False), ("ignore", True)):
        consortium = in_process(MEMBERS, rounds=ROUNDS, fingerprint={field: level})
        for site in MEMBERS:
            states(consortium, site, **{field: "one" if site != "cedar" else "another"})
        roll = roll_of(consortium)
        assert ("cedar" in roll.accepted) is (kept and (field != "software" or level != "must"))
        told = [(one.site, one.field) for one in roll.differing]
        assert (("cedar", field) in told) is (level != "ignore")


def test_what_is_required_must_be_stated(in_process) -> None:
    consortium = in_process(MEMBERS, rounds=ROUNDS, fingerprint={"scanner": "required", "gene_scale": "required"})
    states(consortium, "ash", scanner="GT450")
    states(consortium, "birch", scanner="GT450")  # it has no genomics, so no scale to state
    roll = roll_of(consortium)
    assert set(roll.accepted) == {"ash", "birch"}
    assert roll.refused["cedar"].code == "fingerprint-unstated"
    assert "data.scanner" in roll.refused["cedar"].sentence


def test_the_federation_s_own_word_counts_before_any_site_s(in_process) -> None:
    consortium = in_process(
        MEMBERS,
        rounds=ROUNDS,
        class_names=["PR negative", "PR positive"],
        encoder={"name": "synthetic-16", "dim": 16, "magnification": 20},
    )
    states(consortium, "ash", magnification=40.0)
    states(consortium, "birch", class_names=joined(["pr negative", "PR  positive"]))
    states(consortium, "cedar", class_names=joined(["negative", "positive"]))
    roll = roll_of(consortium)
    assert set(roll.accepted) == {"birch"}
    assert "'magnification'" in roll.refused["ash"].sentence
    assert "'class_names'" in roll.refused["cedar"].sentence


def test_what_the_federation_states_and_a_site_does_not_is_a_warning_unless_ignored(in_process) -> None:
    encoder = {"name": "synthetic-16", "dim": 16, "magnification": 20}
    consortium = in_process(MEMBERS, rounds=ROUNDS, encoder=encoder)
    states(consortium, "ash", magnification=20.0)
    roll = roll_of(consortium)
    assert set(roll.accepted) == set(MEMBERS)
    assert [(one.site, one.field, one.here) for one in roll.differing] == [
        ("birch", "magnification", None),
        ("cedar", "magnification", None),
    ]
    assert "site birch: field 'magnification' is not stated" in roll.warnings[0]
    silent = in_process(MEMBERS, rounds=ROUNDS, encoder=encoder, fingerprint={"magnification": "ignore"})
    assert roll_of(silent).differing == []


def test_a_site_that_is_kept_out_is_no_measure_for_the_others(in_process) -> None:
    consortium = in_process(MEMBERS, rounds=ROUNDS, encoder={"name": "synthetic-16", "dim": 16, "magnification": 20})
    states(consortium, "ash", magnification=40.0, preparation="frozen")
    states(consortium, "birch", preparation="ffpe")
    states(consortium, "cedar", preparation="ffpe")
    assert set(roll_of(consortium).accepted) == {"birch", "cedar"}


def test_who_comes_late_is_compared_with_those_who_are_in(in_process) -> None:
    consortium = in_process(MEMBERS, rounds=ROUNDS)
    for site in ("ash", "birch"):
        states(consortium, site, preparation="ffpe")
    states(consortium, "cedar", preparation="frozen")
    first = roll_of(consortium, sites={"ash", "birch"})
    members = {site: hello.model_dump() for site, hello in first.accepted.items()}
    assert set(roll_of(consortium, sites={"cedar"}).accepted) == {"cedar"}
    assert "'preparation'" in roll_of(consortium, members, {"cedar"}).refused["cedar"].sentence


def test_what_the_site_finds_itself_is_named_by_its_field(in_process) -> None:
    consortium = in_process(MEMBERS, rounds=ROUNDS)

    def other_dim(federation: Any) -> Any:
        raise UserError("dim-mismatch", "/home/somebody/features: 512 dimensions.")

    consortium.participants["cedar"].load = other_dim
    (found,) = roll_of(consortium).differing
    assert (found.site, found.field, found.here, found.federation, found.stopped) == ("cedar", "dim", None, "16", True)


def test_the_report_and_the_results_name_site_and_field(in_process) -> None:
    consortium = in_process({**MEMBERS, "holly": "evaluate"}, rounds=ROUNDS)
    states(consortium, "ash", scanner="GT450", preparation="ffpe")
    states(consortium, "birch", scanner="<b>AT2</b>")
    states(consortium, "cedar", preparation="frozen")
    outcome = run(consortium)
    results = results_of(consortium.config, outcome, Circumstances("federation", 1.0, 1.0))
    told = {(one.site, one.field, one.here, one.federation, one.stopped) for one in results.differing}
    assert told == {
        ("birch", "scanner", "<b>AT2</b>", "GT450", False),
        ("cedar", "preparation", "frozen", "ffpe", True),
    }
    assert from_json(to_json(results), "here") == results
    assert "fingerprint,,,cedar,,preparation,frozen,,,stopped" in to_csv(results)
    page = html(results)
    for part in ("Where hospitals differ", "preparation", "frozen", "kept out", "scanner", "&lt;b&gt;AT2"):
        assert part in page


def test_warnings_are_in_the_results_of_a_run_that_was_resumed(in_process, tmp_path) -> None:
    consortium = in_process(MEMBERS, root=tmp_path, rounds={**ROUNDS, "count": 2})
    for site in MEMBERS:
        states(consortium, site, scanner=site)
    stop, grid = threading.Event(), consortium.grid()

    def answers(kind: str, number: int, site: str) -> bool:
        if kind == "train" and number == 2:
            stop.set()
        return True

    grid.answers = answers
    watch = unwatched(consortium.config)
    assert Coordinator(consortium.config, grid, watch, stop, lambda: {}).run() is None
    found = run(consortium).differing
    assert [(one.site, one.field, one.federation) for one in found] == [
        ("birch", "scanner", "ash"),
        ("cedar", "scanner", "ash"),
    ]
