"""The fast paths against their plain twins in float64: values, and the gradient of every tensor."""

from __future__ import annotations

import copy
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from momkd_fl.data.graph import neighbours
from momkd_fl.model.baselines import GatedAttention, build
from momkd_fl.model.batch import PackedBags, pack
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import LossWeights, MoMKD, Output, StudentShape
from momkd_fl.training import kernels, rows
from momkd_fl.training.encoder_kernel import encode
from momkd_fl.training.gated_kernel import gated_pool
from momkd_fl.training.kernels import pool, student_output
from momkd_fl.training.rows import Dropout

DIM, HIDDEN, SLOTS, S, GENES = 96, 64, 4, 16, 12
FP32, BF16 = 1e-4, 0.05
SIZES = (700, 1, 37, 450)


def case(
    architecture: str = "momkd", classes: int = 2, dropout: float = 0.5, sizes: tuple[int, ...] = SIZES
) -> tuple[MoMKD | GatedAttention, PackedBags, Memory]:
    """Bags as encoders give them, standardised: a few directions, and some noise."""
    shape = StudentShape(
        DIM, HIDDEN, 2, S, 8, classes, SLOTS, GENES if architecture == "momkd" else None, None, dropout,
        architecture=architecture, memory_mode="momentum",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((8, DIM))
    bags = []
    for size in sizes:
        side = int(size**0.5) + 1
        coords = np.stack([np.arange(size) % side, np.arange(size) // side], 1).astype(np.float32)
        features = rng.standard_normal((size, 8)) @ basis + 0.5 * rng.standard_normal((size, DIM))
        bags.append(((features / np.sqrt((basis**2).sum(axis=0) + 0.25)).astype(np.float32), neighbours(coords, 8)))
    genes = [rng.standard_normal(GENES).astype(np.float32), None, None, rng.standard_normal(GENES).astype(np.float32)]
    labels = [0, classes - 1, 0, 1]
    batch = pack(bags, labels, genes, GENES if shape.genes else None)
    slots = torch.randn(classes, SLOTS, S, generator=torch.Generator().manual_seed(1))
    student = build(shape, 0).train()
    torch.manual_seed(6)
    for module in [student.classifier, *([student.genomics] if getattr(student, "genomics", None) else [])]:
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # torch's own: a twin cannot be given the same draws
    return student, batch, Memory(slots=nn.functional.normalize(slots, dim=-1))


class Masks(nn.Module):
    """Dropout with masks that are given."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        return x * self.masks.pop(0)


def exact_twin(student: MoMKD | GatedAttention, drawn: list[Dropout], patches: int) -> MoMKD | GatedAttention:
    """The plain student in float64, with the masks that the fast path drew."""
    twin = copy.deepcopy(student).double()
    masks = Masks([dropout.mask(patches, HIDDEN).double() for dropout in drawn])
    if isinstance(twin, MoMKD):
        twin.encoder.dropout = masks
    else:
        twin.embedding[2] = masks
    return twin


def exact(batch: PackedBags, memory: Memory) -> tuple[PackedBags, Memory]:
    genes = None if batch.genes is None else batch.genes.double()
    slots = None if memory.slots is None else memory.slots.double()
    return replace(batch, features=batch.features.double(), genes=genes), Memory(slots=slots)


def gradients(student: nn.Module, output: Output, batch: PackedBags, memory: Memory) -> dict[str, Tensor]:
    student.zero_grad()
    torch.stack(list(student.loss(output, batch, memory, LossWeights()).values())).sum().backward()
    return {name: value.grad.clone() for name, value in student.named_parameters() if value.grad is not None}


def record_draws(monkeypatch: pytest.MonkeyPatch) -> list[Dropout]:
    drawn: list[Dropout] = []
    draw = Dropout.draw

    def recorded(probability: float, training: bool) -> Dropout:
        drawn.append(draw(probability, training))
        return drawn[-1]

    monkeypatch.setattr(Dropout, "draw", recorded)
    return drawn


def difference(got: Tensor, want: Tensor) -> float:
    return float(((got - want).norm() / want.norm().clamp_min(1e-9)).detach())


@pytest.mark.parametrize("tile_rows", [2048, 100])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("architecture", ["momkd", "gated_attention"])
def test_fp32_values_and_every_gradient_are_the_plain_students(
    monkeypatch: pytest.MonkeyPatch, architecture: str, classes: int, tile_rows: int
) -> None:
    monkeypatch.setattr(rows, "TILE_ROWS", tile_rows)
    student, batch, memory = case(architecture, classes)
    drawn = record_draws(monkeypatch)
    output = student_output(student, batch, memory, "fp32")
    got = gradients(student, output, batch, memory)
    twin, (batch64, memory64) = exact_twin(student, drawn, len(batch.bag)), exact(batch, memory)
    wanted = twin(batch64, memory64)
    for name, value in vars(wanted).items():
        if value is not None:
            assert difference(getattr(output, name), value) < FP32, name
    for name, value in gradients(twin, wanted, batch64, memory64).items():
        assert difference(got[name], value) < FP32, name


@pytest.mark.parametrize("architecture", ["momkd", "gated_attention"])
def test_bf16_values_and_gradients_stay_within_five_percent(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    """For a given gradient of the bags: the memory's own kinks (nearest slot) would say nothing of the kernel.

    Bags have the size of small slides. W_r's gradient comes through the leaky ReLU's kink alone, where rounding flips
    signs: of a few hundred patches it is up to 8 % off, as torch's own bf16 is, and less the more patches there are.
    """
    student, batch, _ = case(architecture, sizes=(6000, 1, 37, 4000))
    draw = torch.Generator().manual_seed(2)
    share, upstream = torch.rand(len(batch.bag), 1, generator=draw), torch.randn(len(SIZES), HIDDEN, generator=draw)
    drawn = record_draws(monkeypatch)
    got = kernel_gradients(student, batch, share, upstream)
    twin = exact_twin(student, drawn, len(batch.bag))
    if isinstance(twin, MoMKD):
        features = twin.encoder(batch.features.double(), batch.neighbours)
        bags = torch.zeros(len(SIZES), HIDDEN, dtype=torch.float64).index_add(0, batch.bag, share * features)
    else:
        seen: list[Tensor] = []
        twin.classifier[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        twin(exact(batch, Memory())[0], Memory())
        bags = seen[0]
    twin.zero_grad()
    (bags * upstream).sum().backward()
    wanted = {name: value.grad for name, value in twin.named_parameters() if value.grad is not None}
    assert difference(got.pop("pooled"), bags.detach()) < BF16
    assert {name for name, value in wanted.items() if value.norm() > 1e-9} <= set(got)
    for name, value in wanted.items():
        assert difference(got[name], value) < BF16, name


def kernel_gradients(
    student: MoMKD | GatedAttention, batch: PackedBags, share: Tensor, upstream: Tensor
) -> dict[str, Tensor]:
    if isinstance(student, MoMKD):
        features = encode(student.encoder, batch.features, batch.neighbours, torch.bfloat16)
        bags = pool(share, features, batch)[:, 0]
    else:
        bags, _ = gated_pool(student, batch, torch.bfloat16)
    (bags * upstream).sum().backward()
    found = {name: value.grad for name, value in student.named_parameters() if value.grad is not None}
    return {**found, "pooled": bags.detach()}


def test_bf16_scores_are_close_to_the_exact_ones() -> None:
    for architecture in ("momkd", "gated_attention"):
        student, batch, memory = case(architecture)
        student.eval()
        with torch.no_grad():
            rounded = student_output(student, batch, memory, "bf16").logits.softmax(dim=1)
            wanted = copy.deepcopy(student).double()(*exact(batch, memory)).logits.softmax(dim=1)
        assert float((rounded - wanted).abs().max()) < 0.02


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("classes", [2, 3])
def test_scoring_by_tiles_is_scoring_the_whole_bag(
    monkeypatch: pytest.MonkeyPatch, classes: int, precision: str
) -> None:
    student, batch, memory = case(classes=classes)
    student.eval()
    with torch.no_grad():
        whole = student_output(student, batch, memory, precision)
        monkeypatch.setattr(kernels, "SCORE_ROWS", 90)
        tiled = student_output(student, batch, memory, precision)
        scored = student_output(student, batch, memory, precision, patches=False)
    assert scored.patches is None
    assert torch.equal(scored.logits, tiled.logits)
    for name, value in vars(whole).items():
        if value is not None:
            tolerance = 1e-5 if precision == "fp32" else 1e-2
            torch.testing.assert_close(getattr(tiled, name), value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("architecture", ["momkd", "gated_attention"])
def test_threads_share_the_rows_and_change_nothing(architecture: str) -> None:
    student, batch, memory = case(architecture, dropout=0.0)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        output = student_output(student, batch, memory, "fp32")
        found.append((output.logits.detach(), gradients(student, output, batch, memory)))
    torch.set_num_threads(1)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("architecture", ["momkd", "gated_attention"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_number_that_is_none_is_never_hidden(architecture: str, precision: str) -> None:
    student, batch, memory = case(architecture)
    with torch.no_grad():
        next(student.parameters()).fill_(torch.nan)
        if isinstance(student, MoMKD):
            student.encoder.second_norm.bias.fill_(torch.nan)
        else:
            student.embedding[0].bias.fill_(torch.nan)
    assert torch.isnan(student_output(student, batch, memory, precision).logits).any()


def test_scoring_keeps_no_tile_and_training_keeps_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    student, batch, memory = case("gated_attention", sizes=(5000, 1, 1, 1))
    monkeypatch.setattr(rows, "TILE_ROWS", 256)
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    product = torch.addmm

    def watched(*given: Tensor) -> Tensor:
        result = product(*given)
        made.append(weakref.ref(result))
        alive.append(sum(one() is not None for one in made))
        return result

    monkeypatch.setattr(torch, "addmm", watched)
    most = []
    for learning in (False, True):
        made.clear()
        alive.clear()
        with torch.set_grad_enabled(learning):
            student_output(student, batch, memory, "fp32")
        assert len(made) == 2 * 20
        most.append(max(alive))
    assert most[0] <= 4
    assert most[1] == 40


@pytest.mark.parametrize("architecture", ["momkd", "gated_attention"])
def test_what_is_compiled_beforehand_is_all_that_a_step_needs(architecture: str) -> None:
    """In a process of its own: every kernel of a step has been compiled for its types when the step begins."""
    code = (
        "import sys; sys.path.insert(0, 'tests/training')\n"
        "from momkd_fl.training import compiled, kernels\n"
        f"kernels.compile_kernels({architecture!r}, 'bf16')\n"
        "before = {n: len(f.signatures) for n, f in vars(compiled).items() if hasattr(f, 'signatures')}\n"
        "import test_kernels as t\n"
        f"student, batch, memory = t.case({architecture!r})\n"
        "t.gradients(student, kernels.student_output(student, batch, memory, 'bf16'), batch, memory)\n"
        "after = {n: len(f.signatures) for n, f in vars(compiled).items() if hasattr(f, 'signatures')}\n"
        "assert sum(before.values()) > 3 and before == after, (before, after)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_gradient_crosses_patients() -> None:
    student, batch, memory = case(dropout=0.0)
    features = batch.features.clone()
    features[: SIZES[0]] += 1.0
    one = student_output(student, batch, memory, "fp32").logits
    other = student_output(student, replace(batch, features=features), memory, "fp32").logits
    assert not torch.equal(one[0], other[0])
    torch.testing.assert_close(one[1:], other[1:])


def test_dropout_is_drawn_as_often_as_asked_and_anew_for_every_step() -> None:
    torch.manual_seed(6)
    first, second = Dropout.draw(0.25, True), Dropout.draw(0.25, True)
    masks = [dropout.mask(500, 200) for dropout in (first, second)]
    for mask in masks:
        assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=0.006)
        assert sorted(mask.unique().tolist()) == pytest.approx([0.0, 1 / 0.75])
        for along in (0, 1):  # no row and no column is favoured
            assert float((mask == 0).float().mean(along).std()) < 0.04
    assert float(((masks[0] == 0) & (masks[1] == 0)).float().mean()) == pytest.approx(0.0625, abs=0.004)
    assert Dropout.draw(0.25, False).mask(3, 4).tolist() == [[1.0] * 4] * 3
