"""The teachers: their logits rank patients they never saw, and know nothing where genomics knows nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from momkd_fl.training.teacher import leave_one_out_logits, out_of_fold_logits


def test_a_signal_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy((rng.random(200) < 0.3).astype(np.int64))
    noise = torch.from_numpy(rng.standard_normal((200, 12))).float()
    told = noise.clone()
    told[:, 0] += 2.0 * labels
    areas = []
    for coordinates in (told, noise):
        logits = out_of_fold_logits(coordinates, labels, 2, seed=1)
        assert logits.shape == (200, 2)
        areas.append(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    assert areas[0] > 0.85
    assert 0.3 < areas[1] < 0.65, "a teacher that had seen the patient itself would rank noise"


def test_three_classes_and_a_class_with_one_patient() -> None:
    labels = torch.tensor([0] * 20 + [1] * 20 + [2])
    coordinates = torch.nn.functional.one_hot(labels, 3).float()
    logits = out_of_fold_logits(coordinates, labels, 3, seed=0)
    assert np.isfinite(logits).all()
    assert (logits[:40].argmax(axis=1) == labels[:40].numpy()).all()


def unit_vectors(labels: np.ndarray, dim: int, seed: int, apart: float) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((len(labels), dim))
    drawn[np.arange(len(labels)), labels] += apart
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def class_sums(embedded: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    member = np.eye(classes)[labels]
    return member.T @ embedded, member.sum(axis=0), np.ones(classes)


@pytest.mark.parametrize("apart", [0.5, 8.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_leave_one_out_is_a_teacher_fitted_anew_without_each_patient(classes: int, apart: float) -> None:
    """The plain twin: no sum is shared between patients, no rank is used; far classes meet the floor."""
    labels = np.arange(30) % classes
    embedded = unit_vectors(labels, 6, classes, apart)
    logits = leave_one_out_logits(embedded, labels, *class_sums(embedded, labels, classes))
    for patient in range(30):
        others = np.arange(30) != patient
        means = np.stack([embedded[others & (labels == c)].mean(axis=0) for c in range(classes)])
        shares = np.array([np.mean(labels[others] == c) for c in range(classes)])
        centred = means - shares @ means
        within = np.eye(6) / 6 - sum(shares[c] * np.outer(centred[c], centred[c]) for c in range(classes))
        values, vectors = np.linalg.eigh(within)
        inverse = vectors @ np.diag(1 / np.maximum(values, 0.1 / 6)) @ vectors.T
        expected = [means[c] @ inverse @ (embedded[patient] - means[c] / 2) for c in range(classes)]
        np.testing.assert_allclose(logits[patient], expected, rtol=1e-4, atol=1e-4)


def test_patients_who_are_not_in_the_sums_are_not_taken_out() -> None:
    """A site whose patients of class 0 were withheld: for them the teacher is the sums as they are."""
    labels = np.arange(60) % 2
    embedded = unit_vectors(labels, 6, 5, 1.0)
    inside = (labels == 1) | (np.arange(60) >= 20)
    sums, counts, _ = class_sums(embedded[inside], labels[inside], 2)
    logits = leave_one_out_logits(embedded[:20], labels[:20], sums, counts, np.array([0.0, 1.0]))
    for patient in range(20):
        others = inside & (np.arange(60) != patient)
        own, total, _ = class_sums(embedded[others], labels[others], 2)
        stranger = leave_one_out_logits(embedded[[patient]], labels[[patient]], own, total, np.zeros(2))
        np.testing.assert_allclose(logits[patient], stranger[0], rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(patient=st.integers(0, 39), seed=st.integers(0, 1000))
def test_a_patient_s_logits_do_not_depend_on_its_own_label(patient: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 2, 40)
    labels[[(patient + 1) % 40, (patient + 2) % 40]] = 0, 1
    embedded = unit_vectors(labels, 5, seed, 1.0)
    found = []
    for own in (0, 1):
        labels[patient] = own
        found.append(leave_one_out_logits(embedded, labels, *class_sums(embedded, labels, 2))[patient])
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_leave_one_out_ranks_a_signal_and_not_noise() -> None:
    labels = np.random.default_rng(3).integers(0, 2, 200)
    areas = []
    for apart in (2.0, 0.0):
        embedded = unit_vectors(labels, 12, 4, apart)
        logits = leave_one_out_logits(embedded, labels, *class_sums(embedded, labels, 2))
        areas.append(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    assert areas[0] > 0.85
    assert 0.35 < areas[1] < 0.65
