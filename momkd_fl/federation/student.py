"""The student as both sides of the federation know it: its shape, its flat layout, its start.

Weights travel as one flat float32 vector per branch; which number is which follows from the architecture, whose
hash both sides compare before round 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from momkd_fl.config.federation import FederationConfig
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.federation.initialise import spread_directions
from momkd_fl.federation.state import Arrays
from momkd_fl.model.baselines import GatedAttention, build
from momkd_fl.model.momkd import MoMKD, StudentShape, branch_of, load_weights, weights

BRANCHES = ("histology", "genomics")


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors of each branch, in the order in which they are flattened."""

    branches: dict[str, tuple[tuple[str, tuple[int, ...]], ...]]

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers in each branch's vector."""
        return {branch: sum(math.prod(shape) for _, shape in parts) for branch, parts in self.branches.items()}

    def flatten(self, tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Named tensors as one float32 vector per branch."""
        return {
            branch: np.concatenate([np.asarray(tensors[name], np.float32).ravel() for name, _ in parts])
            for branch, parts in self.branches.items()
        }

    def unflatten(self, vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """The inverse of :meth:`flatten`."""
        tensors = {}
        for branch, parts in self.branches.items():
            place = 0
            for name, shape in parts:
                size = math.prod(shape)
                tensors[name] = vectors[branch][place : place + size].reshape(shape)
                place += size
        return tensors


def shape_of(config: FederationConfig, panel: tuple[str, ...]) -> StudentShape:
    """The student that the configuration and the agreed panel describe."""
    genes = len(panel) if panel and config.memory.genomics else None
    return StudentShape(
        dim_in=config.encoder.dim,
        hidden=config.model.hidden_dim,
        heads=config.model.heads,
        memory_dim=config.model.memory_dim,
        neighbours=config.model.neighbours,
        classes=config.classes,
        slots=config.memory.slots,
        genes=genes,
        anchor_dim=min(config.memory.anchor_dim, genes) if genes and config.memory.mode == "anchors" else None,
        dropout=config.model.dropout,
        architecture=config.model.architecture,
        memory_mode=config.memory.mode,
        decoupled=config.memory.decoupled,
    )


def build_student(shape: StudentShape, seed: int) -> MoMKD | GatedAttention:
    """A student with seeded initial weights, the same on every machine."""
    return build(shape, seed)


def layout_of(shape: StudentShape) -> Layout:
    """How the student's tensors are flattened."""
    parts: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, value in weights(build_student(shape, 0)).items():
        parts.setdefault(branch_of(name), []).append((name, tuple(value.shape)))
    return Layout({branch: tuple(parts[branch]) for branch in BRANCHES if branch in parts})


def initial_weights(config: FederationConfig, shape: StudentShape) -> Arrays:
    """Flat initial weights by branch; none where every site has a student of its own."""
    if config.privacy.share == "memory":
        return {}
    return dict(layout_of(shape).flatten(weights(build_student(shape, config.seed))))


def initial_memory(config: FederationConfig, shape: StudentShape) -> Arrays:
    """Slots before their k-means: seeded directions. Gated attention and the gradient memory have none."""
    if config.model.architecture != "momkd" or config.memory.mode == "gradient":
        return {}
    return {"slots": spread_directions(shape.classes, shape.slots, shape.memory_dim, config.seed)}


def set_weights(model: nn.Module, layout: Layout, vectors: Mapping[str, NDArray[np.float32]]) -> None:
    """Load flat vectors into the model."""
    load_weights(model, layout.unflatten(vectors))


def get_weights(model: nn.Module, layout: Layout) -> dict[str, NDArray[np.float32]]:
    """The model's weights as flat vectors."""
    return layout.flatten(weights(model))


def reply_shapes(
    config: FederationConfig, layout: Layout, memory: Mapping[str, NDArray[np.float32]], genomics: bool
) -> dict[str, dict[str, tuple[int, ...]]]:
    """What a site's reply to ``train`` consists of, exactly: groups, names and shapes of its arrays."""
    branches = [branch for branch in layout.branches if branch == "histology" or genomics]
    alone = config.privacy.share == "memory"
    histogram = ScoreHistogram.empty(config.classes).to_arrays() if config.privacy.measured else {}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "update": {} if alone else {branch: (layout.sizes[branch],) for branch in branches},
        "scores": {name: value.shape for name, value in histogram.items()},
        "statistics": {},
    }
    if "slots" in memory:
        modalities = ["histology", *(["genomics"] if genomics and "genomics" in layout.branches and not alone else [])]
        for modality in modalities:
            shapes["statistics"][f"sums.{modality}"] = memory["slots"].shape
            shapes["statistics"][f"counts.{modality}"] = memory["slots"].shape[:2]
    return shapes
