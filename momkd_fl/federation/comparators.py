"""What a federated model is compared with: the same code over other members, on the same held-out patients.

Only where one machine may hold all data (a simulation or the demo). *Pooled* is a federation of one site that has
every training patient; a *local* model is a federation of that site alone; the *control* is the same federation
whose memory never sees genomics. So a difference between two arms is never a difference between two programs.
"""

from __future__ import annotations

import csv
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.privacy import Privacy
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.cohort import Cohort, merge
from momkd_fl.data.fingerprint import Fingerprint
from momkd_fl.errors import UserError
from momkd_fl.evaluation.comparison import Models, Scores
from momkd_fl.evaluation.results import Method
from momkd_fl.federation.coordinator import Outcome
from momkd_fl.federation.initialise import spread_directions
from momkd_fl.federation.participant import Participant
from momkd_fl.federation.simulate import simulate
from momkd_fl.federation.site_data import cohort_loader
from momkd_fl.federation.site_outputs import write_predictions
from momkd_fl.federation.state import ServerState
from momkd_fl.federation.watch import Watch

POOLED = "pooled"
Kind = Literal["federated", "pooled", "control", "local"]


@dataclass(frozen=True)
class Arm:
    """One model to train: its name, its kind, and the training sites whose patients it sees."""

    name: str
    kind: Kind
    sites: tuple[str, ...]

    def config(self, base: FederationConfig, folder: Path) -> FederationConfig:
        """The federation's configuration with this arm's members."""
        tested = {site: member for site, member in base.members.items() if member.role == "evaluate"}
        names = (POOLED,) if self.kind == "pooled" else self.sites
        trained = {name: base.members[self.sites[0]].model_copy(update={"config": None}) for name in names}
        changes: dict[str, Any] = {
            "members": {**trained, **tested},
            "output_dir": folder,
            "rounds": base.rounds.model_copy(update={"quorum": len(names)}),
            "strategy": base.strategy.model_copy(update={"site_weights": {}}),
        }
        if self.kind in ("pooled", "local"):
            changes["privacy"] = Privacy()  # what privacy costs shows against the same method without it
        if self.kind == "control":
            changes["memory"] = base.memory.model_copy(update={"genomics": False})
        return base.model_copy(update=changes)


def comparator_arms(config: FederationConfig) -> list[Arm]:
    """Pooled, the control without genomics, and one local model per training site."""
    sites = tuple(site for site, member in config.members.items() if member.role == "train")
    local = [Arm(f"local-{site}", "local", (site,)) for site in sites]
    return [Arm("pooled", "pooled", sites), Arm("no_genomics_control", "control", sites), *local]


@dataclass
class Shelf:
    """Cohorts that have been read, by site and role: several arms use the same ones."""

    sites: Mapping[str, SiteConfig]
    device: torch.device
    _read: dict[tuple[str, str, str, bool], tuple[Cohort, Fingerprint]] = field(default_factory=dict)

    def cohort(
        self, site: str, role: Literal["train", "evaluate"], federation: FederationConfig
    ) -> tuple[Cohort, Fingerprint]:
        """The site's cohort in a role."""
        key = (site, role, federation.task, federation.privacy.active)
        if key not in self._read:
            config = self.sites[site].model_copy(update={"role": role})
            self._read[key] = cohort_loader(config, _unsaid)(federation)
        return self._read[key]

    def participant(self, name: str, arm: Arm, role: Literal["train", "evaluate"], folder: Path) -> Participant:
        """A participant of an arm, with its state under ``folder``."""

        def read(federation: FederationConfig) -> tuple[Cohort, Fingerprint]:
            return self._pool(arm, federation) if name == POOLED else self.cohort(name, role, federation)

        return Participant(name, role, read, folder / "sites" / name, self.device, _unsaid)

    def _pool(self, arm: Arm, federation: FederationConfig) -> tuple[Cohort, Fingerprint]:
        read = [self.cohort(site, "train", federation) for site in arm.sites]
        genes = [set(cohort.genes_available) for cohort, _ in read if cohort.genes_available]
        common = sorted(set.intersection(*genes)) if genes else []
        cohorts = [cohort.with_panel(common, 1) if common else cohort for cohort, _ in read]
        return merge(cohorts), read[0][1]


def run_arm(
    arm: Arm, base: FederationConfig, shelf: Shelf, folder: Path, watch: Watch, stop: threading.Event
) -> Outcome | None:
    """Train one arm and leave its held-out predictions under ``folder``; None when it was stopped."""
    config = arm.config(base, folder)
    participants = {name: shelf.participant(name, arm, member.role, folder) for name, member in config.members.items()}
    return simulate(config, participants, watch, stop)


def finished(folder: Path, config: FederationConfig) -> bool:
    """Whether an arm's predictions for every held-out site are there."""
    tested = [site for site, member in config.members.items() if member.role == "evaluate"]
    return all(predictions_path(folder, site).exists() for site in tested)


def predictions_path(folder: Path, site: str) -> Path:
    """Where an arm keeps a held-out site's predictions."""
    return folder / "sites" / site / "predictions_test.csv"


def arm_scores(folder: Path, sites: Sequence[str]) -> Scores:
    """An arm's predictions for held-out sites."""
    return Scores.join([read_predictions(predictions_path(folder, site), site) for site in sites])


def read_predictions(path: Path, site: str) -> Scores:
    """Predictions of one site as its participant wrote them (raises UserError ``predictions-missing``)."""
    if not path.is_file():
        raise UserError("predictions-missing", f"{path}: site {site} left no predictions. Run it again.")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in (rows[0] if rows else {}) if name[:1] == "p" and name[1:].isdigit()]
    return Scores(
        ids=tuple(f"{site}/{row['patient']}" for row in rows),
        labels=np.array([int(row["label"]) for row in rows], np.int64),
        probabilities=np.array([[float(row[name]) for name in columns] for row in rows], np.float64),
        sites=(site,) * len(rows),
    )


def random_memory_scores(
    config: FederationConfig, state: ServerState, shelf: Shelf, folder: Path, sites: Sequence[str]
) -> None:
    """The federated model with its slots replaced by seeded orthogonal directions: what the memory is worth in use."""
    if state.best is None or "slots" not in state.best.memory:
        return
    memory = dict(state.best.memory)
    classes, slots, dim = memory["slots"].shape
    memory["slots"] = spread_directions(classes, slots, dim, config.seed + 1)
    for site in sites:
        arm = Arm("random_memory", "federated", ())
        participant = shelf.participant(site, arm, "evaluate", folder)
        scored = participant.score_with(
            state.run,
            config,
            state.panel,
            state.space,
            {"weights": state.best.weights, "memory": memory},
        )
        write_predictions(predictions_path(folder, site), scored)


def collect(base: Path, config: FederationConfig) -> dict[Method, Models]:
    """Predictions of every arm that finished under ``base``, as methods of the results."""
    tested = [site for site, member in config.members.items() if member.role == "evaluate"]
    found: dict[Method, Models] = {}
    names: tuple[Method, ...] = ("pooled", "no_genomics_control", "random_memory")
    for name in names:
        if finished(base / name, config):
            found[name] = arm_scores(base / name, tested)
    local = [arm_scores(base / f"local-{site}", tested) for site in local_sites(base, config)]
    if local:
        found["local_median"] = local
    return found


def local_sites(base: Path, config: FederationConfig) -> list[str]:
    """The sites whose local models :func:`collect` found, in its order."""
    arms = [arm for arm in comparator_arms(config) if arm.kind == "local" and finished(base / arm.name, config)]
    return [arm.sites[0] for arm in arms]


def _unsaid(sentence: str) -> None:
    """Comparators work in the background; what they would say of each site's files has been said."""
