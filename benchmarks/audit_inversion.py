"""Can a patient be rebuilt: from a slot of which it is the only one, or from one update of the classifier's head."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.audit_site import AuditedSite, audited_site, canary
from benchmarks.figures import Figure, at_least, at_most
from momkd_fl.data.cohort import Patient
from momkd_fl.federation.memory_bank import moving
from momkd_fl.federation.private_plan import least_counts, slots_release
from momkd_fl.federation.private_release import PrivateSite
from momkd_fl.federation.public_space import public_statistics
from momkd_fl.federation.work import _loss_weights
from momkd_fl.model.momkd import MoMKD

MEMORY = {"memory": "local", "share": "memory", "epsilon": 8.0, "releases": 1, "site_patients": 2000}
WEIGHTS = {"weights": "dpsgd", "steps": 40, "epsilon": 8.0, "sampling_rate": 0.1, "site_patients": 100}


def slot_figures(quick: bool) -> list[Figure]:
    """A slot that one patient forms: how often it is published, and how near it is to that patient."""
    runs = 300 if quick else 5000
    with tempfile.TemporaryDirectory() as folder:
        site = audited_site(Path(folder), MEMORY)
        target = canary(site)
        site.keep([target])
        truth = public_statistics(site.config, site.memory, site.work.packer, [target], "hard").sums["histology"]
        plan = site.work.private.plan
        assert plan.sigma is not None
        release = slots_release(site.config, plan.sigma, genomic=False)
        least = least_counts(site.config, [release])
        published, cosines = 0, []
        for _ in range(runs):
            found = site.work.statistics(site.memory)
            published += int(moving(found.sums, found.counts, "histology", least)[1, 0])
            cosines.append(_cosine(found.sums["histology"][1, 0], truth[1, 0]))
        site.work.private.plan = dataclasses.replace(plan, sigma=1e-3)
        bare = site.work.statistics(site.memory)
        site.work.private.plan = plan
        open_to_all = moving(bare.sums, bare.counts, "histology", 0.5)[1, 0]
        control = _cosine(bare.sums["histology"][1, 0], truth[1, 0]) * float(open_to_all)
    return [
        at_most("audit.slot.published", published / runs, "share of releases", 0.0),
        Figure("audit.slot.cosine_if_it_were", round(float(np.mean(cosines)), 3), "cosine to the patient, with noise"),
        at_least("audit.slot.control.no_suppression", round(control, 4), "cosine", 0.999),
    ]


def gradient_figures(quick: bool) -> list[Figure]:
    """What enters the head's last layer, rebuilt from its gradient: dL/dW over dL/db, row by row.

    Beside it the guess of somebody who has seen no gradient: the mean of other patients.
    """
    with tempfile.TemporaryDirectory() as folder:
        site = audited_site(Path(folder), WEIGHTS, patients=24)
        patients = site.patients()[: 6 if quick else None]
        inputs = [_head_input(site, patient) for patient in patients]
        gradients = PrivateSite(site.config).gradients()
        assert gradients is not None
        private, raw, guess = [], [], []
        for row, patient in enumerate(patients):
            found = gradients.mean(_parameters(site), [(site.work.packer.pack([patient]), 0)], _loss_of(site))
            private.append(_rebuilt(site, found, inputs[row]))
            raw.append(
                _rebuilt(
                    site, torch.autograd.grad(_loss(site, patient), _parameters(site), allow_unused=True), inputs[row]
                )
            )
            others = np.mean([each for other, each in enumerate(inputs) if other != row], axis=0)
            guess.append(_cosine(others, inputs[row]))
    by_guessing = float(np.mean(guess))
    return [
        at_most(
            "audit.gradient.cosine",
            round(float(np.mean(private)), 3),
            "cosine to the head's input",
            round(by_guessing, 3),
        ),
        Figure("audit.gradient.guess", round(by_guessing, 3), "cosine of the mean of others"),
        at_least("audit.gradient.control.raw_batch_of_one", round(float(np.mean(raw)), 3), "cosine", 0.99),
    ]


def _student(site: AuditedSite) -> MoMKD:
    assert isinstance(site.work.model, MoMKD)
    return site.work.model.eval()


def _parameters(site: AuditedSite) -> list[Tensor]:
    return list(_student(site).parameters())


def _loss(site: AuditedSite, patient: Patient) -> Tensor:
    return _loss_of(site)((site.work.packer.pack([patient]), 0))


def _loss_of(site: AuditedSite):  # type: ignore[no-untyped-def]
    model, memory, losses = _student(site), site.memory, _loss_weights(site.config)

    def loss(bag: tuple[object, int]) -> Tensor:
        output = model(bag[0], memory)
        return torch.stack(list(model.loss(output, bag[0], memory, losses).values())).sum()  # type: ignore[arg-type]

    return loss


def _head_input(site: AuditedSite, patient: Patient) -> NDArray[np.float64]:
    """What the last layer of the classifier sees of a patient, (hidden,)."""
    model, seen = _student(site), []
    hook = model.classifier[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with torch.no_grad():
        model(site.work.packer.pack([patient]), site.memory)
    hook.remove()
    return np.asarray(seen[0].double().reshape(-1, seen[0].shape[-1])[0].numpy())


def _rebuilt(site: AuditedSite, gradient: Sequence[Tensor | None], truth: NDArray[np.float64]) -> float:
    """Cosine of the rebuilt input to the true one; 0 where the gradient says nothing."""
    head = _student(site).classifier[-1]
    places = {id(parameter): place for place, parameter in enumerate(_parameters(site))}
    weight, bias = gradient[places[id(head.weight)]], gradient[places[id(head.bias)]]
    if weight is None or bias is None:
        return 0.0
    row = int(bias.abs().argmax())
    return _cosine((weight[row] / bias[row]).double().numpy(), truth)


def _cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length > 0 else 0.0
