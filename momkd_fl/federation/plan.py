"""What a site was told about the run, kept so that a restarted client goes on without asking again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from momkd_fl.config.base import parse
from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.federation.messages import Arrays as MessageArrays
from momkd_fl.federation.state import Arrays
from momkd_fl.federation.vault import CLEAR, Vault
from momkd_fl.model.memory import SPACE
from momkd_fl.security.seal import Sealed
from momkd_fl.training import checkpoint

PLAN_FILE, MODEL_FILE = "plan.safetensors", "model.safetensors"
PLAN_KIND, MODEL_KIND = "plan", "model"


@dataclass(frozen=True)
class SitePlan:
    """The shared sections of the federation's configuration, the panel, the architecture and the genomic space."""

    run: str
    federation: dict[str, Any]
    panel: tuple[str, ...] = ()
    architecture: str = ""
    space: Arrays = field(default_factory=dict)

    @property
    def config(self) -> FederationConfig:
        """The shared sections as a configuration; what concerns only the coordinator has placeholders."""
        rest = {"output_dir": ".", "members": {"site": {"role": "train"}}, "rounds": {"quorum": 1}}
        return parse({**rest, **self.federation}, FederationConfig, Path("the coordinator's plan"))

    def after(self, **changes: Any) -> SitePlan:
        """A copy with some fields replaced."""
        return replace(self, **changes)


def save_plan(folder: Path, plan: SitePlan, vault: Vault = CLEAR) -> None:
    """Keep the plan in the site's state folder."""
    vault.write(folder / PLAN_FILE, checkpoint.pack(plan.space, _meta(plan)), Sealed(PLAN_KIND, plan.run, 0))


def save_model(
    path: Path,
    plan: SitePlan,
    arrays: MessageArrays,
    threshold: float | None,
    calibration: list[float] | None,
    round: int,
    vault: Vault = CLEAR,
) -> None:
    """The selected weights and memory (groups of arrays) with all that gives them meaning, as one file.

    Sums that a teacher was made of are no part of it: only training needs them.
    """
    tensors = {f"{group}/{name}": value for group, members in arrays.items() for name, value in members.items()}
    tensors |= {f"space/{name}": value for name, value in plan.space.items() if name in SPACE}
    frozen = {"threshold": threshold, "calibration": calibration}
    vault.write(path, checkpoint.pack(tensors, {**_meta(plan), **frozen}), Sealed(MODEL_KIND, plan.run, round))


def model_digest(weights: Arrays, memory: Arrays) -> str:
    """SHA-256 of a model's weights and memory, as the report names it."""
    digest = hashlib.sha256()
    for group in (weights, memory):
        for name in sorted(group):
            digest.update(name.encode() + np.ascontiguousarray(group[name]).tobytes())
    return digest.hexdigest()


def load_plan(folder: Path, run: str, vault: Vault = CLEAR) -> SitePlan:
    """The plan of ``run``.

    Raises
    ------
    UserError
        ``plan-missing`` where this site was not told about the run; the coordinator will then greet it again. Also
        as :class:`Vault`, but not for a damaged plan that is not sealed: that is none.
    """
    try:
        space, meta = vault.read_tensors(folder / PLAN_FILE, PLAN_KIND)
    except UserError as mistake:
        if mistake.code not in ("checkpoint-missing", "checkpoint-corrupt"):
            raise
        meta = {}
    if meta.get("run") != run:
        raise UserError("plan-missing", f"{folder}: no plan of run {run} is kept here; waiting to be greeted again.")
    return SitePlan(run, meta["federation"], tuple(meta["panel"]), meta["architecture"], space)


def _meta(plan: SitePlan) -> dict[str, Any]:
    return {
        "run": plan.run,
        "federation": plan.federation,
        "panel": list(plan.panel),
        "architecture": plan.architecture,
    }
