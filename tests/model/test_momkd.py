"""The student: what it computes, what each loss may reach (METHOD section 5), and what a missing modality changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from momkd_fl.model import losses
from momkd_fl.model.baselines import build
from momkd_fl.model.batch import PackedBags, pack
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import (
    LossWeights,
    MoMKD,
    Output,
    StudentShape,
    architecture_hash,
    branch_of,
    load_weights,
    weights,
)

Shape = Callable[..., StudentShape]
Pack = Callable[..., PackedBags]
MakeMemory = Callable[..., Memory]

GROUPS = (
    "encoder",
    "patch_projection",
    "slide_projection",
    "tau",
    "classifier",
    "anchor_head",
    "genomics.encoder",
    "genomics.projection",
    "genomics.decoder",
    "memory of class 0",
    "memory of class 1",
)
HISTOLOGY = {"encoder", "patch_projection", "tau"}
BOTH = {"memory of class 0", "memory of class 1"}
REACHES = {
    "classification": HISTOLOGY | {"classifier"},
    "commitment": {"encoder", "patch_projection"},
    "align_genomics": {"genomics.encoder", "genomics.projection"},
    "align_histology": HISTOLOGY | {"slide_projection"},
    "reconstruction": {"genomics.encoder", "genomics.decoder"},
    "match": HISTOLOGY | {"anchor_head"},
}
"""What each loss reaches when the memory is a buffer: never the memory."""

REACHES_GRADIENT = {
    **{name: groups for name, groups in REACHES.items() if name != "match"},
    "align_genomics": REACHES["align_genomics"] | BOTH,
    "align_histology": REACHES["align_histology"] | BOTH,
    "orthogonality": {"memory of class 1"},
}
"""The same for mode 'gradient' (the pack below has class 1 only)."""


def group_of(name: str) -> str:
    return ".".join(name.split(".")[:2]) if name.startswith("genomics.") else name.split(".")[0]


def single_losses(model: MoMKD, batch: PackedBags, memory: Memory) -> dict[str, Tensor]:
    """Every loss by itself, unweighted."""
    output = model(batch, memory)
    ones = LossWeights(1, 1, 1, 1, 1, 1)
    found = model.loss(output, batch, memory, ones)
    slots = model.slots_of(memory)
    assert output.patches is not None
    found["commitment"] = losses.commitment(output.patches, batch.bag, batch.patches, batch.labels, slots)
    if model.shape.memory_mode == "gradient":
        found["orthogonality"] = losses.orthogonality(slots, batch.labels)
    del found["memory"]
    return found


def reached(loss: Tensor, model: MoMKD, buffers: Tensor) -> set[str]:
    """Groups of parameters whose gradient is not zero."""
    named = {name: value for name, value in model.named_parameters() if name != "slots"}
    memory = model.slots if model.shape.memory_mode == "gradient" else buffers
    grads = torch.autograd.grad(loss, [*named.values(), memory], allow_unused=True, retain_graph=True)
    found = {group_of(name) for name, grad in zip(named, grads, strict=False) if grad is not None and grad.any()}
    if grads[-1] is not None:
        found |= {f"memory of class {label}" for label, grad in enumerate(grads[-1]) if grad.any()}
    return found


@pytest.mark.parametrize(
    ("mode", "loss", "group"),
    [
        (mode, loss, group)
        for mode, table in (("anchors", REACHES), ("gradient", REACHES_GRADIENT))
        for loss in table
        for group in GROUPS
    ],
)
def test_every_cell_of_the_gradient_tables(
    make_shape: Shape, make_pack: Pack, make_memory: MakeMemory, mode: str, loss: str, group: str
) -> None:
    table = REACHES_GRADIENT if mode == "gradient" else REACHES
    anchor_dim = None if mode == "gradient" else 5
    model = build(make_shape(memory_mode=mode, anchor_dim=anchor_dim, dropout=0.0), 0)
    assert isinstance(model, MoMKD)
    memory = make_memory()
    assert memory.slots is not None
    assert memory.anchors is not None
    buffers = memory.slots.requires_grad_()  # were it ever trainable, no loss may find it
    memory.anchors.requires_grad_()
    batch = make_pack(labels=(1, 1, 1, 1))
    value = single_losses(model, batch, memory)[loss]
    assert (group in reached(value, model, buffers)) == (group in table[loss])
    assert torch.autograd.grad(value, memory.anchors, allow_unused=True)[0] is None


def histology_gradients(model: MoMKD, batch: PackedBags, memory: Memory, match: float) -> list[Tensor]:
    torch.manual_seed(0)
    total = torch.stack(list(model.loss(model(batch, memory), batch, memory, LossWeights(match=match)).values())).sum()
    chosen = [v for name, v in model.named_parameters() if branch_of(name) == "histology" and name != "slots"]
    grads = torch.autograd.grad(total, chosen, allow_unused=True)
    return [torch.zeros_like(value) if grad is None else grad for value, grad in zip(chosen, grads, strict=True)]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("mode", ["anchors", "momentum", "gradient"])
def test_genes_reach_histology_through_the_matching_target_alone(
    make_shape: Shape, make_pack: Pack, make_memory: MakeMemory, mode: str
) -> None:
    model = build(make_shape(memory_mode=mode), 0)
    assert isinstance(model, MoMKD)
    memory, batch = make_memory(), make_pack()
    assert batch.genes is not None
    other = dataclasses.replace(batch, genes=batch.genes.flip(1) + 1.0)
    without = [histology_gradients(model, each, memory, match=0.0) for each in (batch, other)]
    assert same(*without)
    assert any(grad.any() for grad in without[0])
    assert not same(*(histology_gradients(model, each, memory, match=0.5) for each in (batch, other)))


@pytest.mark.parametrize("group", GROUPS)
def test_soft_labels_reach_what_labels_reach_and_never_the_teacher(
    make_shape: Shape, make_pack: Pack, make_memory: MakeMemory, group: str
) -> None:
    model = build(make_shape(memory_mode="anchors", anchor_dim=5, dropout=0.0), 0)
    assert isinstance(model, MoMKD)
    memory, batch = make_memory(), make_pack(labels=(1, 1, 1, 1))
    assert memory.slots is not None
    teacher = torch.randn(4, 2, requires_grad=True)
    batch = dataclasses.replace(batch, teacher=teacher)
    output = model(batch, memory)
    hard, soft = (
        model.loss(output, batch, memory, LossWeights(soft_labels=share))["classification"] for share in (0.0, 1.0)
    )
    assert not torch.equal(hard, soft)
    assert (group in reached(soft, model, memory.slots.requires_grad_())) == (group in REACHES["classification"])
    assert torch.autograd.grad(soft, teacher, allow_unused=True, retain_graph=True)[0] is None


@pytest.mark.parametrize("value", [0.0, 1e6, float("nan")])
def test_the_row_of_a_patient_without_genes_is_never_read(
    make_shape: Shape, make_pack: Pack, make_memory: MakeMemory, value: float
) -> None:
    model, memory, batch = build(make_shape(), 0), make_memory(), make_pack()
    assert batch.genes is not None
    filled = dataclasses.replace(batch, genes=torch.where(batch.has_genes[:, None], batch.genes, value))

    def everything(each: PackedBags) -> list[Tensor]:
        torch.manual_seed(0)
        terms = model.loss(model(each, memory), each, memory, LossWeights())
        total = torch.stack(list(terms.values())).sum()
        return [*terms.values(), *torch.autograd.grad(total, list(model.parameters()))]

    assert same(everything(batch), everything(filled))


def test_a_pack_without_genes_has_no_genomic_terms_and_no_genomic_gradients(
    make_shape: Shape, make_pack: Pack, make_memory: MakeMemory
) -> None:
    model, memory, batch = build(make_shape(), 0), make_memory(), make_pack(genomic=(False,) * 4)
    terms = model.loss(model(batch, memory), batch, memory, LossWeights())
    assert set(terms) == {"classification", "memory", "align_histology"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(value.grad is None for name, value in model.named_parameters() if branch_of(name) == "genomics")


def outputs(model: nn.Module, batch: PackedBags, memory: Memory) -> Output:
    with torch.no_grad():
        out: Output = model(batch, memory)
    return out


@pytest.mark.parametrize("classes", [2, 3])
def test_packing_changes_nothing(make_shape: Shape, make_pack: Pack, make_memory: MakeMemory, classes: int) -> None:
    model = build(make_shape(classes=classes), 0).eval()
    memory, sizes, labels = make_memory(classes=classes), (7, 5, 9, 2), (0, 1, classes - 1, 0)
    whole = make_pack(sizes, labels, (True, False, True, False))
    together = outputs(model, whole, memory)
    sums: dict[str, Tensor] = {}
    for row in range(4):
        rows = whole.bag == row
        start = int(rows.nonzero()[0, 0])
        index = whole.neighbours[rows]
        one = pack(
            [(whole.features[rows].numpy(), torch.where(index >= 0, index - start, -1).numpy())],
            [labels[row]],
            [whole.genes[row].numpy() if whole.has_genes[row] and whole.genes is not None else None],
            10,
        )
        alone = outputs(model, one, memory)
        torch.testing.assert_close(alone.logits[0], together.logits[row])
        torch.testing.assert_close(alone.attention, together.attention[rows])
        for name, value in model.loss(alone, one, memory, LossWeights()).items():
            sums[name] = sums.get(name, torch.zeros(())) + value / 4
    terms = model.loss(together, whole, memory, LossWeights())
    assert set(terms) == set(sums)
    for name, value in terms.items():
        torch.testing.assert_close(value, sums[name], rtol=1e-4, atol=1e-6)


def test_the_order_of_patches_does_not_matter(make_shape: Shape, make_pack: Pack, make_memory: MakeMemory) -> None:
    model, memory = build(make_shape(), 0).eval(), make_memory()
    batch = make_pack((9,), (1,), (True,))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    place = torch.argsort(order)
    index = batch.neighbours[order]
    shuffled = dataclasses.replace(
        batch, features=batch.features[order], neighbours=torch.where(index >= 0, place[index.clamp(min=0)], -1)
    )
    one, two = outputs(model, batch, memory), outputs(model, shuffled, memory)
    torch.testing.assert_close(one.logits, two.logits)
    torch.testing.assert_close(one.attention[order], two.attention)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_attention_sums_to_one_for_each_patient(
    make_shape: Shape, make_pack: Pack, make_memory: MakeMemory, classes: int
) -> None:
    out = outputs(build(make_shape(classes=classes), 0), make_pack(), make_memory(classes=classes))
    assert out.attention.shape[1] == (1 if classes == 2 else classes)
    sums = torch.zeros(4, out.attention.shape[1]).index_add(0, make_pack().bag, out.attention)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert out.patches is not None
    torch.testing.assert_close(out.patches.norm(dim=1), torch.ones(23))


def test_attention_is_the_equation_s(make_shape: Shape, make_pack: Pack, make_memory: MakeMemory) -> None:
    memory, batch = make_memory(), make_pack()
    out = outputs(build(make_shape(), 0).eval(), batch, memory)
    assert out.patches is not None
    assert memory.slots is not None
    contrast = (out.patches @ memory.slots[1].T).amax(1) - (out.patches @ memory.slots[0].T).amax(1)
    want = torch.cat([torch.softmax(contrast[batch.bag == row] / 0.2, 0) for row in range(4)])
    torch.testing.assert_close(out.attention[:, 0], want)


@pytest.mark.parametrize(("raw", "used"), [(-1.0, 0.01), (0.5, 0.5), (9.0, 2.0)])
def test_tau_stays_in_its_bounds_and_can_come_back(
    make_shape: Shape, make_pack: Pack, make_memory: MakeMemory, raw: float, used: float
) -> None:
    model, memory, batch = build(make_shape(dropout=0.0), 0), make_memory(), make_pack()
    assert isinstance(model, MoMKD)
    model.tau.data.fill_(raw)
    assert float(model.temperature().detach()) == pytest.approx(used)
    model.loss(model(batch, memory), batch, memory, LossWeights())["classification"].backward()
    assert model.tau.grad is not None
    assert float(model.tau.grad) != 0.0


def test_a_student_that_needs_slots_says_so(make_shape: Shape, make_pack: Pack) -> None:
    with pytest.raises(ValueError, match="slots"):
        build(make_shape(), 0)(make_pack(), Memory())


def test_weights_go_round_and_must_fit(make_shape: Shape) -> None:
    one, two = build(make_shape(), 0), build(make_shape(), 1)
    held = weights(one)
    load_weights(two, held)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    held["tau"] += 1.0  # a copy
    assert float(one.get_parameter("tau").detach()) == pytest.approx(0.2)
    with pytest.raises(RuntimeError, match="tau"):
        load_weights(two, {name: value for name, value in held.items() if name != "tau"})


def test_the_architecture_s_hash_knows_every_field(make_shape: Shape) -> None:
    shape = make_shape()
    changed = {
        "dim_in": 13, "hidden": 32, "heads": 4, "memory_dim": 9, "neighbours": 5, "classes": 3, "slots": 4, "genes": 11,
        "anchor_dim": 6, "dropout": 0.4, "architecture": "gated_attention", "memory_mode": "momentum",
            "decoupled": False,
    }  # fmt: skip
    assert set(changed) == {each.name for each in dataclasses.fields(shape)}
    hashes = {architecture_hash(make_shape(**{name: value})) for name, value in changed.items()}
    assert len(hashes | {architecture_hash(shape)}) == len(changed) + 1
    assert architecture_hash(shape) == architecture_hash(make_shape())
