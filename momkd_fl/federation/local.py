"""The same apps in one process: a Grid without a network."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from momkd_fl.federation.flower import identify


class LocalGrid(Grid):
    """Sites that live in this process; each is asked in turn, when its reply is wanted.

    Messages are copied both ways, as a network would: a site cannot change what the coordinator holds.
    """

    def __init__(self, apps: Mapping[str, tuple[ClientApp, Context]]) -> None:
        self._apps = dict(apps)
        self.sites = dict(enumerate(self._apps, start=1))
        self._nodes = {site: node for node, site in self.sites.items()}
        self._sent = 0
        identify(task_id=1, run_id=1)

    def node_of(self, site: str) -> int:
        """Node id of a site."""
        return self._nodes[site]

    def online(self) -> set[str]:
        """Every site."""
        return set(self._apps)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Run each message's site and yield its reply; ``timeout`` has no meaning here."""
        for message in messages:
            app, context = self._apps[self.sites[message.metadata.dst_node_id]]
            self._sent += 1
            request = copy.deepcopy(message)
            request.metadata.__dict__["_message_id"] = f"local-{self._sent}"
            yield copy.deepcopy(app(request, context))

    def get_node_ids(self) -> Iterable[int]:
        """Every site's node id."""
        return list(self.sites)

    @property
    def run(self) -> Any:
        """There is no Flower run behind a local grid."""
        return None

    def set_run(self, run: Any) -> None:
        """See :attr:`run`."""

    def get_nodes(self) -> Any:
        """A local grid has no nodes of Flower's."""
        return []

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Messages are made by :mod:`momkd_fl.federation.messages`."""
        raise RuntimeError("use momkd_fl.federation.messages.ask")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Only :meth:`send_and_receive` is offered: a reply cannot wait in a grid without a store."""
        raise RuntimeError("use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See :meth:`push_messages`."""
        raise RuntimeError("use send_and_receive")
