from __future__ import annotations

from pathlib import Path

from momkd_fl.data.orphans import Orphans, find_orphans
from momkd_fl.data.slides import read_links
from momkd_fl.data.tables import read_labels


def _orphans(site, slides):
    labels = read_labels(site.data.labels, site.data.tasks["PR"])
    links = read_links(site.data, labels.patients, slides)
    return find_orphans(labels, links, {slide: Path(f"{slide}.h5") for slide in slides})


def test_every_kind_is_named_with_its_row(tmp_path, write_table, make_site):
    rows = [
        ("case_id", "slide_id", "PR"),
        ("a", "a1", "pos"),
        ("b", "b1.svs", "neg"),
        ("b", "b2", "neg"),
        ("c", "", ""),
    ]
    write_table(tmp_path / "alpha" / "labels.csv", rows)
    found = _orphans(make_site(), ["a1", "b2", "zz"])
    assert found.patients_without_slides == (("c", 5),)
    assert found.slides_without_file == (("b1", 3),)
    assert found.slides_without_patient == ("zz",)
    assert found.hints == ()
    said = "\n".join(found.lines())
    assert "'c' (row 5)" in said
    assert "'b1' (row 3)" in said
    assert "'zz'" in said


def test_near_misses_are_hinted_and_not_matched(tmp_path, write_table, make_site):
    write_table(tmp_path / "alpha" / "labels.csv", [("patient", "PR"), ("P1", "pos"), ("7", "neg"), ("8", "")])
    found = _orphans(make_site(), ["p1-DX1", "007_a", "7-x", "P 1"])
    assert [patient for patient, _ in found.patients_without_slides] == ["8", "P1"]
    assert found.slides_without_patient == ("007_a", "P 1", "p1-DX1")
    assert set(found.hints) == {
        "'p1' differs from 'P1' only in case",
        "'P 1' differs from 'P1' only in blanks",
        "'007' differs from '7' only in leading zeros",
    }


def test_near_misses_of_slides_and_of_patients_of_a_slide_table(tmp_path, write_table, make_site):
    write_table(tmp_path / "alpha" / "labels.csv", [("patient", "PR"), ("P1", "pos"), ("2", "neg")])
    table = write_table(tmp_path / "s.csv", [("PATIENT", "FILENAME"), ("P1", "P1-DX1.svs"), ("2.0", "q")])
    found = _orphans(make_site(slides={"path": table}), ["p1-dx1", "q"])
    assert found.hints == (
        "'p1-dx1' differs from 'P1-DX1' only in case",
        "'2.0' differs from '2' only in a decimal '.0'",
    )
    assert found.slides_without_file == (("P1-DX1", 2),)
    assert found.slides_without_patient == ("p1-dx1", "q")


def test_lines_are_few():
    many = Orphans(tuple((f"p{number}", number) for number in range(2, 15)), (), ())
    (line,) = many.lines(limit=3)
    assert (
        line == "13 patient(s) of the label table have no feature file: 'p2' (row 2), 'p3' (row 3), 'p4' (row 4), "
        "and 10 more."
    )
    assert Orphans((), (), ()).lines() == []
