"""Where one party's files lie: sealed under its key, or, where it has none, in the clear.

Beside its sealed files a folder has an index, sealed too, of each one's digest: a file of another run, or of an earlier
round, put back alone is refused although it was sealed with the right key. The index names the new file before the old
one is replaced, and both until it is, so that a process killed at any moment leaves a folder that can be read. Whoever
puts back the whole folder, index included, is not found out here, but by the heads that others hold (anchors.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from momkd_fl.config.site import Seal
from momkd_fl.errors import UserError
from momkd_fl.security.seal import Sealed, seal, seal_key_from_environment, seal_key_from_file, unseal
from momkd_fl.training import checkpoint
from momkd_fl.training.checkpoint import write_durably

SUFFIX: Final = ".sealed"
INDEX: Final = "index.sealed"
_INDEX_KIND: Final = "index"


@dataclass(frozen=True)
class _Entry:
    """What a file may be: the digest of its sealed bytes, and what it was sealed as."""

    sha256: str
    sealed: Sealed


_Index = dict[str, list[_Entry]]


class Vault:
    """Reads and writes one party's files; several processes may (a withdrawal meets a client that runs).

    Parameters
    ----------
    key : bytes or None
        32 bytes; None leaves files as they are.

    Raises
    ------
    UserError
        ``seal-missing-key``: a file is sealed and there is no key; ``seal-in-clear``: there is a key, and the file is
        not sealed; ``seal-other``: it is another than the newest; ``seal-index-missing``; and of security/seal.py. A
        file that cannot be read is never written over.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key

    def path(self, path: Path) -> Path:
        """Where ``path`` really lies."""
        return path if self._key is None else path.with_name(path.name + SUFFIX)

    def holds(self, path: Path) -> bool:
        """Whether the file is there."""
        clear, closed = path, path.with_name(path.name + SUFFIX)
        if self._key is None:
            if closed.exists():
                raise UserError(
                    "seal-missing-key",
                    f"{closed}: is sealed, and the configuration names no key. Name it under 'seal', as it was when "
                    "the file was written.",
                )
            return clear.exists()
        if clear.exists():
            raise UserError(
                "seal-in-clear",
                f"{clear}: is not sealed, although the configuration names a key under 'seal'. It was written before "
                "there was one, or put there by somebody else. If it is yours, seal it with 'momkd seal'; else delete "
                "it.",
            )
        return closed.exists()

    def write(self, path: Path, content: bytes, sealed: Sealed) -> None:
        """Durably; the file is either the old one or the new one."""
        self.holds(path)
        if self._key is None:
            write_durably(path, content)
        else:
            self._write(path, content, sealed)

    def adopt(self, path: Path, content: bytes, sealed: Sealed) -> Path:
        """Seal a file that lies in the clear, then delete the clear one; returns where it lies now."""
        if self.path(path).exists():
            raise UserError(
                "seal-both",
                f"{path}: lies in the clear although {self.path(path).name} is there. Keep the one that is yours, and "
                "move the other away.",
            )
        self._write(path, content, sealed)
        path.unlink()
        return self.path(path)

    def _write(self, path: Path, content: bytes, sealed: Sealed) -> None:
        assert self._key is not None
        blob = seal(self._key, content, sealed)
        entry = _Entry(hashlib.sha256(blob).hexdigest(), sealed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            index = self._index(path.parent)
            self._keep_index(path.parent, index | {path.name: [*index.get(path.name, []), entry]})
            write_durably(self.path(path), blob)
            self._keep_index(path.parent, index | {path.name: [entry]})

    def read(self, path: Path, kind: str) -> bytes | None:
        """The content, or None where there is no such file."""
        if not self.holds(path):
            return None
        blob = self.path(path).read_bytes()
        if self._key is None:
            return blob
        found, content = unseal(self._key, blob, str(self.path(path)))
        digest = hashlib.sha256(blob).hexdigest()
        expected = self._index(path.parent).get(path.name, [])
        if found.kind != kind or digest not in [each.sha256 for each in expected]:
            newest = expected[-1].sealed.spoken() if expected else f"no {kind}"
            raise UserError(
                "seal-other",
                f"{self.path(path)}: is {found.spoken()}, but not the file that this party wrote last, which is "
                f"{newest}. An old copy or another file was put in its place. Put the newest one back.",
            )
        return content

    def sealed_as(self, path: Path, kind: str) -> Sealed:
        """As what the newest file was sealed (run and round); without a key, as of no run."""
        entries = [] if self._key is None else self._index(path.parent).get(path.name, [])
        return entries[-1].sealed if entries else Sealed(kind, "", 0)

    def read_tensors(self, path: Path, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Tensors and metadata of a checkpoint (also raises ``checkpoint-missing`` and ``checkpoint-corrupt``)."""
        content = self.read(path, kind)
        return checkpoint.load(path) if content is None else checkpoint.unpack(content, self.path(path))

    def check(self, folder: Path) -> None:
        """Refuse a key that does not open what is in ``folder``, before any work is done."""
        if self._key is not None:
            self._index(folder)
        elif (folder / INDEX).exists():
            self.holds(folder / INDEX.removesuffix(SUFFIX))

    def _index(self, folder: Path) -> _Index:
        assert self._key is not None
        path = folder / INDEX
        if not path.exists():
            stray = next(folder.glob(f"*{SUFFIX}"), None) if folder.is_dir() else None
            if stray is not None:
                raise UserError(
                    "seal-index-missing",
                    f"{path}: is missing, so that nobody can tell whether {stray.name} is the newest. Put it back; if "
                    "it is lost, move the sealed files away and start anew.",
                )
            return {}
        sealed, content = unseal(self._key, path.read_bytes(), str(path))
        if sealed.kind != _INDEX_KIND:
            raise UserError(
                "seal-other",
                f"{path}: is {sealed.spoken()}, where an index of sealed files belongs. Put the newest one back.",
            )
        return {
            name: [_Entry(each.pop("sha256"), Sealed(**each)) for each in entries]
            for name, entries in json.loads(content).items()
        }

    def _keep_index(self, folder: Path, index: _Index) -> None:
        assert self._key is not None
        plain: dict[str, Any] = {
            name: [{"sha256": each.sha256, **asdict(each.sealed)} for each in entries]
            for name, entries in index.items()
        }
        write_durably(folder / INDEX, seal(self._key, json.dumps(plain).encode(), Sealed(_INDEX_KIND, "", 0)))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes that write to it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


CLEAR: Final = Vault()
"""Of a simulation, a trial, or a party without a key."""


def in_the_clear(folder: Path) -> str:
    """What a party without a key is told at its start."""
    return f"No key is named under 'seal': what is kept in {folder} lies there in the clear."


def open_vault(seal: Seal | None) -> Vault:
    """The vault of a configuration (raises UserError of security/seal.py and security/keystore.py)."""
    if seal is None:
        return CLEAR
    if seal.key_file is not None:
        return Vault(seal_key_from_file(seal.key_file))
    assert seal.key_env is not None
    return Vault(seal_key_from_environment(seal.key_env))
