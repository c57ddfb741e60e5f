"""What is recorded, when, and that a recorded step sees each new pack; the recording itself needs a GPU."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from momkd_fl.data.cohort import Cohort
from momkd_fl.model.baselines import build
from momkd_fl.model.batch import PackedBags
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import LossWeights, StudentShape
from momkd_fl.training.capture import EAGER_STEPS, GRAPHS, Recorded, Terms
from momkd_fl.training.loop import TrainSettings, train
from momkd_fl.training.sampling import Packer


class Tape:
    """A graph of the CPU: what is recorded is run again on the same tensors, as a GPU's graph is."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], Terms]) -> tuple[Terms, Callable[[], None]]:
        self.recorded += 1
        terms: Terms = {}

        def replay() -> None:
            self.replayed += 1
            terms.update(run())

        return terms, replay


def learner(shape: StudentShape, memory: Memory) -> tuple[torch.nn.Module, Callable[[PackedBags], Terms]]:
    model = build(shape, 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def step(batch: PackedBags) -> dict[str, Tensor]:
        terms = model.loss(model(batch, memory), batch, memory, LossWeights())
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        return {name: value.detach() for name, value in terms.items()}

    return model, step


@pytest.fixture
def packs(make_cohort: Callable[..., Cohort], make_packer: Callable[[Cohort], Packer]) -> list[PackedBags]:
    """Packs of 24 steps, cut to one size, so that only the number of patients with genes differs."""
    packer = make_packer(make_cohort())
    rng = np.random.default_rng(0)
    patients = packer.cohort.labelled("train")
    return [packer.pack(list(rng.choice(patients, 2)), rng, 10) for _ in range(24)]


def test_replayed_steps_train_as_the_steps_themselves(
    packs: list[PackedBags], shape: StudentShape, memory: Memory
) -> None:
    tape = Tape()
    plain, step = learner(shape, memory)
    other, same = learner(shape, memory)
    recorded = Recorded(same, tape)
    for number, batch in enumerate(packs):
        kept = copy.deepcopy(vars(batch))
        found = []
        for run in (step, recorded):
            torch.manual_seed(number)
            found.append({name: value.clone() for name, value in run(batch).items()})
        assert found[0].keys() == found[1].keys()
        assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
        assert all(torch.equal(value, vars(batch)[name]) for name, value in kept.items() if isinstance(value, Tensor))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    assert tape.recorded == 3  # with no, one and two patients with genes
    assert tape.replayed == len(packs) - 3 * EAGER_STEPS


def test_shapes_that_seldom_come_are_never_recorded_and_memory_is_bounded(
    make_cohort: Callable[..., Cohort], make_packer: Callable[[Cohort], Packer]
) -> None:
    packer, tape = make_packer(make_cohort()), Tape()
    patients = packer.cohort.labelled("train")
    recorded = Recorded(lambda batch: {"loss": batch.features.sum()}, tape)
    sizes = range(1, GRAPHS + 4)
    for _ in range(EAGER_STEPS):
        for count in sizes:
            recorded(packer.pack(patients[:count]))
    assert tape.recorded == 0
    for count in sizes:
        batch = packer.pack(patients[:count])
        assert recorded(batch)["loss"] == batch.features.sum()
    assert tape.recorded == tape.replayed == GRAPHS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="recording needs a GPU")
@pytest.mark.parametrize("architecture", ["momkd", "gated_attention"])
def test_on_a_gpu_a_captured_round_is_the_round(
    make_cohort: Callable[..., Cohort],
    make_packer: Callable[[Cohort], Packer],
    make_settings: Callable[..., TrainSettings],
    shape: StudentShape,
    memory: Memory,
    architecture: str,
) -> None:
    found = []
    for capture in (False, True):
        packer = make_packer(make_cohort())
        model = build(dataclasses.replace(shape, architecture=architecture), 0)
        settings = make_settings(steps=30, device=torch.device("cuda"), max_patches=10, capture=capture)
        found.append(train(model, memory, packer, packer.cohort.labelled("train"), settings, 0).losses)
    assert found[1] == pytest.approx(found[0], rel=1e-2)
