"""The coordinator's Grid over the sites that connect: sends, waits, sends again, withdraws."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from momkd_fl.federation.packing import Parts
from momkd_fl.federation.transport import Traffic

Known = dict[tuple[int, ...], Parts]


class RunStopped(Exception):  # noqa: N818 - it is no error
    """The run was ended from outside while something waited for sites."""


class Links(Protocol):
    """What the grid needs of the server's state (flower.py). A question is the id of a message to a site."""

    changed: threading.Condition

    def put(self, messages: Sequence[Message], known: Known) -> list[str]:
        """Store messages for their sites; returns the questions."""
        ...

    def take(self, question: str) -> Message | None:
        """The complete reply, removed from memory; None while there is none."""
        ...

    def settled(self, question: str) -> bool:
        """Whether :meth:`take` would return something."""
        ...

    def withdraw(self, question: str) -> None:
        """Forget a message and all that belongs to it, answered or not."""
        ...

    def session_of(self, node: int) -> int:
        """How often a site's session has begun."""
        ...

    def confirmed(self, question: str) -> bool:
        """Whether the site has said that it holds the message."""
        ...

    def nodes_online(self) -> set[int]:
        """Nodes with a live session."""
        ...


@dataclass
class GridStats:
    """Bytes by site (request and response bodies), and messages sent again after a site came back."""

    traffic: dict[str, Traffic]
    resent: int = 0


@dataclass
class _Question:
    """A message that has no answer yet; kept so that it can be sent again."""

    message: Message
    session: int

    @property
    def node(self) -> int:
        return int(self.message.metadata.dst_node_id)


class FleetGrid(Grid):
    """Flower's Grid, made by :class:`~momkd_fl.federation.flower.FleetServer`.

    Parameters
    ----------
    links : Links
    run : Run
        Flower's description of the only run of this process.
    sites : mapping
        Site name by node id, for every site on the allow-list.
    traffic : dict
        Counted into by the server.
    """

    def __init__(self, links: Links, run: Any, sites: Mapping[int, str], traffic: dict[str, Traffic]) -> None:
        self._links, self._run, self._stopped = links, run, False
        self.sites = dict(sites)
        self.stats = GridStats(traffic)
        self._nodes = {site: node for node, site in sites.items()}

    @property
    def run(self) -> Any:
        """The only run of this process."""
        return self._run

    def set_run(self, run: Any) -> None:
        """Flower calls this; there is only one run."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message of this run."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def node_of(self, site: str) -> int:
        """Node id of a site (KeyError for a name that is not on the allow-list)."""
        return self._nodes[site]

    def online(self) -> set[str]:
        """Names of the sites with a live session."""
        return {self.sites[node] for node in self._links.nodes_online()}

    def get_node_ids(self) -> list[int]:
        """Nodes with a live session.

        Raises
        ------
        RunStopped
            After :meth:`stop`: Flower's strategies ask for ever while sites are missing.
        """
        if self._stopped:
            raise RunStopped
        return sorted(self._links.nodes_online())

    def stop(self) -> None:
        """Waiting calls return promptly with what they have."""
        with self._links.changed:
            self._stopped = True
            self._links.changed.notify_all()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send; the ids serve :meth:`pull_messages`."""
        return self._links.put(list(messages), Known())

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Complete replies to these messages; each is given out once."""
        replies = (self._links.take(question) for question in message_ids)
        return [reply for reply in replies if reply is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send all at once, yield each reply when it is complete; what is unanswered at the end is withdrawn.

        Parameters
        ----------
        messages : iterable of Message
        timeout : float, optional
            Seconds from the first request for a reply; None waits until every site has answered or :meth:`stop`.

        Notes
        -----
        A site that restarts meanwhile is sent its message again. A message that was not answered in time is
        withdrawn: a site that returns late does not train for a round that is over. Replies leave the server's
        memory as they are yielded, and only a few are let in at a time.
        """
        messages, known = list(messages), Known()  # ``known`` is only good while the messages' records live
        deadline = None if timeout is None else time.monotonic() + timeout
        pending: dict[str, _Question] = {}
        try:
            asked = [_Question(each, self._links.session_of(each.metadata.dst_node_id)) for each in messages]
            pending.update(zip(self._links.put(messages, known), asked, strict=True))
            while pending and self._wait(pending, deadline):
                self._send_again(pending, known)
                for question in list(pending):
                    reply = self._links.take(question)
                    if reply is not None:
                        del pending[question]
                        yield reply
        finally:
            for question in pending:
                self._links.withdraw(question)

    def _wait(self, pending: Mapping[str, _Question], deadline: float | None) -> bool:
        """Until something can be done; False when it is over."""
        links = self._links
        with links.changed:
            while not self._stopped:
                if any(links.settled(question) or self._restarted(asked) for question, asked in pending.items()):
                    return True
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return False
                links.changed.wait(left_s)
        return False

    def _restarted(self, asked: _Question) -> bool:
        return self._links.session_of(asked.node) != asked.session

    def _send_again(self, pending: dict[str, _Question], known: Known) -> None:
        """Flower delivers once: a site that restarted after it had confirmed its message has lost it."""
        links = self._links
        for question, asked in list(pending.items()):
            if not self._restarted(asked):
                continue
            asked.session = links.session_of(asked.node)
            if links.confirmed(question) and not links.settled(question):
                links.withdraw(question)
                del pending[question]
                pending[links.put([asked.message], known)[0]] = asked
                self.stats.resent += 1
