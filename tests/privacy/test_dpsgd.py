"""Private steps: one patient moves them by at most the clip, and nothing but noise tells who was there."""

from __future__ import annotations

import math
import os
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from momkd_fl.privacy.accountant import joint_epsilon
from momkd_fl.privacy.dpsgd import Steps, poisson_sample, private_gradients

Patient = tuple[Tensor, int]
QUIET = 2.0**-14
"""The least noise the grid allows: 2^10 steps."""


class Student(nn.Module):
    """Mean of a bag's patches, then a layer; one layer that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.unused = nn.Linear(6, 2), nn.Linear(3, 2)

    def loss(self, patient: Patient) -> Tensor:
        bag, label = patient
        return nn.functional.cross_entropy(self.layer(bag.mean(0))[None], torch.tensor([label]))


def cohort(count: int, scale: float = 1.0) -> list[Patient]:
    generator = torch.Generator().manual_seed(1)
    return [(scale * torch.randn(4 + n % 3, 6, generator=generator), n % 2) for n in range(count)]


def step(patients: list[Patient], steps: Steps, seed: int = 0) -> list[Tensor]:
    student = Student()
    return private_gradients(list(student.parameters()), patients, student.loss, steps, random.Random(seed).randbytes)


def flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([each.double().ravel() for each in gradients])


def test_without_clipping_and_noise_it_is_the_plain_gradient() -> None:
    student, patients = Student(), cohort(8)
    torch.stack([student.loss(each) for each in patients]).mean().backward()
    found = step(patients, Steps(QUIET, 0.5, clip=100.0, patients_expected=8))
    for gradient, parameter in zip(found, student.parameters(), strict=True):
        assert gradient.shape == parameter.shape
        assert gradient.dtype == parameter.dtype
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradient, expected, atol=6 * 100 * QUIET / 8, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.sampled_from([1e-6, 1.0, 1e4, 1e30, math.inf, math.nan]), st.floats(0.01, 10))
def test_one_patient_more_moves_the_sum_by_at_most_the_clip(others: int, scale: float, clip: float) -> None:
    steps = Steps(QUIET, 0.5, clip, patients_expected=1)
    patients, canary = cohort(others), cohort(1, scale)
    moved = flat(step([*patients, *canary], steps)) - flat(step(patients, steps))  # the noise is the same
    assert moved.isfinite().all()
    assert float(moved.norm()) <= clip * (1 + 1e-5)  # float32 of the reply


def test_a_large_gradient_is_clipped_and_a_small_one_is_not() -> None:
    """The control to the bound above: without clipping this patient would move the sum by more."""
    steps = Steps(QUIET, 0.5, clip=0.1, patients_expected=1)
    loud = [(bag, 1 - label) for bag, label in cohort(1, 50.0)]
    student = Student()
    plain = torch.autograd.grad(student.loss(loud[0]), list(student.layer.parameters()))
    assert float(flat(list(plain)).norm()) > 0.5
    moved = flat(step(loud, steps)) - flat(step([], steps))
    assert float(moved.norm()) == pytest.approx(0.1, rel=1e-3)


def test_an_empty_step_has_noise_of_the_stated_size_on_every_weight() -> None:
    steps = Steps(1.8, 0.1, clip=0.5, patients_expected=20)
    drawn = torch.stack([flat(step([], steps, seed)) for seed in range(400)])
    assert drawn.shape[1] == 6 * 2 + 2 + 3 * 2 + 2
    assert ((drawn.std(0) / (1.8 * 0.5 / 20) - 1).abs() < 0.2).all()


def test_the_divisor_is_the_expected_number_not_the_one_drawn() -> None:
    steps = Steps(QUIET, 0.5, clip=1.0, patients_expected=10)
    silence = flat(step([], steps))
    two, four = cohort(1) * 2, cohort(1) * 4
    torch.testing.assert_close(
        flat(step(four, steps)) - silence, 2 * (flat(step(two, steps)) - silence), atol=1e-5, rtol=1e-4
    )


def test_sampling_is_independent_with_the_rate() -> None:
    entropy = random.Random(0).randbytes
    drawn = [poisson_sample(50, 0.1, entropy) for _ in range(4000)]
    sizes = np.array([len(each) for each in drawn])
    assert sizes.mean() == pytest.approx(5, abs=0.15)
    assert sizes.var() == pytest.approx(4.5, abs=0.45), "the size varies: that is what the accounting assumes"
    assert (sizes == 0).any()
    share = np.bincount([row for each in drawn for row in each], minlength=50) / 4000
    assert np.abs(share - 0.1).max() < 0.025
    assert poisson_sample(5, 1.0) == [0, 1, 2, 3, 4]
    assert poisson_sample(0, 0.5) == []


def test_chance_comes_from_the_operating_system() -> None:
    assert poisson_sample.__defaults__ == (os.urandom,)
    assert private_gradients.__defaults__ == (os.urandom,)


def test_what_it_costs() -> None:
    steps = Steps(1.8, 0.1, clip=1.0, patients_expected=12)
    assert joint_epsilon([steps.charge(500)], 1e-5) == pytest.approx(6.422, abs=2e-3)
    for bad in ({"sigma": 0.0}, {"rate": 0.0}, {"clip": 0.0}, {"patients_expected": math.inf}):
        with pytest.raises(ValueError, match=r"positive|rate|above"):
            Steps(**({"sigma": 1.0, "rate": 0.1, "clip": 1.0, "patients_expected": 10.0} | bad))


def test_it_trains() -> None:
    """Two classes far apart, mild noise: the loss falls."""
    student, generator = Student(), torch.Generator().manual_seed(2)
    patients = [(torch.randn(5, 6, generator=generator) + 2 * (n % 2) - 1, n % 2) for n in range(60)]
    steps, parameters = Steps(0.5, 0.3, clip=1.0, patients_expected=18), list(student.layer.parameters())
    entropy = random.Random(3).randbytes

    def loss() -> float:
        return float(torch.stack([student.loss(each) for each in patients]).detach().mean())

    before = loss()
    for _ in range(60):
        sampled = [patients[row] for row in poisson_sample(60, steps.rate, entropy)]
        gradients = private_gradients(parameters, sampled, student.loss, steps, entropy)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.5 * gradient
    assert loss() < 0.5 * before
