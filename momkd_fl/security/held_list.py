"""The newest allow-list that a party has seen, kept on its disk: an older one is not taken any more."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from momkd_fl.errors import UserError
from momkd_fl.security.allowlist import AllowList, read_allow_list
from momkd_fl.security.charter import Charter
from momkd_fl.security.keystore import write_new


class HeldList:
    """A file with the newest list; it is the party's memory, and lost where the file is deleted.

    Parameters
    ----------
    path : Path
        Made by the first :meth:`offer`.
    charter : Charter
    """

    def __init__(self, path: Path, charter: Charter) -> None:
        self._path, self._charter = path, charter

    def newest(self) -> AllowList | None:
        """The newest list seen, which may have expired; None before the first.

        Raises
        ------
        UserError
            ``allowlist-memory-damaged``: it is not guessed what was there.
        """
        if not os.path.lexists(self._path):
            return None
        try:
            if self._path.is_symlink():
                raise OSError
            held = read_allow_list(self._path)
            held.check(self._charter, str(self._path), now=held.issued)
        except (UserError, OSError):
            raise UserError(
                "allowlist-memory-damaged",
                f"{self._path}: does not hold the newest allow-list that this party has seen, under its charter. "
                "Restore the file; delete it only once the keyholder has told you the newest version by telephone.",
            ) from None
        return held

    def offer(self, offered: AllowList, where: str, now: datetime | None = None) -> AllowList:
        """``offered`` itself, if it holds and is not older than what was seen; it is remembered before it is returned.

        Raises
        ------
        UserError
            ``allowlist-rolled-back``, ``allowlist-forked``, ``allowlist-memory-damaged``, ``key-not-written``; and as
            :meth:`AllowList.check`.
        """
        offered.check(self._charter, where, now)
        held = self.newest()
        if held is not None and offered.version < held.version:
            raise UserError(
                "allowlist-rolled-back",
                f"{where}: is version {offered.version} of the allow-list, and this party has seen {held.version}. "
                "Somebody offers an old list: use the newest.",
            )
        if held is not None and offered.version == held.version:
            if offered.body_digest() != held.body_digest():
                raise UserError(
                    "allowlist-forked",
                    f"{where}: is another list than the one of the same version {held.version} that this party has "
                    "seen. Two lists were signed: ask the consortium's keyholder which holds.",
                )
            return offered
        self._remember(offered)
        return offered

    def _remember(self, newest: AllowList) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.next")
            draft.unlink(missing_ok=True)
            write_new(draft, newest.text(), 0o600)
            os.replace(draft, self._path)
        except OSError as problem:
            raise UserError(
                "key-not-written",
                f"{self._path}: could not be written ({problem.strerror}). Choose a folder on a local disk.",
            ) from None
