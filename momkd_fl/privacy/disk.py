"""The few calls by which the odometer reaches the disk, in one place so that each can be made to fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from momkd_fl.errors import UserError


class Disk:
    """Appends, syncs and names; a test puts another in its place that dies at each step."""

    def append(self, descriptor: int, data: bytes) -> None:
        """Write all of ``data`` at the end."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut the file to ``size`` bytes."""
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        """Return when the file's bytes and size are on the disk."""
        os.fsync(descriptor)

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in ``folder`` are on the disk."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def name(self, source: Path, target: Path) -> None:
        """Rename ``source`` to ``target``, never over a file that is there."""
        os.link(source, target)
        os.unlink(source)


@contextmanager
def telling_of_disk(path: Path) -> Iterator[None]:
    """Turn what the operating system says into UserError ``odometer-not-written``."""
    try:
        yield
    except OSError as problem:
        raise UserError(
            "odometer-not-written",
            f"{path}: the disk did not take the debit ({problem.strerror}), so nothing was sent. Make room, or put "
            "the odometer on a local disk.",
        ) from None
