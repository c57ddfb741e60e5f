"""One question to many sites, and what came back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message

from momkd_fl.errors import UserError
from momkd_fl.federation import messages
from momkd_fl.federation.messages import Arrays, Kind, Parcel, ReplyT, RequestT


class SiteGrid(Protocol):
    """What the coordinator needs of a grid: over the network (flower.py) or in process (local.py)."""

    @property
    def sites(self) -> Mapping[int, str]:
        """Site name by node id, for every site on the allow-list."""
        ...

    def node_of(self, site: str) -> int:
        """Node id of a site."""
        ...

    def online(self) -> set[str]:
        """Names of the sites with a live session."""
        ...

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies in order of arrival."""
        ...


@dataclass
class Answers(Iterable[tuple[str, Parcel[ReplyT]]]):
    """Accepted replies by site, refusals by site (stable codes), and sentences for the coordinator's log."""

    parcels: dict[str, Parcel[ReplyT]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    sentences: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, Parcel[ReplyT]]]:
        return iter(self.parcels.items())

    def refuse(self, site: str, mistake: UserError) -> None:
        """Drop a site's reply whole."""
        self.parcels.pop(site, None)
        self.refusals[site] = mistake.code
        self.sentences[site] = mistake.sentence


def ask_all(
    grid: SiteGrid,
    kind: Kind[RequestT, ReplyT],
    body: RequestT,
    sites: Collection[str],
    *,
    run: str,
    round: int,
    timeout_s: float,
    arrays: Arrays | None = None,
    check: Callable[[str, Parcel[ReplyT]], None] = lambda site, parcel: None,
) -> Answers[ReplyT]:
    """Send one message to each site and open what comes back within ``timeout_s`` seconds.

    ``check`` may raise UserError to refuse a reply whole. Sites that did not answer are in neither dictionary.
    """
    answers: Answers[ReplyT] = Answers()
    nodes = [grid.node_of(site) for site in sites]
    outgoing = messages.ask_each(kind, body, nodes, run=run, round=round, arrays=arrays or {})
    for reply in grid.send_and_receive(outgoing, timeout=timeout_s):
        site = grid.sites[reply.metadata.src_node_id]
        if reply.has_error():
            answers.refusals[site] = messages.site_code(reply)
            answers.sentences[site] = f"site {site} could not answer '{kind.name}' ({answers.refusals[site]})."
            continue
        try:
            parcel = messages.open_reply(reply, kind, site, run=run, round=round)
            answers.parcels[site] = parcel
            check(site, parcel)
        except UserError as mistake:
            answers.refuse(site, mistake)
    return answers
