"""The coordinator's state after a round, complete enough to resume: "load the state, go on"."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from momkd_fl.errors import UserError
from momkd_fl.federation.vault import CLEAR, Vault
from momkd_fl.security.seal import Sealed
from momkd_fl.training import checkpoint

Arrays = dict[str, NDArray[Any]]
FORMAT, CHECKPOINT_KIND = 1, "checkpoint"


@dataclass(frozen=True)
class RoundRecord:
    """What one round was: counted in rounds, seconds and bytes, never in patients.

    ``loss`` and ``auroc`` are of the weights and memory the round *started* from, over the training sites'
    validation patients (class-balanced log loss; AUROC from summed score histograms); None when not estimable.
    """

    round: int
    seconds: float
    seconds_by_phase: dict[str, float]
    bytes_received: int
    bytes_sent: int
    states: dict[str, str]
    loss: float | None
    auroc: float | None
    slot_movement_rad: float
    moved_share: float
    effective_slots: float
    slot_cosine: float
    effective_patches: float | None
    losses: dict[str, float]


@dataclass(frozen=True)
class Best:
    """The matched weights and memory that ranked the validation patients best so far, and their score histogram.

    ``loss`` is None, and ``scores`` empty, where nothing was measured and the last round was agreed beforehand.
    """

    round: int
    loss: float | None
    weights: Arrays
    memory: Arrays
    scores: Arrays


@dataclass(frozen=True)
class ServerState:
    """State of round ``round``: weights, memory and server optimiser belong together.

    ``weights`` flat float32 by branch; ``memory`` slots and anchors; ``space`` the fixed genomic space; ``released``
    which ``anchors`` and ``slots`` (C, K) any release has ever moved, and ``slots_<modality>`` which by that modality;
    ``started`` the sites behind each step of the start.
    """

    run: str
    round: int
    config_digest: str
    architecture: str
    panel: tuple[str, ...]
    members: dict[str, dict[str, Any]]
    weights: Arrays
    memory: Arrays
    space: Arrays = field(default_factory=dict)
    optimiser: Arrays = field(default_factory=dict)
    released: Arrays = field(default_factory=dict)
    history: tuple[RoundRecord, ...] = ()
    best: Best | None = None
    seed: int = 0
    started: dict[str, list[str]] = field(default_factory=dict)

    def after(self, **changes: Any) -> ServerState:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)


_GROUPS = ("weights", "memory", "space", "optimiser", "released")
_BEST_GROUPS = ("weights", "memory", "scores")


def save(path: Path, state: ServerState, vault: Vault = CLEAR) -> None:
    """Write the state durably (write, fsync, rename)."""
    tensors = {f"{group}/{name}": value for group in _GROUPS for name, value in getattr(state, group).items()}
    meta: dict[str, Any] = {
        "format": FORMAT,
        "run": state.run,
        "round": state.round,
        "seed": state.seed,
        "config_digest": state.config_digest,
        "architecture": state.architecture,
        "panel": list(state.panel),
        "members": state.members,
        "started": state.started,
        "history": [dataclasses.asdict(record) for record in state.history],
    }
    if state.best is not None:
        meta["best"] = {"round": state.best.round, "loss": state.best.loss}
        for group in _BEST_GROUPS:
            tensors |= {f"best/{group}/{name}": value for name, value in getattr(state.best, group).items()}
    vault.write(path, checkpoint.pack(tensors, meta), Sealed(CHECKPOINT_KIND, state.run, state.round, FORMAT))


def load(path: Path, vault: Vault = CLEAR) -> ServerState:
    """Read a state back.

    Raises
    ------
    UserError
        ``checkpoint-missing``, ``checkpoint-corrupt``, ``checkpoint-format``, and as :class:`Vault`.
    """
    tensors, meta = vault.read_tensors(path, CHECKPOINT_KIND)
    if meta.get("format") != FORMAT:
        raise UserError(
            "checkpoint-format",
            f"{path}: written by another version of momkd-fl (format {meta.get('format')!r}). "
            "Resume with that version, or start anew with --fresh.",
        )
    try:
        return _read(tensors, meta)
    except (KeyError, TypeError):
        raise UserError(
            "checkpoint-format",
            f"{path}: this checkpoint lacks what this version of momkd-fl needs. Resume with the version that wrote "
            "it, or start anew with --fresh.",
        ) from None


def _read(tensors: Arrays, meta: dict[str, Any]) -> ServerState:
    best = None
    if "best" in meta:
        groups = {group: _under(tensors, f"best/{group}/") for group in _BEST_GROUPS}
        best = Best(round=meta["best"]["round"], loss=meta["best"]["loss"], **groups)
    return ServerState(
        run=meta["run"],
        round=meta["round"],
        config_digest=meta["config_digest"],
        architecture=meta["architecture"],
        panel=tuple(meta["panel"]),
        members=meta["members"],
        history=tuple(RoundRecord(**record) for record in meta["history"]),
        best=best,
        seed=meta["seed"],
        started=meta.get("started", {}),
        **{group: _under(tensors, f"{group}/") for group in _GROUPS},
    )


def _under(tensors: Mapping[str, Any], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): np.asarray(value) for name, value in tensors.items() if name.startswith(prefix)}
