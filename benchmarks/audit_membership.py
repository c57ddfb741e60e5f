"""Who took part: a likelihood-ratio attack with shadow runs (Carlini and others 2022), on the memory and on a student.

Every shadow is a run over a random half of the same patients. A patient's score in one shadow is the log ratio of two
normal densities, fitted to its scores in the other shadows with and without it; the attack's AUROC is over all patients
and shadows. What noise promises of it is the mechanism's own trade-off: Phi(mu / sqrt 2) for a Gaussian.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.audit_release import flat
from benchmarks.audit_site import DIM, AuditedSite, audited_site
from benchmarks.figures import Figure, at_least, at_most
from momkd_fl.data.cohort import Patient
from momkd_fl.federation.messages import Train
from momkd_fl.federation.private_plan import slots_release
from momkd_fl.federation.public_space import public_statistics
from momkd_fl.privacy.accountant import gaussian_delta
from momkd_fl.privacy.mechanism import GRID_BITS, Release, contribution

Floats = NDArray[np.float64]
EPSILON, DELTA, SHADOWS = 8.0, 1e-5, 32
MEMORY: dict[str, Any] = {"memory": "local", "share": "memory", "releases": 1, "site_patients": 2000}
NO_GENOMICS = {"slots": 1, "assignment": "hard", "genomics": False}
WIDE = {"hidden_dim": 16, "memory_dim": DIM, "dropout": 0.0}
STUDENT_PATIENTS, STUDENT_PATCHES, GAIN = 1500, 6, 12.0
"""Some 1,150 of them train: about as few as a student of 1,700 weights learns from under noise."""
CANARIES = 60
"""Training patients whose label is turned: what is learnt of these has been learnt from nobody else."""
STEPS, RATE = 100, 0.1
SMALL_STUDENT = {"architecture": "gated_attention", "hidden_dim": 32, "memory_dim": 4, "dropout": 0.0}
ALONE = {"memory": 0.0, "align_histology": 0.0, "align_genomics": 0.0, "reconstruction": 0.0}
TRAINING: dict[str, Any] = {"precision": "fp32", "standardise": "none", "validation_fraction": 0.2}
STUDENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "control.no_noise": (
        {"metrics": "none"}, {"local_steps": 3000, "patients_per_step": 16, "learning_rate": 5e-3},
    ),
    "no_noise.same_steps": (
        {"metrics": "none"}, {"local_steps": STEPS, "patients_per_step": 116, "learning_rate": 3e-2},
    ),
    "epsilon_8": (
        {"weights": "dpsgd", "steps": STEPS, "epsilon": EPSILON, "sampling_rate": RATE, "site_patients": 1500},
        {"local_steps": STEPS, "learning_rate": 3e-2},
    ),
}  # fmt: skip
"""Privacy and training: until it overfits; as many steps as with noise, of as many patients; with noise."""
UTILITY_FLOOR = 0.6
"""Held-out AUROC under which a student has learnt nothing that could betray anybody."""


def memory_figures(quick: bool) -> list[Figure]:
    """Attack on one release of the slots."""
    patients, shadows = (16, SHADOWS) if quick else (40, 128)
    found = {}
    for name, epsilon in (("epsilon_8", EPSILON), ("control.no_noise", 1e6)):
        with tempfile.TemporaryDirectory() as folder:
            privacy = {**MEMORY, "epsilon": epsilon}
            site = audited_site(Path(folder), privacy, patients=patients, memory=NO_GENOMICS, model=WIDE)
            people = site.patients()
            plan = site.work.private.plan
            assert plan.sigma is not None
            release = slots_release(site.config, plan.sigma, genomic=False)
            vectors = np.stack([_vector(site, each, release) for each in people])
            attack = np.linalg.solve(
                vectors @ vectors.T + 4 * release.noise_sd**2 * np.eye(len(people)), vectors
            )  # the best linear guess of who was in: prior variance 1/4, the noise's variance is public
            members = _halves(len(people), shadows, seed=0)
            scores = np.zeros(members.shape)
            for row, chosen in enumerate(members):
                site.keep([each for each, inside in zip(people, chosen, strict=True) if inside])
                scores[row] = attack @ flat(site.work.statistics(site.memory), release.count_weight)
            found[name] = likelihood_ratio_auroc(scores, members)
    bound = _gaussian_auroc(EPSILON)
    return [
        at_most("audit.memory.auroc.epsilon_8", round(found["epsilon_8"], 3), "AUROC of the attack", round(bound, 3)),
        at_least("audit.memory.auroc.control.no_noise", round(found["control.no_noise"], 3), "AUROC", round(bound, 3)),
    ]


def student_figures(quick: bool) -> list[Figure]:
    """Attack on students' scores of the canaries; and how well those students do on patients nobody trained on."""
    shadows = 6 if quick else SHADOWS
    figures = []
    bound = round(_gaussian_auroc(EPSILON), 3)
    with tempfile.TemporaryDirectory() as folder:
        for name, (privacy, training) in STUDENTS.items():
            area, utility = _attacked(Path(folder), name, privacy, TRAINING | training, shadows)
            attack, held_out = f"audit.student.auroc.{name}", f"audit.student.utility.{name}"
            unit, kind = "AUROC of the attack", "held-out AUROC, mean over shadows"
            if name == "epsilon_8":
                figures.append(at_most(attack, area, unit, bound))
            elif name.startswith("control."):
                figures.append(at_least(attack, area, unit, 0.6))
            else:
                figures.append(Figure(attack, area, unit))
            figures.append(at_least(held_out, utility, kind, UTILITY_FLOOR))
    return figures


def _attacked(
    folder: Path, name: str, privacy: dict[str, Any], training: dict[str, Any], shadows: int
) -> tuple[float, float]:
    """AUROC of the attack over the canaries, and the mean held-out AUROC; everybody else is in every shadow."""
    site = audited_site(
        folder, privacy, patients=STUDENT_PATIENTS, gain=GAIN, mean_patches=STUDENT_PATCHES,
        model=SMALL_STUDENT, losses=ALONE, training=training, memory=NO_GENOMICS | {"source": "random"},
    )  # fmt: skip
    people, held_out = site.patients(), site.work.cohort.labelled("validation")
    order = np.random.default_rng(1).permutation(len(people))
    canaries = [dataclasses.replace(people[row], label=1 - people[row].label) for row in order[:CANARIES]]
    others = [people[row] for row in order[CANARIES:]]
    members = _halves(CANARIES, shadows, seed=0)
    scores, utility = np.zeros(members.shape), []
    for row, chosen in enumerate(members):
        inside = [each for each, isin in zip(canaries, chosen, strict=True) if isin]
        scores[row], held = _student(site, [*others, *inside], canaries, held_out, seed=row)
        utility.append(held)
        print(f"{name}: shadow {row + 1}/{shadows}, held-out {held:.3f}", file=sys.stderr, flush=True)
    return round(likelihood_ratio_auroc(scores, members), 3), round(float(np.mean(utility)), 3)


def likelihood_ratio_auroc(scores: Floats, members: NDArray[np.bool_]) -> float:
    """AUROC of the attack from scores (shadows, patients) and who was in which shadow."""
    ratios, truth = [], []
    for patient in range(scores.shape[1]):
        for shadow in range(len(scores)):
            others = np.arange(len(scores)) != shadow
            inside, outside = (scores[others & (members[:, patient] == isin), patient] for isin in (True, False))
            if min(len(inside), len(outside)) < 2:
                continue
            value = scores[shadow, patient]
            ratios.append(_log_density(value, inside) - _log_density(value, outside))
            truth.append(members[shadow, patient])
    return float(roc_auc_score(truth, ratios))


def _vector(site: AuditedSite, patient: Patient, release: Release) -> Floats:
    """What one patient adds to the release."""
    own = public_statistics(site.config, site.memory, site.work.packer, [patient], "hard")
    return np.asarray(contribution([own], release) * 2.0**-GRID_BITS)


def _log_density(value: float, sample: Floats) -> float:
    sd = max(float(sample.std(ddof=1)), 1e-9)
    return -math.log(sd) - ((value - float(sample.mean())) / sd) ** 2 / 2


def _student(
    site: AuditedSite, inside: list[Patient], people: list[Patient], held_out: list[Patient], seed: int
) -> tuple[Floats, float]:
    """The real training over ``inside``: log odds of the class of ``people``, and the AUROC on ``held_out``."""
    work = site.work
    work.optimiser = None
    memory = work.receive(site.arrays)
    site.keep([*inside, *held_out])
    work.train(memory, seed, Train(proximal_mu=0.0, learning_rate_share=1.0))
    site.keep([*people, *held_out])
    scored = {split: work.score(memory, split) for split in ("train", "validation")}
    own = scored["train"].probabilities[np.arange(len(people)), scored["train"].labels].clip(1e-12, 1 - 1e-12)
    left = scored["validation"]
    return np.log(own / (1 - own)), float(roc_auc_score(left.labels, left.probabilities[:, 1]))


def _halves(patients: int, shadows: int, seed: int) -> NDArray[np.bool_]:
    """Who is in each shadow (shadows, patients): every patient in half of them."""
    rng = np.random.default_rng(seed)
    rows = np.arange(shadows) < shadows // 2
    return np.stack([rng.permutation(rows) for _ in range(patients)], axis=1)


def _gaussian_auroc(epsilon: float) -> float:
    """Phi(mu / sqrt 2), the best attack's AUROC on the Gaussian mechanism that has ε at δ."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(epsilon, middle) <= DELTA else (low, middle)
    return float(torch.special.ndtr(torch.tensor(low / math.sqrt(2), dtype=torch.float64)))
