"""The second architecture, and seeds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from momkd_fl.model.baselines import build
from momkd_fl.model.batch import PackedBags
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import LossWeights, StudentShape, branch_of

Shape = Callable[..., StudentShape]


@pytest.mark.parametrize("classes", [2, 3])
def test_gated_attention_classifies_and_matches_anchors(
    make_shape: Shape, make_memory: Callable[..., Memory], make_pack: Callable[..., PackedBags], classes: int
) -> None:
    model = build(make_shape(architecture="gated_attention", classes=classes), 0).eval()
    memory, batch = make_memory(classes=classes), make_pack()
    output = model(batch, Memory(None, memory.anchors, memory.space))
    terms = model.loss(output, batch, memory, LossWeights())
    assert output.logits.shape == (4, classes)
    assert set(terms) == {"classification", "match"}
    branches = {name: branch_of(name) for name, _ in model.named_parameters()}
    assert {name for name, branch in branches.items() if branch == "genomics"} == {
        "anchor_head.weight",
        "anchor_head.bias",
    }
    sums = torch.zeros(4).index_add(0, batch.bag, output.attention[:, 0])
    torch.testing.assert_close(sums, torch.ones(4))


def test_without_anchors_it_only_classifies(make_shape: Shape, make_pack: Callable[..., PackedBags]) -> None:
    model = build(make_shape(architecture="gated_attention", genes=None, anchor_dim=None), 0)
    batch = make_pack()
    assert set(model.loss(model(batch, Memory()), batch, Memory(), LossWeights())) == {"classification"}


@pytest.mark.parametrize("architecture", ["momkd", "gated_attention"])
def test_a_seed_gives_one_student_and_leaves_the_global_generator(make_shape: Shape, architecture: str) -> None:
    shape = make_shape(architecture=architecture)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, again, other = build(shape, 7), build(shape, 7), build(shape, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("architecture", ["momkd", "gated_attention"])
@pytest.mark.parametrize("mode", ["anchors", "gradient"])
def test_the_control_without_genomics_starts_as_the_same_student(
    make_shape: Shape, architecture: str, mode: str
) -> None:
    full = build(make_shape(architecture=architecture, memory_mode=mode), 3).state_dict()
    control = build(
        make_shape(architecture=architecture, memory_mode=mode, genes=None, anchor_dim=None), 3
    ).state_dict()
    assert set(control) < set(full)
    assert all(torch.equal(full[name], value) for name, value in control.items())
