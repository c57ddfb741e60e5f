from __future__ import annotations

import csv
import datetime
import string
import warnings
import zipfile

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.config.site import LabelTable, TaskLabels
from momkd_fl.data import tables_xlsx
from momkd_fl.data.tables import read_labels, read_table
from momkd_fl.errors import UserError


def _workbook(path, rows, title="Sheet", **others):
    book = openpyxl.Workbook()
    for name, content in {title: rows, **others}.items():
        sheet = book.active if name == title else book.create_sheet()
        sheet.title = name
        for row in content:
            sheet.append(row)
    book.save(path)
    return path


def _refused(code, call):
    with pytest.raises(UserError) as error:
        call()
    assert error.value.code == code
    return error.value.sentence


def test_cells_become_the_text_of_an_export(tmp_path):
    day = datetime.datetime(2024, 1, 31)
    rows = [("id", "x"), (1.0, True), (17, 0.1 + 0.2), (2.5, day), ("007", None), (None, None), (-3.0, " a ")]
    table = read_table(_workbook(tmp_path / "t.xlsx", rows))
    assert table.rows == (
        (2, ["1", "TRUE"]),
        (3, ["17", "0.3"]),
        (4, ["2.5", "2024-01-31"]),
        (5, ["007", ""]),
        (7, ["-3", "a"]),
    )


def test_numbers_as_ids_and_labels(tmp_path):
    path = _workbook(tmp_path / "t.xlsx", [("Patient ID", "PR"), (101.0, 1.0), (102, 0), (103.0, None)])
    labels = read_labels(LabelTable(path=path), TaskLabels(column="PR", positive=["1"], negative=["0"]))
    assert labels.by_patient == {"101": 1, "102": 0}
    assert labels.rows == {"101": (2,), "102": (3,), "103": (4,)}
    assert any("'Patient ID'" in note for note in labels.notes)


def test_the_first_sheet_unless_another_is_named(tmp_path):
    path = _workbook(tmp_path / "t.xlsx", [("patient",), ("a",)], "One", Two=[("patient",), ("b",)])
    first = read_table(path)
    assert first.rows == ((2, ["a"]),)
    assert any("2 sheets" in note and "'One'" in note for note in first.notes)
    second = read_table(path, "Two")
    assert (second.rows, second.notes) == (((2, ["b"]),), ())
    assert "One, Two" in _refused("sheet-unknown", lambda: read_table(path, "Three"))
    (tmp_path / "t.csv").write_text("patient\na\n")
    _refused("sheet-no-workbook", lambda: read_table(tmp_path / "t.csv", "One"))


def test_a_formula_never_computed_names_its_cell(tmp_path):
    path = _workbook(tmp_path / "t.xlsx", [("patient", "PR"), ("a", "1"), (None, None), ("b", "=1-1")])
    assert "cell B4" in _refused("table-formula", lambda: read_table(path))
    path = _workbook(tmp_path / "blank.xlsx", [("patient", "PR"), ("a", "1"), ("=A2", "=B2")])
    assert "cell A3" in _refused("table-formula", lambda: read_table(path))


def test_a_formula_with_an_empty_result_is_an_empty_cell(tmp_path):
    path = _workbook(tmp_path / "t.xlsx", [("patient", "PR"), ("a", '=IF(1=1,"","x")')])
    _replace_in_sheet(path, b'<c r="B2">', b'<c r="B2" t="str">')
    assert read_table(path).rows == ((2, ["a", ""]),)


def _replace_in_sheet(path, old, new):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    assert old in parts[name]
    parts[name] = parts[name].replace(old, new)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)


def test_cells_beyond_the_header(tmp_path):
    path = _workbook(tmp_path / "t.xlsx", [("patient", "PR"), ("a", "1", None, None), ("b", "0", None, "note")])
    assert "row 3" in _refused("table-row-length", lambda: read_table(path))


def test_hostile_and_damaged_workbooks(tmp_path, monkeypatch):
    (tmp_path / "no.xlsx").write_bytes(b"patient,PR\n")
    _refused("table-unreadable", lambda: read_table(tmp_path / "no.xlsx"))
    (tmp_path / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100))
    assert "old or password" in _refused("table-unreadable", lambda: read_table(tmp_path / "old.xls"))
    with zipfile.ZipFile(tmp_path / "zip.xlsx", "w") as archive:
        archive.writestr("readme", "no workbook")
    _refused("table-unreadable", lambda: read_table(tmp_path / "zip.xlsx"))
    path = _workbook(tmp_path / "t.xlsx", [("patient",), ("a",)])
    path.rename(tmp_path / "t.csv")
    assert ".xlsx" in _refused("table-unreadable", lambda: read_table(tmp_path / "t.csv"))
    path = _workbook(tmp_path / "cut.xlsx", [("patient",), ("a",)])
    _replace_in_sheet(path, b"</sheetData>", b"")
    _refused("table-unreadable", lambda: read_table(path))
    path = _workbook(tmp_path / "far.xlsx", [("patient",), ("a",)])
    _replace_in_sheet(path, b'<row r="2">', b'<row r="99999999999">')
    _refused("table-unreadable", lambda: read_table(path))
    path = _workbook(tmp_path / "bomb.xlsx", [("patient",), ("a",)])
    _replace_in_sheet(path, b"</sheetData>", b" " * 2_000_000 + b"</sheetData>")
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(tables_xlsx, "LARGEST_BYTES", 1_000_000)
    _refused("table-too-large", lambda: read_table(path))


def test_entities_do_not_grow(tmp_path):
    path = _workbook(tmp_path / "t.xlsx", [("patient",), ("a",)])
    bomb = b"".join(b'<!ENTITY e%d "%s">' % (n, b"&e%d;" % (n - 1) * 10) for n in range(1, 10))
    _replace_in_sheet(path, b"<worksheet", b'<!DOCTYPE w [<!ENTITY e0 "aaaaaaaaaa">' + bomb + b"]><worksheet")
    _replace_in_sheet(path, b"<sheetData>", b"<x>&e9;</x><sheetData>")
    _refused("table-unreadable", lambda: read_table(path))


_CELLS = st.text(string.ascii_letters + "0159,;\t\"'\n .=-é漢", max_size=6)


@given(st.lists(st.tuples(_CELLS, _CELLS, _CELLS), max_size=8))
def test_csv_tsv_and_xlsx_read_the_same(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("t")
    rows = [("patient", "PR\nstatus", "a, b; c"), *rows]
    for name, separator in (("t.csv", ","), ("t.tsv", "\t"), ("s.csv", ";")):
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=separator).writerows(rows)
    book = openpyxl.Workbook(write_only=False)
    for number, row in enumerate(rows, 1):
        for place, text in enumerate(row, 1):
            cell = book.active.cell(number, place, text)
            cell.data_type = "s"  # '=1' is text here, no formula
    book.save(folder / "t.xlsx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = [read_table(folder / name) for name in ("t.csv", "t.tsv", "s.csv", "t.xlsx")]
    expected = tuple(
        (number, [text.strip() for text in row])
        for number, row in enumerate(rows[1:], 2)
        if any(text.strip() for text in row)
    )
    for table in read:
        assert table.columns == ("patient", "PR\nstatus", "a, b; c")
        assert table.rows == expected
