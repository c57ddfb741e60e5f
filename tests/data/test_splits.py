from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.data.splits import independent_split, read_splits, stratified_split
from momkd_fl.errors import UserError

_LABELS = st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=5), st.integers(0, 2), max_size=40)


@given(_LABELS, st.floats(0.05, 0.95), st.integers(0, 5), st.randoms())
def test_split_is_stratified_and_ignores_row_order(labels, fraction, seed, order):
    genomic = {patient for patient in labels if len(patient) % 2}
    split = stratified_split(labels, genomic, fraction, seed)
    assert set(split) == set(labels)
    rows = list(labels.items())
    order.shuffle(rows)
    assert stratified_split(dict(rows), genomic, fraction, seed) == split
    for label in set(labels.values()):
        members = [patient for patient in labels if labels[patient] == label]
        kept = [patient for patient in members if split[patient] == "validation"]
        if len(members) == 1:
            assert kept == []
        else:
            assert 1 <= len(kept) < len(members)
            assert abs(len(kept) - fraction * len(members)) <= 1
            share = len(kept) * sum(patient in genomic for patient in members) / len(members)
            assert abs(sum(patient in genomic for patient in kept) - share) <= 0.5


@given(_LABELS, st.text(string.ascii_letters, min_size=1, max_size=5), st.floats(0.05, 0.95), st.integers(0, 5))
def test_an_independent_split_moves_nobody_when_a_patient_joins(labels, newcomer, fraction, seed):
    before = independent_split([patient for patient in labels if patient != newcomer], fraction, seed)
    after = independent_split([*labels, newcomer], fraction, seed)
    assert {patient: split for patient, split in after.items() if patient != newcomer} == before


def test_control_a_stratified_split_moves_others_when_a_patient_joins():
    labels = {f"p{number}": 0 for number in range(7)}
    splits = [stratified_split({**labels, f"q{number}": 0}, (), 0.2, 0) for number in range(40)]
    alone = stratified_split(labels, (), 0.2, 0)
    assert any(split[patient] != alone[patient] for split in splits for patient in labels)


def test_an_independent_split_keeps_its_fraction():
    split = independent_split([f"p{number}" for number in range(4000)], 0.2, 1)
    assert sum(each == "validation" for each in split.values()) / 4000 == pytest.approx(0.2, abs=0.02)


def test_seed_changes_the_split():
    labels = {f"p{number}": number % 2 for number in range(60)}
    assert stratified_split(labels, (), 0.2, 0) != stratified_split(labels, (), 0.2, 1)


def _read(path, patients=("a", "b")):
    with pytest.raises(UserError) as error:
        read_splits(path, patients)
    return error.value.code, error.value.sentence


def test_a_site_may_bring_its_own(tmp_path, write_table):
    rows = [("patient", "split"), ("a", "train"), ("b", "validation"), ("a", "train"), ("other", "train")]
    path = write_table(tmp_path / "s.csv", rows)
    assert read_splits(path, ["b", "a"]) == {"a": "train", "b": "validation"}


def test_patient_in_two_splits_names_the_rows(tmp_path, write_table):
    rows = [("patient", "split"), ("a", "train"), ("b", "train"), ("a", "validation")]
    code, sentence = _read(write_table(tmp_path / "s.csv", rows))
    assert code == "split-conflict"
    assert "rows 2 and 4" in sentence
    assert "'a'" in sentence


def test_patients_without_a_split_and_splits_without_meaning(tmp_path, write_table):
    code, sentence = _read(write_table(tmp_path / "s.csv", [("patient", "split"), ("a", "train")]))
    assert (code, "'b'" in sentence) == ("split-missing", True)
    code, sentence = _read(write_table(tmp_path / "s.csv", [("patient", "split"), ("a", "test")]))
    assert (code, "row 2" in sentence) == ("split-value", True)


def test_all_rows_that_are_wrong_are_listed(tmp_path, write_table):
    rows = [("patient", "split"), ("a", "train"), ("b", "train"), ("a", "validation"), ("b", "validation")]
    code, sentence = _read(write_table(tmp_path / "s.csv", rows))
    assert code == "split-conflict"
    assert "rows 2 and 4: patient 'a'; rows 3 and 5: patient 'b'" in sentence
    code, sentence = _read(write_table(tmp_path / "s.csv", [("patient", "split"), ("a", "test"), ("b", "Train")]))
    assert (code, "row 2: 'test'; row 3: 'Train'" in sentence) == ("split-value", True)
