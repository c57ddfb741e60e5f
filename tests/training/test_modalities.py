"""Three classes, patients without genes, and gradients clipped by branch, through the loop itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from momkd_fl.data.cache import BagCache, PatientBag
from momkd_fl.data.cohort import Cohort
from momkd_fl.evaluation.metrics import auroc
from momkd_fl.model.baselines import build
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import LossWeights, StudentShape, branch_of, weights
from momkd_fl.training.loop import TrainSettings, predict, train
from momkd_fl.training.sampling import Packer

MakeCohort = Callable[..., Cohort]
MakePacker = Callable[[Cohort], Packer]
Settings = Callable[..., TrainSettings]
CPU = torch.device("cpu")
CLASSES = 3


def three_classes(cohort: Cohort) -> Cohort:
    """The cohort with three labels; each class has a direction of its own, in a corner of its patients' slides."""
    directions = 1.5 * np.random.default_rng(7).standard_normal((CLASSES, cohort.dim)).astype(np.float32)
    rng = np.random.default_rng(8)
    people, cache = [], BagCache(1 << 28)
    for number, patient in enumerate(cohort.patients):
        label, bag = number % CLASSES, cohort.bag(patient)
        features = rng.standard_normal(bag.features.shape).astype(np.float32)
        features[: max(4, len(features) // 4)] += directions[label]
        cache.put((patient.site, patient.slides), PatientBag(features, bag.neighbours))
        people.append(dataclasses.replace(patient, label=label))
    return dataclasses.replace(cohort, patients=tuple(people), classes=CLASSES, cache=cache)


@pytest.fixture
def memory_of_three(memory: Memory) -> Memory:
    """Orthogonal slots and unit anchors of three classes in the same genomic space."""
    assert memory.slots is not None
    assert memory.anchors is not None
    draw = torch.Generator().manual_seed(3)
    slots = torch.linalg.qr(torch.randn(memory.slots.shape[2], 9, generator=draw)).Q.T.reshape(CLASSES, 3, -1)
    anchors = torch.nn.functional.normalize(torch.randn(CLASSES, 3, memory.anchors.shape[2], generator=draw), dim=-1)
    return Memory(slots, anchors, memory.space)


@pytest.mark.parametrize("mode", ["anchors", "momentum", "gradient", "frozen"])
def test_three_classes_are_learnt_with_genes_of_some(
    make_cohort: MakeCohort,
    make_packer: MakePacker,
    make_settings: Settings,
    shape: StudentShape,
    memory_of_three: Memory,
    mode: str,
) -> None:
    packer = make_packer(three_classes(make_cohort(patients=90, genomic=0.5)))
    anchored = mode == "anchors"
    shape = dataclasses.replace(
        shape, classes=CLASSES, memory_mode=mode, anchor_dim=shape.anchor_dim if anchored else None
    )
    memory = Memory() if mode == "gradient" else memory_of_three
    model = build(shape, 0)
    report = train(model, memory, packer, packer.cohort.labelled("train"), make_settings(epochs=8.0), 1)
    terms = {"classification", "memory", "align_histology", "align_genomics", "reconstruction"}
    assert set(report.losses) == terms | ({"match"} if anchored else set())
    scored = predict(model, memory, packer, packer.cohort.labelled("validation"), CPU)
    assert scored.probabilities.shape == (27, CLASSES)
    np.testing.assert_allclose(scored.probabilities.sum(axis=1), 1.0)
    area = auroc(scored.labels, scored.probabilities, class_minimum=5)
    assert area is not None
    assert area > 0.85
    assert sum(scored.loss_by_class(CLASSES)) == pytest.approx(scored.loss.sum())


def test_patients_without_genes_train_as_if_the_genomic_losses_were_off(
    make_cohort: MakeCohort, make_packer: MakePacker, make_settings: Settings, shape: StudentShape, memory: Memory
) -> None:
    """Nothing stands in for the missing genes: the histology branch ends where it ends with those losses at zero."""
    packer = make_packer(make_cohort(genomic=1.0))
    nobody = tuple(dataclasses.replace(patient, genes=None) for patient in packer.cohort.patients)
    bare = Packer(dataclasses.replace(packer.cohort, patients=nobody), packer.mean, packer.scale)
    off = LossWeights(align_genomics=0.0, reconstruction=0.0, match=0.0)
    ends = []
    for each, losses in ((bare, LossWeights()), (packer, off)):
        model = build(shape, 0)
        train(model, memory, each, each.cohort.labelled("train"), make_settings(losses=losses), 1)
        ends.append(weights(model))
    for name, value in ends[0].items():
        if branch_of(name) == "histology" and not name.startswith("anchor_head"):
            np.testing.assert_array_equal(value, ends[1][name], err_msg=name)
    start = weights(build(shape, 0))
    assert all(np.array_equal(ends[0][n], start[n]) for n in start if branch_of(n) == "genomics")


@pytest.mark.parametrize("mode", ["anchors", "gradient"])
def test_each_branch_is_clipped_by_its_own_norm(
    make_cohort: MakeCohort,
    make_packer: MakePacker,
    make_settings: Settings,
    shape: StudentShape,
    memory: Memory,
    mode: str,
) -> None:
    """However large the other branches' gradients are, a branch's own is what it would be alone, cut to the norm."""
    shape = dataclasses.replace(shape, memory_mode=mode, anchor_dim=None, dropout=0.0)
    packer = make_packer(make_cohort(genomic=1.0))
    patients = packer.cohort.labelled("train")

    def gradients(reconstruction: float, limit: float) -> dict[str, torch.Tensor]:
        model = build(shape, 0)
        losses = LossWeights(reconstruction=reconstruction)
        train(model, memory, packer, patients, make_settings(steps=1, clip_norm=limit, losses=losses), 1)
        found: dict[str, list[torch.Tensor]] = {}
        for name, value in model.named_parameters():
            if value.grad is not None:
                found.setdefault("memory" if name == "slots" else branch_of(name), []).append(value.grad.flatten())
        return {branch: torch.cat(parts) for branch, parts in found.items()}

    limit = 0.01
    free, cut, loud = gradients(0.05, 1e9), gradients(0.05, limit), gradients(500.0, limit)
    assert set(free) == {"histology", "genomics"} | ({"memory"} if mode == "gradient" else set())
    for branch, whole in free.items():
        assert float(whole.norm()) > limit
        assert float(cut[branch].norm()) == pytest.approx(limit, rel=1e-3)
        torch.testing.assert_close(cut[branch], whole * (limit / whole.norm()), rtol=1e-3, atol=1e-7)
        if branch != "genomics":
            assert torch.equal(loud[branch], cut[branch]), "the genomic gradient scales no other branch"
