"""The list of withdrawn patients, and a cohort without them."""

from __future__ import annotations

import stat
from datetime import date
from pathlib import Path

import pytest

from momkd_fl.data.bags import find_bags
from momkd_fl.data.ingest import ingest
from momkd_fl.data.load import load_cohort, slides_of
from momkd_fl.data.store import Store
from momkd_fl.data.withdrawal import drop_from_store, read_withdrawn, withdraw, withdrawn_file, without_withdrawn
from momkd_fl.errors import UserError

DAY = date(2026, 3, 1)


def load(site, **options):
    return load_cohort(site, **{"task": "PR", "classes": 2, "neighbours": 4, **options})


def leave(site, patient: str) -> None:
    assert withdraw(withdrawn_file(site), patient, "asked", slides_of(site, patient), DAY)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("patient", ["alpha03", "alpha04", "alpha12", "alpha13"])
def test_a_withdrawn_patient_is_in_no_part_of_the_cohort(hospital, patient: str, independent: bool) -> None:
    site = hospital(genomic=9)
    before = load(site, independent_splits=independent)
    leave(site, patient)
    after = load(site, independent_splits=independent)
    assert patient not in {one.id for one in after.patients}
    others = {one.id: (one.label, one.split) for one in before.patients if one.id != patient}
    assert {one.id: (one.label, one.split) for one in after.patients} == others, "others changed their split"
    gone = {"alpha12": "equivocal", "alpha13": "(missing)"}.get(patient)
    expected = {value: count for value, count in before.exclusions.items() if value != gone}
    assert after.exclusions == expected


def test_the_scaling_is_that_of_the_others(hospital) -> None:
    site = hospital()
    before = load(site).scaling["alpha"]
    leave(site, "alpha00")
    after = load(site).scaling["alpha"]
    assert (before.mean != after.mean).any()


def test_the_list_is_private_durable_and_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "state" / "withdrawn.jsonl"
    assert read_withdrawn(path) == {}
    assert withdraw(path, "p1", "asked", [Path("/a/one.h5")], DAY)
    assert not withdraw(path, "p1", "again", [], DAY)
    assert withdraw(path, "p2", "", [], DAY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read_withdrawn(path)
    assert list(found) == ["p1", "p2"]
    assert (found["p1"].day, found["p1"].reason, found["p1"].slides) == ("2026-03-01", "asked", ("/a/one.h5",))


def test_a_line_that_was_cut_off_names_nobody_and_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "withdrawn.jsonl"
    withdraw(path, "p1", "", [], DAY)
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole.replace(b"p1", b"p12")[:cut])
        assert list(read_withdrawn(path)) == ["p1"]
    assert withdraw(path, "p2", "", [], DAY)
    assert list(read_withdrawn(path)) == ["p1", "p2"]


@pytest.mark.parametrize("text", [b"no json\n", b"[]\n", b'{"patient": "p"}\n', b'{"slides": []}\n'])
def test_a_list_that_cannot_be_read_stops_everything(hospital, text: bytes) -> None:
    site = hospital()
    leave(site, "alpha00")
    withdrawn_file(site).write_bytes(text)
    with pytest.raises(UserError) as error:
        load(site)
    assert error.value.code == "withdrawals-unreadable"


def test_an_unknown_patient_is_a_sentence(hospital) -> None:
    site = hospital()
    with pytest.raises(UserError) as error:
        slides_of(site, "alpha99")
    assert error.value.code == "withdraw-unknown"
    assert "alpha99" in error.value.sentence


def test_ingested_slides_go_and_do_not_come_back(hospital, tmp_path: Path) -> None:
    site, folder = hospital(), tmp_path / "store"
    bags = find_bags(site.data.features)
    ingest(bags, folder, k=4, format=None, progress=lambda *_: None)
    slides = slides_of(site, "alpha03")
    (source,) = map(str, slides)
    shard = folder / Store(folder).entries[source].shard
    assert shard.exists()
    leave(site, "alpha03")
    assert drop_from_store(folder, [source]) == 1
    assert not shard.exists()
    assert source not in Store(folder).entries
    assert drop_from_store(folder, [source]) == 0
    ingest(without_withdrawn(bags, withdrawn_file(site)), folder, k=4, format=None, progress=lambda *_: None)
    assert source not in Store(folder).entries
    assert len(Store(folder).entries) == len(bags) - 1
