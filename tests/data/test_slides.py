from __future__ import annotations

import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from momkd_fl.data.slides import read_links
from momkd_fl.errors import UserError


@pytest.fixture
def site_by_ids(tmp_path, write_table, make_site):
    """A site whose label table says nothing about slides."""
    write_table(tmp_path / "alpha" / "labels.csv", [("patient", "PR"), ("P1", "pos")])
    return make_site()


def test_slide_column_of_the_label_table(tmp_path, write_table, make_site):
    rows = [("patient", "PR", "slides"), ("a", "pos", "scans/a1.svs; a2"), ("b", "neg", ""), ("c", "neg", "c1")]
    write_table(tmp_path / "alpha" / "labels.csv", rows)
    site = make_site(labels={"path": tmp_path / "alpha" / "labels.csv", "slide": "slides"})
    links = read_links(site.data, ["a", "b", "c"], [])
    assert links.by_patient == {"a": ("a1", "a2"), "c": ("c1",)}
    assert links.rule == "label table"


def test_slide_table(tmp_path, write_table, make_site):
    path = write_table(tmp_path / "slides.csv", [("PATIENT", "FILENAME"), ("a", "x.h5"), ("a", "w.svs"), ("b", "y.h5")])
    links = read_links(make_site(slides={"path": path}).data, ["a", "b"], [])
    assert links.by_patient == {"a": ("w", "x"), "b": ("y",)}
    assert links.rule == "slide table"


def test_a_slide_of_two_patients_names_the_rows(tmp_path, write_table, make_site):
    path = write_table(tmp_path / "slides.csv", [("PATIENT", "FILENAME"), ("a", "x.h5"), ("b", "y"), ("b", "x.svs")])
    with pytest.raises(UserError, match=r"rows 2 and 4.*'x'") as error:
        read_links(make_site(slides={"path": path}).data, ["a", "b"], [])
    assert error.value.code == "slide-two-patients"


def test_ids_match_by_whole_parts(site_by_ids):
    slides = ["P1", "P1-DX1", "P10-DX1", "P1_2", "P1.x", "XP1-DX1", "p1-a", "P2"]
    links = read_links(site_by_ids.data, ["P1", "P2", "P3"], slides)
    assert links.by_patient == {"P1": ("P1", "P1-DX1", "P1.x", "P1_2"), "P2": ("P2",)}
    assert links.rule == "slide ids"


def test_ids_that_could_be_two_patients(site_by_ids):
    with pytest.raises(UserError, match="'P1' or 'P1-2'") as error:
        read_links(site_by_ids.data, ["P1", "P1-2"], ["P1-2-DX1"])
    assert error.value.code == "slide-ambiguous"


_IDS = st.text(string.ascii_letters + string.digits, min_size=1, max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the configuration never changes
@given(st.sets(_IDS, min_size=1), st.lists(st.tuples(_IDS, st.sampled_from(["", "-DX1", "_2", "DX"]))))
def test_a_linked_slide_starts_with_its_patient(site_by_ids, patients, names):
    slides = sorted({f"{stem}{suffix}" for stem, suffix in names})
    links = read_links(site_by_ids.data, patients, slides).by_patient
    for patient, found in links.items():
        assert patient in patients
        assert all(slide == patient or slide[len(patient)] in "-_" for slide in found)
    linked = [slide for found in links.values() for slide in found]
    assert len(linked) == len(set(linked))
    assert {slide for slide in slides if slide in patients} <= set(linked)
