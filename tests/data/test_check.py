"""The preflight of a site's files: every mistake is found, the rest is still looked at, and nothing is invented."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from momkd_fl.config.site import SiteConfig
from momkd_fl.data.bags import find_bags, read_header
from momkd_fl.data.check import Finding, check_data
from momkd_fl.data.check_values import duplicates, scan_values
from momkd_fl.data.ingest import ingest

Hospital = Callable[..., SiteConfig]


def look(site: SiteConfig, *, values: bool = True) -> list[Finding]:
    return check_data(site, lambda what, done, total: None, values=values)[0]


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [found for found in findings if found.check == check]


def codes(findings: list[Finding]) -> set[str]:
    return {found.code for found in findings if found.status == "FAIL"}


def test_a_sound_hospital_passes_with_its_counts(hospital: Hospital) -> None:
    findings = look(hospital(patients=30, genomic=20, patch_um=128.0))
    assert not [found for found in findings if found.status == "FAIL"]
    (labels,) = of(findings, "labels")
    assert "20 of class 0, 10 of class 1" in labels.sentence
    assert "1 'equivocal'" in labels.sentence
    assert "20 of 32 patients" in of(findings, "genomics")[0].sentence
    assert "32 files read now" in of(findings, "values")[0].sentence


def test_all_mistakes_are_told_at_once(hospital: Hospital, tmp_path: Path) -> None:
    site = hospital(patients=30, genomic=20)
    with h5py.File(tmp_path / "alpha" / "features" / "alpha03-DX1.h5", "a") as file:
        file["features"][2, 1] = np.nan
    (tmp_path / "alpha" / "features" / "alpha04-DX1.h5").write_bytes(b"not hdf5")
    (tmp_path / "alpha" / "rna.csv").write_text("case,G0,G1\nalpha00,1,x\n")
    assert {"bag-nan", "bag-not-hdf5", "expression-not-numeric"} <= codes(look(site))


def test_one_broken_task_does_not_hide_the_other(hospital: Hospital, tmp_path: Path) -> None:
    tasks = {
        "PR": {"column": "PR", "positive": ["pos"], "negative": ["neg"]},
        "HER2": {"column": "HER2", "positive": ["pos"], "negative": ["neg"]},
    }
    findings = look(hospital(patients=30, tasks=tasks))
    assert [found.status for found in of(findings, "labels")] == ["PASS", "FAIL"]
    assert of(findings, "class counts")[0].status == "PASS"


@pytest.mark.parametrize(("patients", "expected"), [(30, "PASS"), (9, "WARN")])
def test_class_counts_against_the_minimum(hospital: Hospital, patients: int, expected: str) -> None:
    (found,) = of(look(hospital(patients=patients)), "class counts")
    assert found.status == expected


def test_one_class_alone_cannot_train(hospital: Hospital, tmp_path: Path) -> None:
    site = hospital(patients=12)
    table = tmp_path / "alpha" / "labels.csv"
    table.write_text(table.read_text().replace(",pos", ",unknown"))
    (found,) = of(look(site), "class counts")
    assert found.status == "FAIL"
    assert found.code == "class-too-small"


def test_a_site_may_have_one_class_of_a_task_and_train_another(hospital: Hospital, tmp_path: Path) -> None:
    tasks = {
        "PR": {"column": "PR", "positive": ["pos"], "negative": ["neg"]},
        "HER2": {"column": "PR", "positive": ["equivocal"], "negative": ["none"]},
    }
    found = of(look(hospital(patients=30, tasks=tasks)), "class counts")
    assert [one.status for one in found] == ["PASS", "WARN"]


def test_rows_that_repeat_a_patient_are_listed(hospital: Hospital, tmp_path: Path) -> None:
    site = hospital(patients=12)
    table = tmp_path / "alpha" / "labels.csv"
    table.write_text(table.read_text() + "alpha03,pos\n")
    told = [found.sentence for found in of(look(site), "labels") if found.status == "WARN"]
    assert any("row 16 (as row 5)" in sentence for sentence in told)


def test_the_same_slide_under_two_patients_is_a_leak(hospital: Hospital, tmp_path: Path) -> None:
    site = hospital(patients=12)
    features = tmp_path / "alpha" / "features"
    shutil.copy(features / "alpha01-DX1.h5", features / "alpha07-DX1.h5")
    (found,) = of(look(site), "duplicates")
    assert found.status == "FAIL"
    assert "alpha01-DX1.h5" in found.sentence
    assert "alpha07-DX1.h5" in found.sentence


def test_duplicates_are_told_by_bytes_alone(tmp_path: Path) -> None:
    big = bytes(range(256)) * 1024
    changed = bytearray(big)
    changed[130_000] ^= 1  # past the start and the end that are compared first
    for name, content in (("a", big), ("b", big), ("c", bytes(changed)), ("d", b"")):
        (tmp_path / name).write_bytes(content)
    assert list(duplicates([tmp_path / name for name in "abcd"])) == [(tmp_path / "a", tmp_path / "b")]


def test_values_are_read_once_and_again_after_a_change(hospital: Hospital, tmp_path: Path) -> None:
    site = hospital(patients=6)
    paths = sorted((tmp_path / "alpha" / "features").glob("*.h5"))
    headers = [read_header(path) for path in paths]
    assert scan_values(headers, site, lambda *_: None) == ([], len(paths))
    assert scan_values(headers, site, lambda *_: None) == ([], 0)
    with h5py.File(paths[0], "a") as file:
        file["features"][0] = np.inf
    for _ in range(2):  # a file with a mistake is never remembered as good
        problems, read = scan_values(headers, site, lambda *_: None)
        assert [problem.code for problem in problems] == ["bag-nan"]
        assert read == 1


def test_a_store_that_is_named_must_be_there_and_is_compared(hospital: Hospital, tmp_path: Path) -> None:
    site = hospital(patients=12, store=tmp_path / "store")
    assert "store-missing" in codes(look(site))
    ingest(find_bags(site.data.features), tmp_path / "store", k=4, format=None, progress=lambda *_: None)
    assert [found.status for found in of(look(site), "store")] == ["PASS"]
    (tmp_path / "alpha" / "features" / "alpha02-DX1.h5").touch()
    (found,) = of(look(site), "store")
    assert found.status == "WARN"
    assert found.sentence.startswith("13 of 14")


def test_no_patient_with_slides(hospital: Hospital, tmp_path: Path) -> None:
    site = hospital(patients=6)
    for path in (tmp_path / "alpha" / "features").glob("*.h5"):
        path.rename(path.with_name(f"x{path.name}"))
    findings = look(site)
    assert "no-patients" in codes(findings)
    assert any(found.status == "WARN" for found in of(findings, "patients")), "the orphans are listed"


def test_the_real_cohort(real_data: Path, tmp_path: Path) -> None:
    site = SiteConfig.model_validate(
        {
            "site": "A6",
            "state_dir": tmp_path / "state",
            "data": {
                "features": [real_data / "tcga-crc" / "bags"],
                "encoder": "resnet18-swarm",
                "labels": {"path": real_data / "tcga-crc" / "labels.csv", "slide": "slide"},
                "tasks": {"MSI": {"column": "MSI_H", "positive": ["1"], "negative": ["0"]}},
                "genomics": {"path": real_data / "tcga-crc" / "rna_signedlog.csv.gz", "scale": "signedlog"},
            },
        }
    )
    findings = look(site)
    assert not codes(findings)
    assert of(findings, "features")[0].sentence.startswith("69 of 69 files read")
