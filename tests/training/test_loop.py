"""The loop: it learns, it repeats, and no modality that is missing leaves a trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from momkd_fl.data.cohort import Cohort
from momkd_fl.errors import UserError
from momkd_fl.model.baselines import build
from momkd_fl.model.batch import NO_LABEL
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import LossWeights, StudentShape, branch_of, weights
from momkd_fl.training import loader
from momkd_fl.training.loop import Model, Prediction, TrainSettings, embed, predict, train
from momkd_fl.training.sampling import Packer

MakeCohort = Callable[..., Cohort]
MakePacker = Callable[[Cohort], Packer]
Settings = Callable[..., TrainSettings]
CPU = torch.device("cpu")


def fitted(model: Model, memory: Memory, packer: Packer, settings: TrainSettings, seed: int = 1) -> Model:
    train(model, memory, packer, packer.cohort.labelled("train"), settings, seed)
    return model


def scored(model: Model, memory: Memory, packer: Packer) -> Prediction:
    return predict(model, memory, packer, packer.cohort.labelled("validation"), CPU)


@pytest.mark.parametrize("architecture", ["momkd", "gated_attention"])
def test_a_planted_signal_is_learnt(
    make_cohort: MakeCohort,
    make_packer: MakePacker,
    make_settings: Settings,
    shape: StudentShape,
    memory: Memory,
    architecture: str,
) -> None:
    shape = dataclasses.replace(shape, architecture=architecture)
    packer = make_packer(make_cohort(patients=90))
    model = build(shape, 0)
    before = scored(model, memory, packer)
    report = train(model, memory, packer, packer.cohort.labelled("train"), make_settings(epochs=10.0), 1)
    after = scored(model, memory, packer)
    assert report.steps == 158
    assert roc_auc_score(after.labels, after.probabilities[:, 1]) > 0.85
    assert after.loss.mean() < before.loss.mean()
    assert np.isfinite(list(report.losses.values())).all()


@pytest.mark.parametrize("mode", ["anchors", "gradient"])
def test_the_same_seeds_give_the_same_weights(
    make_cohort: MakeCohort,
    make_packer: MakePacker,
    make_settings: Settings,
    shape: StudentShape,
    memory: Memory,
    mode: str,
) -> None:
    shape = dataclasses.replace(shape, memory_mode=mode)
    packer = make_packer(make_cohort())
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(int(torch.randint(1 << 30, ())))  # whatever the global generator was at
        runs.append(weights(fitted(build(shape, 0), memory, packer, make_settings(), seed)))
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(np.array_equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_genomics_without_matching_leave_histology_exactly_as_the_control(
    make_cohort: MakeCohort, make_packer: MakePacker, make_settings: Settings, shape: StudentShape, memory: Memory
) -> None:
    """Same start, same masks, separate clipping: with L_match off, a round with genes is the control's round."""
    settings = make_settings(losses=LossWeights(match=0.0), clip_norm=0.05)
    packer = make_packer(make_cohort())
    full = weights(fitted(build(shape, 0), memory, packer, settings))
    control_shape = dataclasses.replace(shape, genes=None, anchor_dim=None)
    control = weights(fitted(build(control_shape, 0), memory, Packer(packer.cohort, None, None), settings))
    assert all(np.array_equal(full[name], value) for name, value in control.items())
    matched = weights(fitted(build(shape, 0), memory, packer, make_settings(clip_norm=0.05)))
    assert not all(np.array_equal(matched[name], value) for name, value in control.items())


def test_a_site_without_genomics_leaves_the_genomic_branch_untouched(
    make_cohort: MakeCohort, make_packer: MakePacker, make_settings: Settings, shape: StudentShape, memory: Memory
) -> None:
    packer = make_packer(make_cohort(genomic=0.0))
    start, end = weights(build(shape, 0)), weights(fitted(build(shape, 0), memory, packer, make_settings()))
    genomic = [name for name in start if branch_of(name) == "genomics"]
    assert genomic
    assert all(np.array_equal(start[name], end[name]) for name in genomic)
    assert not np.array_equal(start["classifier.1.weight"], end["classifier.1.weight"])


def test_the_memory_is_fixed_for_the_round(
    make_cohort: MakeCohort, make_packer: MakePacker, make_settings: Settings, shape: StudentShape, memory: Memory
) -> None:
    assert memory.slots is not None
    assert memory.anchors is not None
    before = memory.slots.clone(), memory.anchors.clone()
    fitted(build(shape, 0), memory, make_packer(make_cohort()), make_settings())
    assert torch.equal(memory.slots, before[0])
    assert torch.equal(memory.anchors, before[1])


def test_trainable_slots_move(
    make_cohort: MakeCohort, make_packer: MakePacker, make_settings: Settings, shape: StudentShape
) -> None:
    shape = dataclasses.replace(shape, memory_mode="gradient", anchor_dim=None)
    model = build(shape, 0)
    start = weights(model)["slots"]
    fitted(model, Memory(), make_packer(make_cohort()), make_settings())
    assert not np.array_equal(start, weights(model)["slots"])


def test_the_proximal_term_holds_the_weights_back(
    make_cohort: MakeCohort, make_packer: MakePacker, make_settings: Settings, shape: StudentShape, memory: Memory
) -> None:
    packer = make_packer(make_cohort())
    start = weights(build(shape, 0))

    def distance(mu: float) -> float:
        end = weights(fitted(build(shape, 0), memory, packer, make_settings(proximal_mu=mu)))
        return float(np.sqrt(sum(np.square(end[name] - start[name]).sum() for name in start)))

    assert distance(10.0) < 0.8 * distance(0.0)


def test_the_optimiser_goes_on_where_it_was(
    make_cohort: MakeCohort, make_packer: MakePacker, make_settings: Settings, shape: StudentShape, memory: Memory
) -> None:
    packer = make_packer(make_cohort())
    patients = packer.cohort.labelled("train")
    ends = []
    for keep in (True, False):
        model = build(shape, 0)
        first = train(model, memory, packer, patients, make_settings(steps=3), 1)
        second = train(model, memory, packer, patients, make_settings(steps=2), 2, first.optimiser if keep else None)
        assert second.steps == 2
        ends.append(second.optimiser["state"][0]["step"])
    assert [float(step) for step in ends] == [5.0, 2.0]


def test_a_loss_that_is_no_number_is_a_sentence(
    make_cohort: MakeCohort, make_packer: MakePacker, make_settings: Settings, shape: StudentShape, memory: Memory
) -> None:
    with pytest.raises(UserError) as problem:
        fitted(build(shape, 0), memory, make_packer(make_cohort()), make_settings(learning_rate=1e30, steps=6))
    assert problem.value.code == "training-diverged"


def test_bf16_trains_close_to_fp32(
    make_cohort: MakeCohort, make_packer: MakePacker, make_settings: Settings, shape: StudentShape, memory: Memory
) -> None:
    packer = make_packer(make_cohort())
    patients = packer.cohort.labelled("train")
    reports = [
        train(build(shape, 0), memory, packer, patients, make_settings(precision=precision, epochs=1.0), 1)
        for precision in ("fp32", "bf16")
    ]
    for name, value in reports[0].losses.items():
        assert reports[1].losses[name] == pytest.approx(value, rel=0.1, abs=1e-3), name


def test_scores_do_not_depend_on_how_patients_are_packed(
    make_cohort: MakeCohort,
    make_packer: MakePacker,
    shape: StudentShape,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packer, model = make_packer(make_cohort()), build(shape, 0)
    together = scored(model, memory, packer)
    monkeypatch.setitem(loader.SCORE_PATCHES, "cpu", 1)
    packs = list(embed(model, memory, packer, packer.cohort.labelled("validation"), CPU))
    alone = scored(model, memory, packer)
    assert [len(chosen) for chosen, _, _ in packs] == [1] * len(alone.ids)
    np.testing.assert_allclose(alone.probabilities, together.probabilities, rtol=1e-5)
    np.testing.assert_allclose(alone.effective_patches, together.effective_patches, rtol=1e-5)
    assert alone.ids == together.ids


def test_scores_are_of_the_model_without_dropout_and_leave_no_gradient(
    make_cohort: MakeCohort, make_packer: MakePacker, shape: StudentShape, memory: Memory
) -> None:
    packer, model = make_packer(make_cohort()), build(shape, 0)
    one, two = scored(model, memory, packer), scored(model, memory, packer)
    np.testing.assert_array_equal(one.probabilities, two.probabilities)
    assert all(value.grad is None for value in model.parameters())
    np.testing.assert_allclose(-np.log(one.probabilities[np.arange(len(one.labels)), one.labels]), one.loss, rtol=1e-6)
    by_class = one.loss_by_class(2)
    assert sum(by_class) == pytest.approx(one.loss.sum())


def test_a_patient_without_a_label_is_scored_and_never_negative(
    make_cohort: MakeCohort, make_packer: MakePacker, shape: StudentShape, memory: Memory
) -> None:
    packer = make_packer(make_cohort())
    some = [dataclasses.replace(packer.cohort.patients[0], label=None), packer.cohort.patients[1]]
    scores = predict(build(shape, 0), memory, packer, some, CPU)
    assert scores.labels[0] == NO_LABEL
    assert np.isnan(scores.loss[0])
    assert np.isfinite(scores.probabilities).all()
    assert sum(scores.loss_by_class(2)) == pytest.approx(scores.loss[1])


def test_nobody_to_score_is_an_empty_answer(
    make_cohort: MakeCohort, make_packer: MakePacker, shape: StudentShape, memory: Memory
) -> None:
    nobody = predict(build(shape, 0), memory, make_packer(make_cohort()), [], CPU)
    assert nobody.probabilities.shape == (0, 2)
    assert nobody.loss_by_class(2) == [0.0, 0.0]
