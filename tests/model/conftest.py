"""Small students, packs and memories, made from seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from momkd_fl.data.graph import neighbours
from momkd_fl.model.batch import PackedBags, pack
from momkd_fl.model.memory import GenomicSpace, Memory
from momkd_fl.model.momkd import StudentShape

DIM, GENES, ANCHOR_DIM = 12, 10, 5


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_shape() -> Callable[..., StudentShape]:
    def make(**changes: object) -> StudentShape:
        fields = {
            "dim_in": DIM,
            "hidden": 16,
            "heads": 2,
            "memory_dim": 8,
            "neighbours": 4,
            "classes": 2,
            "slots": 3,
            "genes": GENES,
            "anchor_dim": ANCHOR_DIM,
            "dropout": 0.5,
        }
        return StudentShape(**{**fields, **changes})

    return make


@pytest.fixture
def make_memory() -> Callable[..., Memory]:
    def make(classes: int = 2, slots: int = 3, memory_dim: int = 8, seed: int = 5) -> Memory:
        draw = torch.Generator().manual_seed(seed)
        axes = torch.linalg.qr(torch.randn(GENES, ANCHOR_DIM, generator=draw)).Q.T
        return Memory(
            slots=F.normalize(torch.randn(classes, slots, memory_dim, generator=draw), dim=-1),
            anchors=F.normalize(torch.randn(classes, slots, ANCHOR_DIM, generator=draw), dim=-1),
            space=GenomicSpace(torch.zeros(GENES), torch.ones(GENES), axes, torch.ones(ANCHOR_DIM)),
        )

    return make


def bag(seed: int, patches: int, dim: int = DIM, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Features (P, dim) on a jittered line of patches, and their graph."""
    rng = np.random.default_rng(seed)
    coords = np.stack([np.arange(patches), rng.uniform(0, 0.1, patches)], axis=1).astype(np.float32)
    return rng.standard_normal((patches, dim)).astype(np.float32), neighbours(coords, k)


@pytest.fixture
def make_pack() -> Callable[..., PackedBags]:
    def make(
        sizes: Sequence[int] = (7, 5, 9, 2),
        labels: Sequence[int | None] = (0, 1, 1, 0),
        genomic: Sequence[bool] = (True, True, False, True),
        seed: int = 0,
    ) -> PackedBags:
        bags = [bag(seed + row, size) for row, size in enumerate(sizes)]
        rng = np.random.default_rng(seed + 100)
        drawn = [rng.standard_normal(GENES).astype(np.float32) for _ in sizes]
        genes = [row if has else None for row, has in zip(drawn, genomic, strict=True)]
        return pack(bags, labels, genes, GENES)

    return make
