"""No step asks for a value or a size that only the device knows: on a GPU it would wait for all that went before."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from momkd_fl.data.cohort import Cohort
from momkd_fl.model.baselines import build
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import StudentShape
from momkd_fl.training import kernels
from momkd_fl.training.loop import TrainSettings, train
from momkd_fl.training.sampling import Packer

_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero"}


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU; a boolean index does too, by way of ``nonzero``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        boolean = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for group in args[1:]
            if isinstance(group, (list, tuple))
            for index in group
        )
        if name in _WAITING or boolean:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["momkd", "gated_attention"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fast", [True, False])
def test_the_number_of_waits_does_not_grow_with_the_steps(
    make_cohort: Callable[..., Cohort],
    make_packer: Callable[[Cohort], Packer],
    make_settings: Callable[..., TrainSettings],
    shape: StudentShape,
    memory: Memory,
    architecture: str,
    precision: str,
    fast: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the plain student too, which is what a GPU computes."""
    monkeypatch.setattr(kernels, "has_fast_path", lambda device: fast)
    packer = make_packer(make_cohort())
    patients = packer.cohort.labelled("train")
    model = build(dataclasses.replace(shape, architecture=architecture), 0)
    counts = []
    for steps in (1, 4):
        with Waits() as waits:
            report = train(
                model, memory, packer, patients, make_settings(steps=steps, precision=precision, proximal_mu=0.1), 0
            )
        assert waits.found == {"_local_scalar_dense": len(report.losses)}  # the means, once the round is over
        counts.append(waits.found)
    assert counts[0] == counts[1]


def test_a_wait_would_be_seen() -> None:
    values = torch.arange(3.0)
    with Waits() as waits:
        values[values > 1]
        float(values.sum())
        values.nonzero()
    assert waits.found == {"index": 1, "_local_scalar_dense": 1, "nonzero": 1}
