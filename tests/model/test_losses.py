"""Each loss against its equation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from momkd_fl.model import losses
from momkd_fl.model.memory import smooth_maximum


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_alignment_for_two_classes_is_the_paper_s() -> None:
    vectors, slots, labels = unit(6, 8), unit(2, 3, 8, seed=1), torch.tensor([0, 1, 1, 0, 1, 0])
    phi = smooth_maximum(vectors, slots)
    delta = phi[:, 1] - phi[:, 0]
    want = F.softplus(20 * (0.3 - (2 * labels - 1) * delta)).mean()
    torch.testing.assert_close(losses.alignment(vectors, labels, slots, 0.3), want)


def test_alignment_for_more_classes_looks_at_the_best_other() -> None:
    slots = torch.eye(6).reshape(3, 2, 6)
    near = F.normalize(slots[1, 0] + 0.2 * slots[2, 1], dim=-1)[None]
    phi = smooth_maximum(near, slots)[0]
    want = F.softplus(20 * (0.3 - (phi[1] - phi[2])))
    torch.testing.assert_close(losses.alignment(near, torch.tensor([1]), slots, 0.3), want)


def test_commitment_is_the_distance_to_the_nearest_slot_of_the_own_class() -> None:
    patches, slots = unit(5, 8), unit(2, 3, 8, seed=1)
    bag, counts, labels = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([3, 2]), torch.tensor([1, 0])
    want = []
    for row in range(2):
        each = [
            min(float((p - slot).square().mean()) for slot in slots[labels[row]]) for p in patches[bag == row]
        ]  # on the sphere, nearest by cosine and by distance is the same slot
        want.append(sum(each) / len(each))
    assert float(losses.commitment(patches, bag, counts, labels, slots)) == pytest.approx(sum(want) / 2, rel=1e-5)


@pytest.mark.parametrize(("slots", "want"), [(torch.eye(4)[None, :3], 0.0), (torch.eye(4)[[0, 0, 0]][None], 20 / 3)])
def test_orthogonality_is_zero_for_orthogonal_slots_and_largest_for_one_direction(
    slots: torch.Tensor, want: float
) -> None:
    assert float(losses.orthogonality(slots, torch.tensor([0]))) == pytest.approx(want, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
def test_slot_matching_is_least_where_both_say_the_same(seed: int, temperature: float) -> None:
    anchors, genome, other = unit(2, 3, 5, seed=seed), unit(4, 5, seed=seed + 1), unit(4, 5, seed=seed + 2)
    same = losses.slot_matching(genome, genome, anchors, temperature)
    assert float(losses.slot_matching(other, genome, anchors, temperature)) >= float(same) - 1e-5
    target = torch.softmax(genome @ anchors.flatten(0, 1).T / temperature, dim=-1)
    torch.testing.assert_close(same, torch.special.entr(target).sum(1).mean(), rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_the_smooth_maximum_lies_between_the_maximum_and_its_bound(seed: int, per_class: int) -> None:
    vectors, slots = unit(5, 7, seed=seed), unit(2, per_class, 7, seed=seed + 1)
    largest = torch.einsum("bs,cks->bck", vectors, slots).amax(-1)
    phi = smooth_maximum(vectors, slots)
    assert (phi >= largest - 1e-5).all()
    assert (phi <= largest + math.log(per_class) / 5 + 1e-5).all()


def test_the_matching_target_is_a_constant() -> None:
    student, genome = unit(4, 5, seed=1).requires_grad_(), unit(4, 5, seed=2).requires_grad_()
    losses.slot_matching(student, genome, unit(2, 3, 5), 0.1).backward()
    assert genome.grad is None
    assert student.grad is not None
    assert student.grad.any()


def test_class_matching_is_least_where_the_own_class_s_anchors_are_met_alike() -> None:
    anchors = torch.eye(4).view(2, 2, 4)
    between = F.normalize(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), dim=1)
    labels = torch.tensor([0])
    least = float(losses.class_matching(between, labels, anchors, 0.1))
    assert least == pytest.approx(math.log(2), abs=1e-2)
    assert float(losses.class_matching(anchors[0, :1], labels, anchors, 0.1)) > least
    assert float(losses.class_matching(between, torch.tensor([1]), anchors, 0.1)) > 5 * least


def test_taught_is_least_at_the_teacher_s_own_logits() -> None:
    teacher = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    logits = teacher.clone().requires_grad_()
    (grad,) = torch.autograd.grad(losses.taught(logits, teacher, 2.0), logits)
    torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-6, rtol=0)
    assert losses.taught(-teacher, teacher, 2.0) > losses.taught(teacher, teacher, 2.0)


def test_softened_classification_is_the_sum_of_its_plain_terms() -> None:
    logits, teacher, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    rows, share = torch.tensor([1, 3]), 0.7
    expected = 0.0
    for patient in range(4):
        log_p = logits[patient] - logits[patient].exp().sum().log()
        hard = -log_p[labels[patient]]
        soft = -(teacher[patient].exp() / teacher[patient].exp().sum() * log_p).sum()
        expected += float((1 - share) * hard + share * soft if patient in rows else hard) / 4
    assert float(losses.softened_classification(logits, labels, teacher, rows, share)) == pytest.approx(expected)
    nobody = losses.softened_classification(logits, labels, teacher, rows[:0], 1.0)
    torch.testing.assert_close(nobody, F.cross_entropy(logits, labels))


def test_a_label_that_is_replaced_whole_is_not_read() -> None:
    logits, teacher, rows = torch.randn(2, 2), torch.randn(2, 2), torch.tensor([1])
    one, two = (
        losses.softened_classification(logits, torch.tensor([0, label]), teacher, rows, 1.0) for label in (0, 1)
    )
    torch.testing.assert_close(one, two)


def test_distances_of_unit_vectors_agree() -> None:
    one, two = (F.normalize(torch.randn(5, 6), dim=1) for _ in range(2))
    torch.testing.assert_close(losses.squared_distance(one, two), 2 * losses.cosine_distance(one, two))
