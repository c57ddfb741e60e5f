"""Steps whose shapes come again, recorded as CUDA graphs: one launch instead of hundreds.

Bags differ in size, so shapes come again only where ``training.max_patches`` cuts them all to one size, or patients are
few. A step of any other shape runs as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from momkd_fl.model.batch import PackedBags

Terms = dict[str, Tensor]
Step = Callable[[PackedBags], Terms]
Record = Callable[[Callable[[], Terms]], tuple[Terms, Callable[[], None]]]

EAGER_STEPS = 3
"""Steps of a shape that run as they are before it is recorded: libraries set themselves up in the first."""
GRAPHS = 4
"""Shapes recorded; each keeps the memory of a step."""


def cuda_graph(run: Callable[[], Terms]) -> tuple[Terms, Callable[[], None]]:
    """Record ``run`` without running it: where its result will be, and a call that runs it.

    Other threads go on meanwhile: the loader copies and allocates.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        terms = run()
    return terms, graph.replay


class Recorded:
    """A step that is recorded once its shapes have come a few times.

    The result's tensors are written again by the next step of the same shape. Whatever ``step`` reads or changes
    besides the pack, weights and the optimiser's state, must stay where it is.
    """

    def __init__(self, step: Step, record: Record = cuda_graph) -> None:
        self.step, self.record = step, record
        self.seen: Counter[tuple[object, ...]] = Counter()
        self.graphs: dict[tuple[object, ...], tuple[PackedBags, Terms, Callable[[], None]]] = {}

    def __call__(self, batch: PackedBags) -> Terms:
        """The loss terms of a step over ``batch``."""
        shape = _shape(batch)
        if shape not in self.graphs:
            self.seen[shape] += 1
            if self.seen[shape] <= EAGER_STEPS or len(self.graphs) == GRAPHS:
                return self.step(batch)
            copies: dict[str, Any] = {name: value.clone() for name, value in _tensors(batch).items()}
            own = replace(batch, **copies)
            self.graphs[shape] = (own, *self.record(lambda: self.step(own)))
        own, terms, replay = self.graphs[shape]
        for name, value in _tensors(own).items():
            value.copy_(_tensors(batch)[name], non_blocking=True)
        replay()
        return terms


def _tensors(batch: PackedBags) -> dict[str, Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}


def _shape(batch: PackedBags) -> tuple[object, ...]:
    return tuple((name, tuple(value.shape), value.dtype) for name, value in _tensors(batch).items())
