"""A site's own student, where no weights are shared: kept between rounds, and scored by others in simulations only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from momkd_fl.errors import UserError
from momkd_fl.training import checkpoint

_FILE = "student.safetensors"


def save_student(folder: Path, run: str, round: int, weights: dict[str, NDArray[np.float32]]) -> None:
    """Keep the flat weights by branch; the file never leaves the site."""
    checkpoint.save(folder / _FILE, weights, {"run": run, "round": round})


def load_student(folder: Path, run: str) -> dict[str, NDArray[np.float32]] | None:
    """The student of ``run``, or None where this site has none yet."""
    try:
        weights, meta = checkpoint.load(folder / _FILE)
    except UserError as mistake:
        if mistake.code == "checkpoint-missing":
            return None
        raise
    return weights if meta.get("run") == run else None
