"""The coordinator's side of the sites' books: it keeps each site's newest heads, and sends a site its own.

A restored backup at a site then does not go unnoticed, nor a ledger cut short. Nothing of it is secret. Where the
coordinator has lost what it held, or begins in a new folder, the other sites give back what they hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from flwr.app import Error, Message

from momkd_fl.errors import UserError
from momkd_fl.federation.anchor import PEERS_MAX, Anchor, Signed, read_receipt, with_heads
from momkd_fl.federation.challenges import Relay
from momkd_fl.federation.dialogue import SiteGrid
from momkd_fl.federation.messages import SITE_ERROR
from momkd_fl.training.checkpoint import write_durably

FILE: Final = "anchors.json"
RETURNED_KEPT: Final = 16
RETURNED_MAX: Final = 10 * PEERS_MAX
"""Keys of which it is kept what sites gave back; a site may name any key, whether there is such a site or not."""


class Anchors:
    """Each site's newest heads and the key that signed them, in one file.

    Raises
    ------
    UserError
        ``anchors-unreadable``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: dict[str, Signed] = {}
        self._returned: dict[bytes, list[Signed]] = {}
        self._relay = Relay()
        if path.exists():
            try:
                raw = json.loads(path.read_bytes())
                self._held = {site: Signed.from_plain(one) for site, one in raw.items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                raise UserError(
                    "anchors-unreadable",
                    f"{path}: the heads of the sites' books cannot be read. Put the newest copy back; if it is lost, "
                    "move the file away and tell the sites that earlier heads are known to them alone.",
                ) from None

    def of(self, site: str) -> Anchor | None:
        """Its newest heads; None where it has sent none."""
        held = self._held.get(site)
        return None if held is None else held.anchor

    def for_site(self, site: str) -> list[Signed]:
        """What a site is told: the newest of every other one, and what others hold of any that is not among them.

        Of the site itself, that is what others gave back, so that it sees it whatever it has told the coordinator.
        """
        own = self._held.get(site)
        others = {one.key: one for name, one in self._held.items() if name != site}
        of_itself = [] if own is None else self._returned.get(own.key, [])
        unknown = [
            one
            for key, kept in self._returned.items()
            if key not in others and (own is None or key != own.key)
            for one in kept
        ]
        return [*of_itself, *others.values(), *unknown][:PEERS_MAX]

    def asked(self, site: str) -> dict[str, str]:
        """What the others ask a site, and answer it."""
        return self._relay.fields(site)

    def take(self, site: str, reply: Message) -> None:
        """Check and keep the heads of a reply.

        Raises
        ------
        UserError
            ``receipt-invalid``; ``receipt-missing`` from a site that signed before; ``receipt-key`` for another key;
            ``receipt-older`` where its books are shorter than they were.
        """
        receipt, held = read_receipt(reply.content, site), self._held.get(site)
        if receipt is None:
            if held is not None:
                raise UserError(
                    "receipt-missing", f"site {site}: has signed its messages before, this one not; it was dropped."
                )
            return
        found, peers = receipt
        for before in (*([held] if held else []), *self._returned.get(found.key, [])):
            self._refuse_change(site, found, before)
        self._relay.take(site, found.key, reply.content)
        self._take_back(each for each in peers if each.key != found.key)
        self._held[site] = found
        plain = {name: one.plain() for name, one in self._held.items()}
        write_durably(self._path, json.dumps(plain, indent=1).encode())

    def _take_back(self, peers: Iterable[Signed]) -> None:
        """Keep what a site gave back of others; each of those sees it with its next question."""
        for each in peers:
            kept = self._returned.get(each.key, [])
            if each not in kept and (kept or len(self._returned) < RETURNED_MAX):
                self._returned[each.key] = [*kept, each][-RETURNED_KEPT:]

    def _refuse_change(self, site: str, found: Signed, held: Signed) -> None:
        now, before = found.anchor, held.anchor
        if found.key != held.key:
            raise UserError(
                "receipt-key",
                f"site {site}: signs with another key than before; the message was dropped. If the site has a new "
                f"key, compare fingerprints by telephone and take the site out of {self._path}.",
            )
        if now.ledger.lines <= before.ledger.lines or now.odometer.lines < before.odometer.lines:
            raise UserError(
                "receipt-older",
                f"site {site}: its books have fewer lines than they had; the message was dropped. The site has put "
                "an old copy back: it must put back the newest.",
            )


class AnchoringGrid:
    """A grid that puts each site's own heads beside what it is asked, and takes new ones from what it answers."""

    def __init__(self, grid: SiteGrid, anchors: Anchors) -> None:
        self._grid, self._anchors = grid, anchors

    @property
    def sites(self) -> Mapping[int, str]:
        """Site name by node id."""
        return self._grid.sites

    def node_of(self, site: str) -> int:
        """Node id of a site."""
        return self._grid.node_of(site)

    def online(self) -> set[str]:
        """Names of the sites with a live session."""
        return self._grid.online()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Replies in order of arrival; one whose receipt cannot be taken is an error with its code."""
        outgoing = list(messages)
        asked = {message.metadata.dst_node_id: message for message in outgoing}
        for message in outgoing:
            site = self.sites[message.metadata.dst_node_id]
            anchor, peers = self._anchors.of(site), self._anchors.for_site(site)
            if anchor is not None or peers:
                message.content = with_heads(message.content, anchor, peers, self._anchors.asked(site))
        for reply in self._grid.send_and_receive(outgoing, timeout=timeout):
            node = reply.metadata.src_node_id
            if not reply.has_error():
                try:
                    self._anchors.take(self.sites[node], reply)
                except UserError as mistake:
                    yield Message(Error(SITE_ERROR, mistake.code), reply_to=asked[node])
                    continue
            yield reply
