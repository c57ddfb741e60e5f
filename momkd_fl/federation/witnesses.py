"""What a site keeps of the other sites' books: the newest few heads that each has signed.

Coordinator and site together could put old books back and leave no trace with either; the other sites still hold what
was signed. They give it back with every reply, signed by the site that it is about, so that nobody on the way can
make it up; a coordinator can only leave it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from momkd_fl.errors import UserError
from momkd_fl.federation.anchor import KEPT, PEERS_MAX, Signed
from momkd_fl.training.checkpoint import write_durably


class Witnesses:
    """The newest signed heads of each key, in one file beside the site's ledger; none yet where there is no file.

    Raises
    ------
    UserError
        ``peers-unreadable``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: dict[bytes, list[Signed]] = {}
        if path.exists():
            try:
                found = [Signed.from_plain(each) for each in json.loads(path.read_bytes())]
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                raise UserError(
                    "peers-unreadable",
                    f"{path}: what this site holds of the other sites' books cannot be read. Put a copy back; if there "
                    "is none, move the file away: others' old copies are then not found out by this site.",
                ) from None
            for each in found:
                self._held.setdefault(each.key, []).append(each)

    @property
    def held(self) -> tuple[Signed, ...]:
        """Of each key, the oldest first."""
        return tuple(each for kept in self._held.values() for each in kept)

    @property
    def newest(self) -> dict[bytes, Signed]:
        """The last of each key."""
        return {key: kept[-1] for key, kept in self._held.items()}

    def hear(self, told: Iterable[Signed]) -> None:
        """Keep what is newer, durably; what is older is no sign of anything, since messages cross.

        Raises
        ------
        UserError
            ``peer-forked`` where a site has signed what contradicts what it signed before; nothing is kept then.
        """
        newer = {key: list(kept) for key, kept in self._held.items()}
        for each in told:
            kept = newer.get(each.key, [])
            if any(each.contradicts(one) for one in kept):
                raise UserError(
                    "peer-forked",
                    f"The site whose key begins with {each.key.hex()[:16]} has signed heads of its books that "
                    "contradict those it signed before: it has put an old copy back and gone on from there. Nothing "
                    "was sent. Tell the coordinator, which must leave that site out until it has its newest books.",
                )
            if (kept or len(newer) < PEERS_MAX) and all(_later(each, one) for one in kept):
                newer[each.key] = [*kept, each][-KEPT:]
        if newer != self._held:
            self._held = newer
            write_durably(self._path, json.dumps([each.plain() for each in self.held], indent=1).encode())


def _later(one: Signed, other: Signed) -> bool:
    return one.anchor.ledger.lines > other.anchor.ledger.lines
