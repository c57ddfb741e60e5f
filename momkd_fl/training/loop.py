"""One site's training in one round, and scoring: the visible loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from momkd_fl.data.cohort import Patient
from momkd_fl.errors import UserError
from momkd_fl.model.baselines import GatedAttention
from momkd_fl.model.batch import NO_LABEL, PackedBags
from momkd_fl.model.memory import Memory, effective_patches
from momkd_fl.model.momkd import LossWeights, MoMKD, Output, branch_of
from momkd_fl.training.capture import Recorded
from momkd_fl.training.kernels import student_output
from momkd_fl.training.loader import scoring_packs, training_packs
from momkd_fl.training.precision import DTYPES, Precision, Step
from momkd_fl.training.private_loop import PatientGradients, private_steps
from momkd_fl.training.sampling import Packer

Model = MoMKD | GatedAttention


@dataclass(frozen=True)
class TrainSettings:
    """What a round asks of a site.

    ``steps`` None: ``epochs`` passes over the training patients. ``capture``: steps whose shapes come again are
    replayed as CUDA graphs. ``private``: DP-SGD, in which ``steps`` must be given and the losses are not reported;
    ``patients_per_step``, ``clip_norm`` and ``proximal_mu`` have no meaning there.
    """

    epochs: float
    steps: int | None
    patients_per_step: int
    learning_rate: float
    weight_decay: float
    clip_norm: float
    precision: Precision
    device: torch.device
    losses: LossWeights
    proximal_mu: float = 0.0
    max_patches: int | None = None
    capture: bool = False
    private: PatientGradients | None = None


@dataclass(frozen=True)
class TrainReport:
    """Steps and seconds of a round, mean of each loss term, and the optimiser to go on with."""

    steps: int
    seconds: float
    losses: dict[str, float]
    optimiser: dict[str, Any] = field(repr=False)


def train(
    model: Model,
    memory: Memory,
    packer: Packer,
    patients: Sequence[Patient],
    settings: TrainSettings,
    seed: int,
    optimiser_state: dict[str, Any] | None = None,
) -> TrainReport:
    """Train ``model`` in place with the memory fixed, from class-balanced patients (METHOD sections 4, 6, 8).

    With ``settings.private`` it is DP-SGD by patient instead (PRIVACY.md, "Weights").

    The branches' gradients are clipped separately, so that neither scales the other. Dropout is seeded anew for
    every step: a student without genomics meets the same masks as one with it, and the two can be compared in pairs.

    Raises
    ------
    UserError
        ``training-diverged`` when a loss is no number any more.
    """
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    device, memory = settings.device, memory.to(settings.device)
    model.to(device).train()
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
        capturable=settings.capture,
    )
    if optimiser_state is not None:
        optimiser.load_state_dict(optimiser_state)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate
    if settings.private is not None:
        if settings.steps is None:
            raise ValueError("DP-SGD needs a number of steps that does not depend on the patients")

        def loss_of(batch: PackedBags) -> Tensor:
            output = student_output(model, batch, memory, "fp32")
            return torch.stack(list(model.loss(output, batch, memory, settings.losses).values())).sum()

        private_steps(
            settings.steps, patients, packer, rng, settings.max_patches, optimiser, settings.private, loss_of, device
        )
        return TrainReport(settings.steps, time.perf_counter() - started, {}, optimiser.state_dict())
    branches = _branches(model)
    anchor = [parameter.detach().clone() for parameter in model.parameters()] if settings.proximal_mu else []

    def step(batch: PackedBags) -> dict[str, Tensor]:
        output = student_output(model, batch, memory, settings.precision)
        terms = model.loss(output, batch, memory, settings.losses)
        loss = torch.stack(list(terms.values())).sum()
        if anchor:
            loss = loss + settings.proximal_mu / 2 * _squared_distance(model, anchor)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        for parameters in branches.values():
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimiser.step()
        return {name: value.detach() for name, value in terms.items()}

    run = Recorded(step) if settings.capture else step
    steps = settings.steps or max(1, math.ceil(settings.epochs * len(patients) / settings.patients_per_step))
    totals: dict[str, Tensor] = {}
    packs = training_packs(
        packer, patients, steps, settings.patients_per_step, rng, settings.max_patches, device,
        DTYPES[settings.precision],
    )  # fmt: skip
    with closing(packs):
        for batch, seed_of_step in packs:
            _seed(device, seed_of_step)
            for name, value in run(batch).items():
                totals[name] = totals.get(name, 0.0) + value
            del batch  # before the next pack is asked for: a large bag is not held twice
    means = {name: float(value) / steps for name, value in totals.items()}
    if not all(math.isfinite(value) for value in means.values()):
        raise UserError(
            "training-diverged",
            "Training diverged: the loss is no longer a number. Lower training.learning_rate or training.clip_norm in "
            "the federation's file, and check the site's features for extreme values.",
        )
    return TrainReport(steps, time.perf_counter() - started, means, optimiser.state_dict())


def trial_step(
    model: Model, memory: Memory, packer: Packer, patients: Sequence[Patient], device: torch.device, losses: LossWeights
) -> Step:
    """One step over ``patients`` to try a precision with: gradients are formed and dropped, nothing is drawn."""
    batch, memory = packer.pack(patients).to(device), memory.to(device)

    def step(precision: Precision) -> Tensor:
        model.to(device).eval()
        output = student_output(model, batch, memory, precision)
        terms = model.loss(output, batch, memory, losses)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        model.zero_grad(set_to_none=True)
        logits: Tensor = output.logits.detach()
        return logits

    return step


@torch.no_grad()
def embed(
    model: Model,
    memory: Memory,
    packer: Packer,
    patients: Sequence[Patient],
    device: torch.device,
    precision: Precision = "fp32",
    *,
    patches: bool = True,
) -> Iterator[tuple[Sequence[Patient], PackedBags, Output]]:
    """Outputs in inference mode, pack by pack, every patient once and in order; a pack lasts until the next.

    ``patches`` False: large packs leave their patches' embeddings out.
    """
    memory = memory.to(device)
    model.to(device).eval()
    with closing(scoring_packs(packer, patients, device, DTYPES[precision])) as packs:
        for chosen, batch in packs:
            yield chosen, batch, student_output(model, batch, memory, precision, patches=patches)


@dataclass(frozen=True)
class Prediction:
    """Scores of n patients: labels (n,), probabilities (n, C), log loss (n,), mean effective patches per bag.

    A patient without a label has ``NO_LABEL`` and no loss (NaN).
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    loss: NDArray[np.float64]
    effective_patches: float

    def loss_by_class(self, classes: int) -> list[float]:
        """Sum of the log loss over each class's patients."""
        return [float(self.loss[self.labels == label].sum()) for label in range(classes)]


def predict(
    model: Model,
    memory: Memory,
    packer: Packer,
    patients: Sequence[Patient],
    device: torch.device,
    precision: Precision = "fp32",
) -> Prediction:
    """Score patients, labelled or not, without dropout."""
    labels, logits, effective = [], [], 0.0
    for _, batch, output in embed(model, memory, packer, patients, device, precision, patches=False):
        labels.append(batch.labels.cpu())
        logits.append(output.logits.double().cpu())
        effective += batch.patients * float(effective_patches(output.attention, batch.bag, batch.patients))
    classes = model.shape.classes
    truth = torch.cat(labels) if labels else torch.zeros(0, dtype=torch.int64)
    scores = torch.cat(logits) if logits else torch.zeros(0, classes, dtype=torch.float64)
    loss = F.cross_entropy(scores, truth, ignore_index=NO_LABEL, reduction="none")
    return Prediction(
        ids=tuple(patient.id for patient in patients),
        labels=truth.numpy(),
        probabilities=torch.softmax(scores, dim=1).numpy(),
        loss=torch.where(truth == NO_LABEL, torch.nan, loss).numpy(),
        effective_patches=effective / max(len(patients), 1),
    )


def _seed(device: torch.device, seed: int) -> None:
    """``torch.manual_seed`` of the device at hand; on a CPU without what it does for GPUs, 2 ms a step."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _branches(model: Model) -> dict[str, list[torch.nn.Parameter]]:
    """Parameters by branch; trainable slots, which both branches reach, are a branch of their own."""
    found: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault("memory" if name == "slots" else branch_of(name), []).append(parameter)
    return found


def _squared_distance(model: Model, anchor: list[Tensor]) -> Tensor:
    return torch.stack([(p - a).square().sum() for p, a in zip(model.parameters(), anchor, strict=True)]).sum()
