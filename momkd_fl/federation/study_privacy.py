"""What a cell of a study claims and spends in privacy, how much of its memory was released, and the rows of results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.study import SplitKind
from momkd_fl.federation.artefacts import account
from momkd_fl.federation.coordinator import Outcome
from momkd_fl.federation.private_plan import expected_worth, private_plan
from momkd_fl.federation.study_cells import Cell
from momkd_fl.privacy.accountant import Charge, joint_epsilon


@dataclass(frozen=True)
class PrivacyRow:
    """One private method's claims, and means over its finished cells.

    ``epsilon`` is of all that leaves with noise, ``epsilon_run`` of everything that leaves (None: infinite, because
    something leaves without noise), ``epsilon_memory`` and ``epsilon_anchors`` of these releases; ``conditional``: the
    memory's holds only given the weights. ``spent``: the largest of any training site. ``released``: share of the
    ``anchors``, of the ``slots``, and of the slots by modality, that any release moved. ``noise_to_signal``: expected,
    from public numbers. ``dropped``: cells in which a training site missed a round.
    """

    task: str
    split: SplitKind
    method: str
    cells: int
    epsilon: float | None
    epsilon_run: float | None
    epsilon_memory: float | None
    epsilon_anchors: float | None
    conditional: bool
    spent: float
    released: Mapping[str, float]
    noise_to_signal: Mapping[str, float]
    dropped: int

    @property
    def share_released(self) -> float | None:
        """Share of anchors and slots together, of which there are equally many; None where there are none."""
        found = [self.released[part] for part in ("anchors", "slots") if part in self.released]
        return float(np.mean(found)) if found else None


def privacy_record(
    config: FederationConfig, outcome: Outcome, charged: Mapping[str, Sequence[Charge]]
) -> dict[str, Any]:
    """Claims and what they came to, as a cell's record holds them; ``charged`` by training site."""
    plan, found = private_plan(config), account(config)
    spent = {site: joint_epsilon(charges, config.privacy.delta) for site, charges in sorted(charged.items())}
    return {
        "epsilon": config.privacy.epsilon,
        "delta": config.privacy.delta,
        "epsilon_run": None if math.isinf(found.epsilon) else found.epsilon,
        "epsilon_memory": found.memory_epsilon,
        "epsilon_anchors": found.anchors_epsilon,
        "conditional": found.conditional,
        "spent": spent,
        "sigma": plan.sigma,
        "sigma_dpsgd": plan.steps.sigma if plan.steps else None,
        "releases": dict(plan.releases),
        "noise_to_signal": {part: one.noise_to_signal for part, one in expected_worth(config, plan).items()},
        "released": {part: float(np.mean(moved)) for part, moved in outcome.state.released.items()},
        "dropped": sorted(
            {site for one in outcome.state.history for site, how in one.states.items() if how != "trained"}
        ),
    }


def privacy_rows(finished: Iterable[tuple[Cell, dict[str, Any]]]) -> list[PrivacyRow]:
    """A row for each task, split and method whose cells' records have anything of privacy to say."""
    groups: dict[tuple[str, SplitKind, str], list[dict[str, Any]]] = {}
    for cell, record in finished:
        if cell.split is not None and record.get("privacy"):
            groups.setdefault((cell.task, cell.split, cell.method.name), []).append(record["privacy"])
    return [_row(*key, records) for key, records in groups.items()]


def _row(task: str, split: SplitKind, method: str, records: Sequence[dict[str, Any]]) -> PrivacyRow:
    first = records[0]
    return PrivacyRow(
        task=task,
        split=split,
        method=method,
        cells=len(records),
        epsilon=first["epsilon"],
        epsilon_run=first["epsilon_run"],
        epsilon_memory=first["epsilon_memory"],
        epsilon_anchors=first["epsilon_anchors"],
        conditional=first["conditional"],
        spent=max((value for one in records for value in one["spent"].values()), default=0.0),
        released=_means([one["released"] for one in records]),
        noise_to_signal=_means([one["noise_to_signal"] for one in records]),
        dropped=sum(bool(one["dropped"]) for one in records),
    )


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}
