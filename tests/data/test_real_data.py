"""Real features, labels and expression, read as they were published."""

from __future__ import annotations

import csv
from collections import Counter

import numpy as np
import pytest

from momkd_fl.config.federation import Encoder
from momkd_fl.config.site import Genomics, LabelTable, TaskLabels
from momkd_fl.data.bags import find_bags, read_bag
from momkd_fl.data.cohort import merge
from momkd_fl.data.genomics import load_panel, on_panel, read_expression, rows_by_patient
from momkd_fl.data.load import load_cohort
from momkd_fl.data.tables import read_labels
from momkd_fl.errors import UserError

pytestmark = pytest.mark.real


def _site(make_site, folder, table, name="crc", **data):
    return make_site(
        name,
        **{
            "features": [folder / "bags"],
            "labels": {"path": table, "slide": "slide"},
            "tasks": {
                "MSI": {"column": "MSI_H", "positive": ["1"], "negative": ["0"]},
                "BRAF": {"column": "BRAF_mut", "positive": ["1"], "negative": ["0"]},
            },
            "encoder": "resnet18-swarm",
            "genomics": {"path": folder / "rna_signedlog.csv.gz", "scale": "signedlog"},
            **data,
        },
    )


def test_every_published_bag_is_read(real_data):
    bags = find_bags([real_data / "tcga-crc" / "bags"])
    with open(real_data / "tcga-crc" / "labels.csv", newline="") as file:
        patches = {row["slide"]: int(row["n_patches"]) for row in csv.DictReader(file)}
    assert len(bags) == 69
    for slide, path in bags.items():
        bag = read_bag(path)
        assert bag.features.shape == (patches[slide], 512)
        assert bag.header.patch_um is None  # the files give no magnification


def test_colorectal_cohort(real_data, make_site):
    folder = real_data / "tcga-crc"
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    msi = Counter(row["MSI_H"] for row in rows)
    cohort = load_cohort(
        _site(make_site, folder, folder / "labels.csv"),
        task="MSI",
        classes=2,
        encoder=Encoder(name="resnet18-swarm", dim=512),
    )
    assert len(cohort.patients) == 69
    labels = [patient.label for patient in cohort.patients]
    assert (labels.count(1), labels.count(0), labels.count(None)) == (msi["1.0"], msi["0.0"], msi[""])
    assert cohort.exclusions == {"(missing)": msi[""]}
    assert sum(patient.genes is not None for patient in cohort.patients) == 56
    assert set(cohort.dropped.values()) == {0}
    for split in ("train", "validation"):
        assert {patient.label for patient in cohort.labelled(split)} == {0, 1}
    bag = cohort.bag(cohort.patients[0])
    assert np.isfinite(bag.features).all()
    assert bag.neighbours.shape == (len(bag.features), 9)


def test_hospitals_of_the_colorectal_cohort_are_pooled(real_data, make_site, tmp_path):
    folder = real_data / "tcga-crc"
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    cohorts = []
    for hospital in ("A6", "D5"):
        table = tmp_path / f"{hospital}.csv"
        with open(table, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(row for row in rows if row["site"] == hospital)
        cohorts.append(load_cohort(_site(make_site, folder, table, hospital), task="BRAF", classes=2))
    pooled = merge(cohorts)
    assert len(pooled.patients) == 69
    assert all(patient.id[5:7] == patient.site for patient in pooled.patients)
    assert cohorts[0].dropped["slides_without_patient"] == len(cohorts[1].patients)


def test_the_encoder_attribute_is_a_placeholder(real_data, make_site):
    folder = real_data / "tcga-crc"
    site = _site(make_site, folder, folder / "labels.csv", encoder=None)
    cohort = load_cohort(site, task="BRAF", classes=2, standardise="none")
    assert cohort.encoder == "resnet18-imagenet-512"
    with pytest.raises(UserError, match="'encoder'"):
        load_cohort(site, task="BRAF", classes=2, encoder=Encoder(name="resnet18-swarm", dim=512))


@pytest.mark.parametrize("task", ["ER", "PR", "HER2", "ODX_high"])
def test_breast_labels(real_data, task):
    path = real_data / "tcga-brca" / "labels.csv"
    with open(path, newline="") as file:
        values = Counter(row[task] for row in csv.DictReader(file))
    config = TaskLabels(column=task, positive=["1"], negative=["0"])
    labels = read_labels(LabelTable(path=path), config)
    classes = Counter(labels.by_patient.values())
    assert len(labels.patients) == 672
    assert classes[1] == values["1"] + values["1.0"]
    assert classes[0] == values["0"] + values["0.0"]
    assert sum(labels.excluded.values()) == 672 - sum(classes.values())


def test_breast_expression(real_data):
    folder = real_data / "tcga-brca"
    signedlog = read_expression(Genomics(path=folder / "rna_signedlog.csv.gz", scale="signedlog"))
    assert signedlog.values.shape == (612, 1558)
    pam50 = read_expression(Genomics(path=folder / "pam50_log2rsem.csv.gz", scale="log2tpm"))
    values, missing = on_panel(pam50, load_panel("pam50"))
    assert values.shape == (615, 49)
    assert missing == ["ORC6"]
    labels = read_labels(
        LabelTable(path=folder / "labels.csv"), TaskLabels(column="ER", positive=["1"], negative=["0"])
    )
    with open(folder / "labels.csv", newline="") as file:
        with_rna = sum(row["has_rna"] == "1" for row in csv.DictReader(file))
    assert len(rows_by_patient(signedlog, labels.patients)) == with_rna


def test_breast_expression_with_another_scale_declared(real_data):
    folder = real_data / "tcga-brca"
    for name, scale, words in (("pam50_log2rsem", "tpm", "logged already"), ("rna_signedlog", "log2tpm", "negative")):
        with pytest.raises(UserError, match=words):
            read_expression(Genomics(path=folder / f"{name}.csv.gz", scale=scale))
