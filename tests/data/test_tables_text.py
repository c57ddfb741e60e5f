from __future__ import annotations

import gzip

import pytest

from momkd_fl.data.tables import read_table
from momkd_fl.data.tables_text import separator_of
from momkd_fl.errors import UserError


def _refused(path):
    with pytest.raises(UserError) as error:
        read_table(path)
    assert error.value.code == "table-unreadable"
    assert str(path) in error.value.sentence
    return error.value.sentence


@pytest.mark.parametrize(
    ("header", "separator"),
    [("a,b", ","), ("a\tb", "\t"), ("a;b", ";"), ('"a,b,c";d', ";"), ("a", ","), ('"a;b\n', ",")],
)
def test_separators_inside_quotes_do_not_count(header, separator):
    assert separator_of(header) == separator


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes("patient\tPR\na\t1\n".encode(encoding))
    assert "UTF-16" in _refused(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_latin1_names_the_line(tmp_path, name):
    content = ("patient,PR\n" + "a,1\n" * 5000 + "Müller,1\n").encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert "line 5002" in _refused(tmp_path / name)


def test_a_quote_that_is_never_closed_swallows_nothing(tmp_path):
    (tmp_path / "t.csv").write_text('patient,PR\na,1\nb,"0\nc,1\nd,0\n')
    assert "row 3" in _refused(tmp_path / "t.csv")


def test_rows_count_as_in_a_spreadsheet(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbf"patient\nid",PR\r\n"a\nb",1\r\n\r\nc,0\r\n')
    table = read_table(tmp_path / "t.csv")
    assert table.columns == ("patient\nid", "PR")
    assert table.rows == ((2, ["a\nb", "1"]), (4, ["c", "0"]))


def test_a_cut_archive(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"patient,PR\n" + b"a,1\n" * 5000)[:-12])
    _refused(tmp_path / "t.csv.gz")
