"""Our students as the benchmarks run them: through the product's own training and scoring, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.bags import NEIGHBOURS, watched
from momkd_fl.data.cohort import Cohort, Patient
from momkd_fl.model.baselines import build
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import LossWeights, StudentShape
from momkd_fl.training.loop import Prediction, TrainReport, TrainSettings, predict, train
from momkd_fl.training.precision import Precision
from momkd_fl.training.resident import device_cache
from momkd_fl.training.sampling import Packer, balanced_batches

HIDDEN, HEADS, MEMORY_DIM, SLOTS, DROPOUT = 512, 2, 64, 16, 0.5
"""The product's defaults, but for the slots, which are the release's script's."""
CPU = torch.device("cpu")


class Student:
    """One student over one cohort.

    Parameters
    ----------
    architecture : 'momkd' (momentum memory; genomics where the cohort has them) or 'gated_attention'
    per_step : patients packed into one step
    """

    def __init__(
        self, architecture: str, cohort: Cohort, precision: Precision, per_step: int = 1, device: torch.device = CPU
    ) -> None:
        momkd = architecture == "momkd"
        genes = len(cohort.panel) if momkd else 0
        self.shape = StudentShape(
            dim_in=cohort.dim,
            hidden=HIDDEN,
            heads=HEADS,
            memory_dim=MEMORY_DIM,
            neighbours=NEIGHBOURS,
            classes=2,
            slots=SLOTS,
            genes=genes or None,
            anchor_dim=None,
            dropout=DROPOUT,
            architecture="momkd" if momkd else "gated_attention",
            memory_mode="momentum",
        )
        # as the product reads a cohort: without a graph where the student looks at none
        self.cohort, self.asked = watched(cohort if momkd else replace(cohort, neighbours=0))
        scaling = (np.zeros(genes, np.float32), np.ones(genes, np.float32)) if genes else (None, None)
        self.packer = Packer(self.cohort, *scaling, resident=device_cache(device))
        self.model = build(self.shape, 0)
        self.memory = _memory(self.shape) if momkd else Memory()
        self.patients: Sequence[Patient] = self.cohort.patients
        self.precision, self.per_step, self.device = precision, per_step, device
        self._optimiser: dict[str, object] | None = None

    def epoch(self, seed: int = 0, epochs: float = 1.0) -> TrainReport:
        """One call of the product's training, from the weights and the optimiser that the last one left."""
        settings = TrainSettings(
            epochs=epochs,
            steps=None,
            patients_per_step=self.per_step,
            learning_rate=2e-4,
            weight_decay=1e-4,
            clip_norm=5.0,
            precision=self.precision,
            device=self.device,
            losses=LossWeights(),
        )
        report = train(self.model, self.memory, self.packer, self.patients, settings, seed, self._optimiser)
        self._optimiser = report.optimiser
        return report

    def pass_over_all(self) -> TrainReport:
        """An epoch that meets every patient exactly once, as the peers' epochs do."""
        self.asked.keys.clear()
        report = self.epoch(_seed_of_a_pass(self.patients))
        if len(self.asked.keys) != len(self.patients):
            raise SystemExit("training drew its patients in another order than expected: see benchmarks/students.py")
        return report

    def score(self) -> Prediction:
        """One call of the product's scoring over all patients."""
        return predict(self.model, self.memory, self.packer, self.patients, self.device, self.precision)


def _seed_of_a_pass(patients: Sequence[Patient]) -> int:
    """The first seed whose draws, with replacement, are a permutation of the patients (few enough that there is one).

    Between two steps the loop takes one number for the seed of dropout.
    """
    for seed in count():
        rng = np.random.default_rng(seed)
        drawn = set()
        for batch in balanced_batches(patients, len(patients), 1, rng):
            drawn.add(batch[0].id)
            rng.integers(2**63)
        if len(drawn) == len(patients):
            return seed
    raise AssertionError


def _memory(shape: StudentShape) -> Memory:
    generator = torch.Generator().manual_seed(0)
    slots = torch.randn(shape.classes, shape.slots, shape.memory_dim, generator=generator)
    return Memory(slots=F.normalize(slots, dim=-1))
