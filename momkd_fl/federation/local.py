"""The same apps in one process: a Grid without a network."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from momkd_fl.federation.flower import identify
from momkd_fl.federation.session import APP_ERROR

RUN = TASK = COORDINATOR = 1


class LocalGrid(Grid):
    """Sites that live in this process; each is asked in turn, when its reply is wanted.

    Messages are copied both ways, as a network would: neither side can change what the other holds.

    Parameters
    ----------
    apps : mapping
        (ClientApp, Context) by site name; a context keeps its site's state from message to message.
    """

    def __init__(self, apps: Mapping[str, tuple[ClientApp, Context]]) -> None:
        identify(TASK, RUN)
        self._apps = dict(apps)
        self.sites = dict(enumerate(self._apps, start=COORDINATOR + 1))
        self._nodes = {site: node for node, site in self.sites.items()}
        self._sent, self._stopped = 0, False

    def node_of(self, site: str) -> int:
        """Node id of a site."""
        return self._nodes[site]

    def online(self) -> set[str]:
        """Every site."""
        return set(self._apps)

    def stop(self) -> None:
        """No further site is asked."""
        self._stopped = True

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Run each message's site and yield its reply.

        ``timeout`` has no meaning here: sites that would work side by side work one after the other.
        """
        for message in list(messages):
            if self._stopped:
                return
            yield self._ask(message)

    def _ask(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        app, context = self._apps[self.sites[node]]
        self._sent += 1
        request = copy.deepcopy(message)
        request.metadata.__dict__["_message_id"] = f"local-{self._sent}"
        context.run_id, context.node_id = RUN, node
        try:
            reply = app(request, context)
        except Exception as problem:  # as over the network: a bug at one site does not end the run
            reply = Message(Error(APP_ERROR, type(problem).__name__), reply_to=request)
        return copy.deepcopy(reply)

    def get_node_ids(self) -> Iterable[int]:
        """Every site's node id."""
        return list(self.sites)

    @property
    def run(self) -> Any:
        """There is no Flower run behind a local grid."""
        return None

    def set_run(self, run: Any) -> None:
        """See :attr:`run`."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message of this simulation."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Only :meth:`send_and_receive` is offered: a reply cannot wait in a grid without a store."""
        raise RuntimeError("use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See :meth:`push_messages`."""
        raise RuntimeError("use send_and_receive")
