"""Files that survive a power cut: safetensors with JSON beside the tensors, written, synced and renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from momkd_fl.errors import UserError

_META, _DIGEST = "momkd", "sha256"


def save(path: Path, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata to ``path``; the file is either the old one or the new one, never half."""
    write_durably(path, pack(tensors, meta))


def pack(tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint."""
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    text = json.dumps(dict(meta))
    return bytes(to_bytes(arrays, metadata={_META: text, _DIGEST: _digest(arrays, text)}))


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
        content = path.read_bytes()
    except OSError:
        content = b""
    return unpack(content, path)


def unpack(content: bytes, path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """What :func:`pack` made; ``path`` is where it was read from (raises UserError ``checkpoint-corrupt``)."""
    try:
        arrays = from_bytes(content)
        size = int.from_bytes(content[:8], "little")
        written = json.loads(content[8 : 8 + size])["__metadata__"]
        if written[_DIGEST] != _digest(arrays, written[_META]):
            raise ValueError("a byte changed after the file was written")
        return arrays, json.loads(written[_META])
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise UserError(
            "checkpoint-corrupt",
            f"{path}: this is not a whole checkpoint of momkd-fl. Restore a backup, or start anew with --fresh.",
        ) from None


def _digest(arrays: Mapping[str, NDArray[Any]], meta: str) -> str:
    """SHA-256 over names, types, shapes, bytes and metadata: safetensors itself would not notice a flipped bit."""
    digest = hashlib.sha256(meta.encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


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
