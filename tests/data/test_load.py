from __future__ import annotations

import numpy as np
import pytest

from momkd_fl.config.federation import Encoder
from momkd_fl.data.load import load_cohort
from momkd_fl.errors import UserError


def _load(site, **options):
    return load_cohort(site, **{"task": "PR", "classes": 2, "neighbours": 4, **options})


def _refused(code, call):
    with pytest.raises(UserError) as error:
        call()
    assert error.value.code == code
    return error.value.sentence


def test_a_whole_site(hospital):
    cohort = _load(hospital(genomic=9))
    assert (cohort.site, cohort.role, cohort.task, cohort.classes) == ("alpha", "train", "PR", 2)
    assert (cohort.encoder, cohort.dim, cohort.patch_um) == ("house-8", 8, 128.0)
    assert [patient.id for patient in cohort.patients] == sorted(patient.id for patient in cohort.patients)
    assert len(cohort.patients) == 14
    assert cohort.exclusions == {"(missing)": 1, "equivocal": 1}
    assert cohort.dropped == {
        "patients_without_slides": 0,
        "slides_without_file": 0,
        "slides_without_patient": 0,
        "expression_without_patient": 0,
    }
    labelled = {patient.id: patient.label for split in ("train", "validation") for patient in cohort.labelled(split)}
    assert labelled == {f"alpha{number:02d}": int(number % 3 == 0) for number in range(12)}
    assert {patient.label for patient in cohort.labelled("validation")} == {0, 1}
    assert cohort.labelled("test") == []


def test_missing_labels_never_become_negative(hospital):
    cohort = _load(hospital())
    unlabelled = [patient for patient in cohort.patients if patient.label is None]
    assert [patient.id for patient in unlabelled] == ["alpha12", "alpha13"]
    assert not set(unlabelled) & set(cohort.labelled("train") + cohort.labelled("validation"))


def test_everything_left_out_is_counted(tmp_path, hospital, write_trident, write_table):
    site = hospital(genomic=9, labels={"path": tmp_path / "alpha" / "labels.csv", "slide": "slide"})
    root = tmp_path / "alpha"
    rows = [
        ("patient", "PR", "slide"),
        ("a", "pos", "alpha00-DX1"),
        ("b", "neg", "alpha01-DX1.svs;gone"),
        ("c", "neg", ""),
    ]
    write_table(root / "labels.csv", [*rows, ("d", "pos", "lost")])
    write_trident(root / "features" / "stray.h5", 5)
    cohort = _load(site)
    assert [patient.id for patient in cohort.patients] == ["a", "b"]
    assert cohort.dropped == {
        "patients_without_slides": 2,
        "slides_without_file": 2,
        "slides_without_patient": 13,
        "expression_without_patient": 9,
    }
    assert cohort.genes_available == ()  # a table about other patients makes no genomic site
    assert all(patient.genes is None for patient in cohort.patients)


def test_an_evaluation_site_only_tests(hospital):
    cohort = _load(hospital(role="evaluate"))
    assert len(cohort.labelled("test")) == 12
    assert cohort.labelled("train") == cohort.labelled("validation") == []
    assert {patient.split for patient in cohort.patients} == {"test"}


def test_splits_are_seeded_and_may_come_from_a_file(tmp_path, hospital, write_table):
    site = hospital(patients=40)
    first = [patient.id for patient in _load(site, seed=1).labelled("validation")]
    assert first == [patient.id for patient in _load(site, seed=1).labelled("validation")]
    assert first != [patient.id for patient in _load(site, seed=2).labelled("validation")]
    rows = [(f"alpha{number:02d}", "validation" if number < 5 else "train") for number in range(40)]
    path = write_table(tmp_path / "splits.csv", [("patient", "split"), *rows])
    cohort = _load(hospital(patients=40, splits=path))
    assert [patient.id for patient in cohort.labelled("validation")] == [f"alpha{number:02d}" for number in range(5)]
    write_table(path, [("patient", "split"), *rows, ("alpha01", "train")])
    assert "rows 3 and 42" in _refused("split-conflict", lambda: _load(hospital(patients=40, splits=path)))


def test_row_order_changes_nothing(tmp_path, hospital, write_table):
    site = hospital(genomic=9)
    before = _load(site)
    path = tmp_path / "alpha" / "labels.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(rows)]) + "\n")
    after = _load(site)
    assert after.patients == before.patients
    np.testing.assert_array_equal(after.scaling["alpha"].mean, before.scaling["alpha"].mean)


@pytest.mark.parametrize(
    ("expected", "code", "words"),
    [
        (Encoder(name="uni2-h", dim=8), "encoder-mismatch", ("alpha", "'encoder'", "house-8", "uni2-h")),
        (Encoder(name="house-8", dim=1536), "dim-mismatch", ("alpha", "'dim'", "8", "1536")),
        (Encoder(name="house_8", dim=8, patch_um=256), "patch-um-mismatch", ("alpha", "'patch_um'", "128", "256")),
    ],
)
def test_features_unlike_the_federations(hospital, expected, code, words):
    sentence = _refused(code, lambda: _load(hospital(), encoder=expected))
    assert all(word in sentence for word in words)


def test_features_like_the_federations(hospital):
    assert _load(hospital(), encoder=Encoder(name="House 8", dim=8, patch_um=130)).patch_um == 128


def test_tasks_a_site_does_not_have(hospital):
    assert "PR" in _refused("task-unknown", lambda: _load(hospital(), task="HER2"))
    assert "2 classes" in _refused("task-classes", lambda: _load(hospital(), classes=3))


def test_ids_that_do_not_meet(tmp_path, hospital, write_table):
    site = hospital()
    write_table(tmp_path / "alpha" / "labels.csv", [("patient", "PR"), ("x", "pos"), ("y", "neg")])
    assert "alpha" in _refused("no-patients", lambda: _load(site))


def test_only_unlabelled_patients_have_slides(tmp_path, hospital, write_table):
    site = hospital()
    write_table(tmp_path / "alpha" / "labels.csv", [("patient", "PR"), ("x", "pos"), ("alpha01", "")])
    _refused("no-patients", lambda: _load(site))
