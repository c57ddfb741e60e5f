"""DP-SGD in the loop: one patient a gradient, the memory fixed, nothing said; and without noise it still learns."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from momkd_fl.model.baselines import build
from momkd_fl.privacy.dpsgd import Steps, poisson_sample, private_gradients
from momkd_fl.training.loop import predict, train

CPU = torch.device("cpu")


@dataclasses.dataclass
class Gradients:
    """The real mechanism over a seeded source; notes what it was given."""

    steps: Steps
    source: random.Random
    sizes: list[int] = dataclasses.field(default_factory=list)
    labels: list[int] = dataclasses.field(default_factory=list)

    def sample(self, patients: int) -> list[int]:
        return poisson_sample(patients, self.steps.rate, self.source.randbytes)

    def mean(self, parameters: Sequence[Tensor], bags: Iterable[Any], loss_of: Callable[[Any], Tensor]) -> list[Tensor]:
        def noted(bag: Any) -> Tensor:
            self.sizes.append(bag[0].patients)
            return loss_of(bag)

        return private_gradients(parameters, bags, noted, self.steps, self.source.randbytes)


def trained(make: Any, shape: Any, memory: Any, settings: Any, gradients: Gradients, steps: int) -> Any:
    cohort, make_packer = make
    packer = make_packer(cohort)
    model = build(shape, 0)
    report = train(model, memory, packer, cohort.labelled("train"), settings(steps=steps, private=gradients), 1)
    return model, packer, report


def test_with_hardly_any_noise_a_planted_signal_is_learnt(
    make_cohort: Any, make_packer: Any, make_settings: Any, shape: Any, memory: Any
) -> None:
    gradients = Gradients(Steps(1e-3, 0.15, 1.0, 9.0), random.Random(0))
    cohort = make_cohort(patients=90)

    def faster(**given: Any) -> Any:
        return make_settings(learning_rate=1e-2, **given)

    model, packer, report = trained((cohort, make_packer), shape, memory, faster, gradients, 16)
    found = predict(model, memory, packer, cohort.labelled("validation"), CPU)
    assert roc_auc_score(found.labels, found.probabilities[:, 1]) > 0.8
    assert set(gradients.sizes) == {1}
    assert report.losses == {}
    assert report.steps == 16


def test_every_parameter_gets_noise_also_in_a_step_without_patients(
    make_cohort: Any, make_packer: Any, make_settings: Any, shape: Any, memory: Any
) -> None:
    gradients = Gradients(Steps(1.0, 1e-9, 1.0, 9.0), random.Random(0))
    cohort = make_cohort(patients=20)
    before = build(shape, 0)
    model, _, _ = trained((cohort, make_packer), shape, memory, make_settings, gradients, 1)
    assert gradients.sizes == []
    for name, value in model.state_dict().items():
        assert (value != before.state_dict()[name]).float().mean() > 0.99, name


def test_how_many_patients_there_are_does_not_change_the_number_of_steps(
    make_cohort: Any, make_packer: Any, make_settings: Any, shape: Any, memory: Any
) -> None:
    for patients in (20, 60):
        gradients = Gradients(Steps(1.0, 0.05, 1.0, 3.0), random.Random(0))
        _, _, report = trained((make_cohort(patients), make_packer), shape, memory, make_settings, gradients, 5)
        assert report.steps == 5


def test_passes_over_the_patients_are_refused(
    make_cohort: Any, make_packer: Any, make_settings: Any, shape: Any, memory: Any
) -> None:
    gradients = Gradients(Steps(1.0, 0.05, 1.0, 3.0), random.Random(0))
    packer = make_packer(make_cohort(patients=10))
    with pytest.raises(ValueError, match="number of steps"):
        train(build(shape, 0), memory, packer, [], make_settings(private=gradients), 1)


def test_one_patient_moves_a_step_by_no_more_than_the_clip(
    make_cohort: Any, make_packer: Any, make_settings: Any, shape: Any, memory: Any
) -> None:
    """One step with the same noise, with and without the last patient: the gradient differs by <= the clip."""
    cohort = make_cohort(patients=30)
    patients, packer = cohort.labelled("train"), make_packer(cohort)

    def gradient(people: list[Any]) -> np.ndarray:
        found: list[np.ndarray] = []

        class Noted(Gradients):
            def sample(self, patients: int) -> list[int]:
                return list(range(patients))

            def mean(self, *given: Any) -> list[Tensor]:
                made = super().mean(*given)
                found.append(np.concatenate([each.numpy().ravel() for each in made]))
                return made

        noted = Noted(Steps(0.5, 0.5, 0.1, 1.0), random.Random(0))
        settings = make_settings(steps=1, private=noted)
        train(build(dataclasses.replace(shape, dropout=0.0), 0), memory, packer, people, settings, 1)
        return found[0]

    moved = np.linalg.norm(gradient(patients) - gradient(patients[:-1]))
    assert 0 < moved <= 0.1 * (1 + 1e-5)
