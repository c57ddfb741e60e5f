"""A site's own student, where no weights are shared: kept between rounds, and scored by others in simulations only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from momkd_fl.errors import UserError
from momkd_fl.federation.vault import CLEAR, Vault
from momkd_fl.security.seal import Sealed
from momkd_fl.training import checkpoint

STUDENT_FILE, STUDENT_KIND = "student.safetensors", "student"


def save_student(
    folder: Path, run: str, round: int, weights: dict[str, NDArray[np.float32]], vault: Vault = CLEAR
) -> None:
    """Keep the flat weights by branch; the file never leaves the site."""
    content = checkpoint.pack(weights, {"run": run, "round": round})
    vault.write(folder / STUDENT_FILE, content, Sealed(STUDENT_KIND, run, round))


def load_student(folder: Path, run: str, vault: Vault = CLEAR) -> dict[str, NDArray[np.float32]] | None:
    """The student of ``run``, or None where this site has none yet."""
    try:
        weights, meta = vault.read_tensors(folder / STUDENT_FILE, STUDENT_KIND)
    except UserError as mistake:
        if mistake.code == "checkpoint-missing":
            return None
        raise
    return weights if meta.get("run") == run else None
