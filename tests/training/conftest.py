"""A small cohort with a planted signal, in memory: real cohort, real cache, no files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from momkd_fl.data.cache import BagCache, PatientBag
from momkd_fl.data.cohort import Cohort, Patient
from momkd_fl.data.graph import neighbours
from momkd_fl.model.memory import GenomicSpace, Memory
from momkd_fl.model.momkd import LossWeights, StudentShape
from momkd_fl.training.loop import TrainSettings
from momkd_fl.training.sampling import Packer

DIM, GENES, ANCHOR_DIM, SLOTS, S = 16, 12, 6, 3, 16


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_cohort() -> Callable[..., Cohort]:
    def make(patients: int = 60, genomic: float = 0.7, prevalence: float = 0.3, seed: int = 0) -> Cohort:
        """A fifth of a positive patient's patches, in one corner, is shifted along one direction."""
        rng = np.random.default_rng(seed)
        cache = BagCache(1 << 28)
        people = []
        direction = np.random.default_rng(99).standard_normal(DIM)
        for number in range(patients):
            label = int(rng.random() < prevalence) if number > 3 else number % 2
            side = int(rng.integers(4, 8))
            coords = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(np.float32)
            features = rng.standard_normal((len(coords), DIM))
            features[: max(3, len(coords) // 5)] += 1.2 * label * direction
            genes = (rng.standard_normal(GENES) + label).astype(np.float32) if rng.random() < genomic else None
            split = "train" if number < 0.7 * patients else "validation"
            slides = (Path(f"s{number}.h5"),)
            cache.put(("", slides), PatientBag(features.astype(np.float32), neighbours(coords, 4)))
            people.append(Patient(f"p{number:03d}", slides, label, genes, split))
        panel = tuple(f"G{gene}" for gene in range(GENES))
        return Cohort(
            site="a", role="train", task="T", classes=2, patients=tuple(people), exclusions={}, dropped={}, encoder="e",
            dim=DIM, patch_um=None, panel=panel, genes_available=panel, gene_scale="tpm", neighbours=4,
            standardise="none", scaling={}, cache=cache,
        )  # fmt: skip

    return make


@pytest.fixture
def make_packer() -> Callable[[Cohort], Packer]:
    return lambda cohort: Packer(cohort, np.zeros(GENES, np.float32), np.ones(GENES, np.float32))


@pytest.fixture
def shape() -> StudentShape:
    return StudentShape(DIM, 32, 2, S, 4, 2, SLOTS, GENES, ANCHOR_DIM, 0.2)


@pytest.fixture
def memory() -> Memory:
    draw = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(S, S, generator=draw)).Q
    axes = torch.linalg.qr(torch.randn(GENES, ANCHOR_DIM, generator=draw)).Q.T
    anchors = torch.linalg.qr(torch.randn(ANCHOR_DIM, ANCHOR_DIM, generator=draw)).Q
    space = GenomicSpace(torch.zeros(GENES), torch.ones(GENES), axes, torch.ones(ANCHOR_DIM))
    return Memory(basis[: 2 * SLOTS].reshape(2, SLOTS, S), anchors.reshape(2, SLOTS, ANCHOR_DIM), space)


@pytest.fixture
def make_settings() -> Callable[..., TrainSettings]:
    def make(**changes: object) -> TrainSettings:
        fields = {
            "epochs": 1.0,
            "steps": None,
            "patients_per_step": 4,
            "learning_rate": 2e-3,
            "weight_decay": 1e-4,
            "clip_norm": 5.0,
            "precision": "fp32",
            "device": torch.device("cpu"),
            "losses": LossWeights(),
        }
        return TrainSettings(**{**fields, **changes})

    return make
