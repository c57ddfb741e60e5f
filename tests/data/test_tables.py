from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.config.site import LabelTable, TaskLabels
from momkd_fl.data.tables import canonical_value, class_of_value, read_labels, read_table
from momkd_fl.errors import UserError

PR = TaskLabels(column="PR", positive=["1"], negative=["0"])


def _labels(path, task=PR, patient="patient"):
    return read_labels(LabelTable(path=path, patient=patient), task)


def _refused(code, call):
    with pytest.raises(UserError) as error:
        call()
    assert error.value.code == code
    return error.value.sentence


def test_labels_by_patient_and_everything_else_counted(tmp_path, write_table):
    rows = [("patient", "PR"), ("a", "1.0"), ("b", "0"), ("c", ""), ("d", "equivocal"), ("e", "equivocal"), ("f", "2")]
    labels = _labels(write_table(tmp_path / "labels.csv", rows))
    assert labels.by_patient == {"a": 1, "b": 0}
    assert labels.excluded == {"(missing)": 1, "2": 1, "equivocal": 2}
    assert labels.patients == ("a", "b", "c", "d", "e", "f")


def test_more_than_two_classes(tmp_path, write_table):
    task = TaskLabels(column="HER2", classes=[["0", "1+"], ["2+"], ["3+"]])
    path = write_table(tmp_path / "l.csv", [("patient", "HER2"), ("a", "3+"), ("b", "1+"), ("c", "2+"), ("d", "?")])
    assert _labels(path, task).by_patient == {"a": 2, "b": 0, "c": 1}


@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.csv.gz"])
@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_separators_and_compression(tmp_path, write_table, name, separator):
    path = write_table(tmp_path / name, [("patient", "PR", "note"), ("a", "1", "x"), ("b", "0", "y")], separator)
    assert _labels(path).by_patient == {"a": 1, "b": 0}


def test_blank_lines_and_byte_order_mark_keep_row_numbers(tmp_path):
    path = tmp_path / "l.csv"
    path.write_bytes("\ufeffpatient,PR\r\na,1\r\n\r\n , \r\nb,0\r\n".encode())
    assert [number for number, _ in read_table(path).rows] == [2, 5]
    assert _labels(path).by_patient == {"a": 1, "b": 0}


def test_clam_rows_of_one_patient_agree(tmp_path, write_table):
    rows = [("case_id", "slide_id", "PR"), ("a", "a1", "1"), ("a", "a2", "1.0"), ("b", "b1", ""), ("b", "b2", "0")]
    assert _labels(write_table(tmp_path / "l.csv", rows), patient="case_id").by_patient == {"a": 1, "b": 0}


@pytest.mark.parametrize(("one", "two"), [("1", "0"), ("1", "equivocal"), ("equivocal", "0"), ("x", "y")])
def test_conflicting_rows_are_named(tmp_path, write_table, one, two):
    rows = [("patient", "PR"), ("z", "1"), ("a", one), ("b", "0"), ("a", ""), ("a", two)]
    sentence = _refused("label-conflict", lambda: _labels(write_table(tmp_path / "l.csv", rows)))
    assert "rows 3 and 6" in sentence
    assert "'a'" in sentence


def test_two_values_of_one_class_do_not_conflict(tmp_path, write_table):
    task = TaskLabels(column="HER2", positive=["2+", "3+"], negative=["0"])
    path = write_table(tmp_path / "l.csv", [("patient", "HER2"), ("a", "2+"), ("a", "3+"), ("b", "0")])
    assert _labels(path, task).by_patient == {"a": 1, "b": 0}


def test_no_row_has_a_configured_value(tmp_path, write_table):
    path = write_table(tmp_path / "l.csv", [("patient", "PR"), ("a", "positive"), ("b", "negative"), ("c", "")])
    sentence = _refused("label-values-unknown", lambda: _labels(path))
    for word in (str(path), "'positive'", "'negative'", "'(missing)'", "'1'", "'0'", "'PR'"):
        assert word in sentence


def test_unknown_column_names_the_nearest(tmp_path, write_table):
    path = write_table(tmp_path / "l.csv", [("Patient", "PR_status"), ("a", "1")])
    assert "did you mean 'Patient'" in _refused("column-unknown", lambda: _labels(path))
    sentence = _refused("column-unknown", lambda: _labels(path, patient="Patient"))
    assert "did you mean 'PR_status'" in sentence


def test_column_twice(tmp_path, write_table):
    path = write_table(tmp_path / "l.csv", [("patient", "PR", "PR"), ("a", "1", "0")])
    _refused("column-twice", lambda: _labels(path))


def test_rows_that_are_not_whole(tmp_path, write_table):
    path = write_table(tmp_path / "l.csv", [("patient", "PR"), ("a", "1"), ("b", "0", "extra")])
    assert "row 3" in _refused("table-row-length", lambda: _labels(path))
    path = write_table(tmp_path / "l.csv", [("patient", "PR"), ("", "1")])
    assert "row 2" in _refused("patient-id-empty", lambda: _labels(path))


def test_files_that_are_no_tables(tmp_path):
    _refused("table-missing", lambda: read_table(tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes("patient,PR\nMüller,1\n".encode("latin-1"))
    _refused("table-unreadable", lambda: read_table(tmp_path / "latin.csv"))
    (tmp_path / "no.csv.gz").write_bytes(b"patient,PR\n")
    _refused("table-unreadable", lambda: read_table(tmp_path / "no.csv.gz"))
    (tmp_path / "void.csv").touch()
    _refused("table-empty", lambda: read_table(tmp_path / "void.csv"))


def test_a_value_in_two_classes():
    _refused("label-value-twice", lambda: class_of_value(TaskLabels(column="x", positive=["1"], negative=["1.0"])))


@pytest.mark.parametrize(
    ("value", "expected"), [("1.0", "1"), ("1", "1"), ("-1.00", "-1"), ("1.5", "1.5"), ("01", "01"), ("1.0a", "1.0a")]
)
def test_numbers_as_exports_write_them(value, expected):
    assert canonical_value(value) == expected


_VALUES = st.sampled_from(["1", "0", "1.0", "", "equivocal", "n/a"])


@given(st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=4), _VALUES, min_size=1), st.randoms())
def test_every_patient_is_labelled_or_counted(tmp_path_factory, write_table, values, order):
    values = {"known": "1", **values}
    rows = list(values.items())
    order.shuffle(rows)
    labels = _labels(write_table(tmp_path_factory.mktemp("t") / "l.csv", [("patient", "PR"), *rows]))
    assert len(labels.by_patient) + sum(labels.excluded.values()) == len(values)
    assert labels.by_patient == {
        patient: int(float(value)) for patient, value in values.items() if value in ("1", "0", "1.0")
    }


def test_all_conflicts_are_listed_up_to_ten(tmp_path, write_table):
    rows = [(f"p{number:02d}", value) for number in range(12) for value in ("1", "0")]
    sentence = _refused("label-conflict", lambda: _labels(write_table(tmp_path / "l.csv", [("patient", "PR"), *rows])))
    assert "12 patient(s)" in sentence
    assert "rows 20 and 21: patient 'p09'" in sentence
    assert "and 2 more" in sentence
    assert "p10" not in sentence


def test_repeated_rows_are_counted_and_named(tmp_path, write_table):
    rows = [("patient", "PR", "age"), ("a", "1", "50"), ("b", "0", "60"), ("a", "1", "50"), ("b", "0", "61")]
    labels = _labels(write_table(tmp_path / "l.csv", rows))
    assert labels.duplicates == 1
    assert "row 4 (as row 2)" in labels.notes[0]
    assert labels.rows == {"a": (2, 4), "b": (3, 5)}
    assert labels.by_patient == {"a": 1, "b": 0}


@pytest.mark.parametrize("column", ["patient", "PATIENT", "case_id", "Patient ID", "Case ID"])
def test_customary_columns_are_found(tmp_path, write_table, column):
    path = write_table(tmp_path / "l.csv", [("age", column, "PR"), ("5", "a", "1"), ("6", "b", "0")])
    labels = read_labels(LabelTable(path=path), PR)
    assert labels.by_patient == {"a": 1, "b": 0}
    assert len(labels.notes) == (column != "patient")


def test_columns_that_are_not_clear(tmp_path, write_table):
    path = write_table(tmp_path / "l.csv", [("case_id", "PATIENT", "PR"), ("x", "a", "1")])
    sentence = _refused("column-ambiguous", lambda: read_labels(LabelTable(path=path), PR))
    assert "'case_id', 'PATIENT'" in sentence
    assert _labels(path, patient="case_id").by_patient == {"x": 1}
    path = write_table(tmp_path / "l.csv", [("name", "PR"), ("x", "1")])
    assert "name, PR" in _refused("column-not-found", lambda: read_labels(LabelTable(path=path), PR))


def test_an_error_value_is_no_patient(tmp_path, write_table):
    path = write_table(tmp_path / "l.csv", [("patient", "PR"), ("#N/A", "1"), ("b", "0"), ("", "1")])
    assert "rows 2 and 4" in _refused("patient-id-empty", lambda: _labels(path))


@pytest.mark.parametrize(("value", "expected"), [("1,0", "1"), ("1,00", "1"), ("1,000", "1,000"), ("1,", "1,")])
def test_decimal_commas(value, expected):
    assert canonical_value(value) == expected
