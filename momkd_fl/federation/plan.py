"""What a site was told about the run, kept so that a restarted client goes on without asking again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from momkd_fl.config.base import parse
from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.federation.state import Arrays
from momkd_fl.training import checkpoint

_FILE = "plan.safetensors"


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


def save_plan(folder: Path, plan: SitePlan) -> None:
    """Keep the plan in the site's state folder."""
    meta = {
        "run": plan.run,
        "federation": plan.federation,
        "panel": list(plan.panel),
        "architecture": plan.architecture,
    }
    checkpoint.save(folder / _FILE, plan.space, meta)


def load_plan(folder: Path, run: str) -> SitePlan:
    """The plan of ``run``.

    Raises
    ------
    UserError
        ``plan-missing`` where this site was not told about the run; the coordinator will then greet it again.
    """
    try:
        space, meta = checkpoint.load(folder / _FILE)
    except UserError:
        meta = {}
    if meta.get("run") != run:
        raise UserError("plan-missing", f"{folder}: no plan of run {run} is kept here; waiting to be greeted again.")
    return SitePlan(run, meta["federation"], tuple(meta["panel"]), meta["architecture"], space)
