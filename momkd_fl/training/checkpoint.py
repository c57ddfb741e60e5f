"""Files that survive a power cut: safetensors with JSON beside the tensors, written, synced and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from momkd_fl.errors import UserError

_META = "momkd"


def save(path: Path, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata to ``path``; the file is either the old one or the new one, never half."""
    data = to_bytes(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, metadata={_META: json.dumps(dict(meta))}
    )
    write_durably(path, data)


def load(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what :func:`save` wrote.

    Raises
    ------
    UserError
        ``checkpoint-missing`` or ``checkpoint-corrupt``.
    """
    if not path.is_file():
        raise UserError("checkpoint-missing", f"{path}: there is no such checkpoint.")
    try:
        with safe_open(path, framework="numpy") as file:
            meta = json.loads((file.metadata() or {})[_META])
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118  (not a dictionary)
    except (SafetensorError, KeyError, ValueError, OSError):
        raise UserError(
            "checkpoint-corrupt",
            f"{path}: this is not a whole checkpoint of momkd-fl. Restore a backup, or start anew with --fresh.",
        ) from None


def write_durably(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path``, sync it, rename it over ``path`` and sync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
