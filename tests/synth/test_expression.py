from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from momkd_fl.errors import UserError
from momkd_fl.synth.expression import Profiles, real_brca, synthetic

PREVALENCES = {"PR": 0.65, "HER2": 0.15, "ODX": 0.2}
POSITIVE = {"PR": "positive", "HER2": "positive", "ODX": "high"}
NEGATIVE = {"PR": "negative", "HER2": "negative", "ODX": "low"}


@pytest.fixture(scope="module")
def profiles() -> Profiles:
    return synthetic({"oak": [f"oak-{n}" for n in range(900)]}, seed=11)


def genomic_auroc(profiles: Profiles, task: str) -> float:
    labels = np.array(profiles.labels[task])
    keep = np.isin(labels, [POSITIVE[task], NEGATIVE[task]]) & profiles.measured
    positive = labels[keep] == POSITIVE[task]
    teacher = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3))
    scores = cross_val_predict(teacher, profiles.values[keep], positive, cv=3, method="decision_function")
    return float(roc_auc_score(positive, scores))


@pytest.mark.parametrize("task", list(PREVALENCES))
def test_prevalences_and_what_the_genome_knows(profiles: Profiles, task: str) -> None:
    labels = np.array(profiles.labels[task])
    assert np.mean(labels == POSITIVE[task]) == pytest.approx(PREVALENCES[task], abs=0.04)
    assert 0.85 < genomic_auroc(profiles, task) < 0.98


def test_some_labels_are_missing_or_equivocal(profiles: Profiles) -> None:
    assert 0.01 < np.mean(np.array(profiles.labels["PR"]) == "") < 0.06
    assert 0.03 < np.mean(np.array(profiles.labels["HER2"]) == "equivocal") < 0.09


def test_values_are_log2_tpm_with_the_named_genes(profiles: Profiles) -> None:
    assert profiles.scale == "log2tpm"
    assert 0 <= profiles.values.min() < profiles.values.max() < 20
    assert len(set(profiles.genes)) == len(profiles.genes)
    assert {"MKI67", "AURKA", "BAG1", "CTSV", "TFRC", "ESR1", "FOXC1", "ORC6", "TMEM45B"} <= set(profiles.genes)


def test_programmes_have_unit_variance(profiles: Profiles) -> None:
    np.testing.assert_allclose(profiles.programmes.std(axis=0), 1, atol=0.12)


def test_a_patient_does_not_depend_on_the_others(profiles: Profiles) -> None:
    alone = synthetic({"elm": ["oak-7"]}, seed=11)
    np.testing.assert_array_equal(alone.values[0], profiles.values[7])
    assert {task: column[0] for task, column in alone.labels.items()} == {
        task: column[7] for task, column in profiles.labels.items()
    }
    assert alone.slides[0] == profiles.slides[7]


def test_missing_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels\.csv") as error:
        real_brca(tmp_path)
    assert error.value.code == "synth-table-missing"


@pytest.mark.real
def test_real_profiles(brca_folder: Path) -> None:
    profiles = real_brca(brca_folder)
    assert len(profiles.patients) == 612
    assert len(profiles.at(["BH", "A2", "E2", "D8", "A8", "AR"])) == 510
    assert {"AURKA", "ERBB2", "MKI67", "ESR1", "PGR", "CDK12"} <= set(profiles.genes)
    assert len(profiles.genes) == len(set(profiles.genes))
    assert np.isfinite(profiles.values[profiles.measured]).all()
    np.testing.assert_allclose(profiles.programmes[:, :12].std(axis=0), 1)
    labels = np.array(profiles.labels["HER2"])
    assert set(labels) == {"positive", "negative", ""}
    known = labels != ""
    assert roc_auc_score(labels[known] == "positive", profiles.programmes[known, 12]) > 0.85
    hormone = np.array(profiles.labels["ODX_HR"])
    assert (hormone[np.array(profiles.labels["HER2"]) != "negative"] == "not applicable").all()
