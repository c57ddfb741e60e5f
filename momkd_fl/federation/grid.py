"""What the grids over the network and in process have in common: sites have names, and waiting can be ended."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid


class RunStopped(Exception):
    """The run was ended from outside while something waited for sites."""


class SiteNamesGrid(Grid):
    """A grid whose nodes are sites with names.

    Parameters
    ----------
    sites : dict of int to str
        Site name by node id, for every site on the allow-list.
    run : Run
        Flower's description of the run.
    """

    def __init__(self, sites: dict[int, str], run: Any) -> None:
        self.sites = sites
        self._nodes = {site: node for node, site in sites.items()}
        self._run = run
        self._stopped = threading.Event()

    def set_run(self, run: Any) -> None:
        """Set the run (Flower's Grid interface)."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run (Flower's Grid interface)."""
        return self._run

    def node_of(self, site: str) -> int:
        """Node id of a site (KeyError for a name that is not on the allow-list)."""
        return self._nodes[site]

    def online(self) -> set[str]:
        """Names of the sites with a live session."""
        return set(self._nodes)

    def get_node_ids(self) -> Iterable[int]:
        """Node ids of the sites online.

        Raises
        ------
        RunStopped
            After :meth:`stop`: Flower's strategies ask for ever while sites are missing.
        """
        if self._stopped.is_set():
            raise RunStopped
        return [self._nodes[site] for site in self.online()]

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message (Flower's Grid interface)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def stop(self) -> None:
        """Make waiting calls return promptly."""
        self._stopped.set()
