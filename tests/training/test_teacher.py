"""The local teacher: its logits rank patients it never saw, and know nothing where genomics knows nothing."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from momkd_fl.training.teacher import out_of_fold_logits


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
