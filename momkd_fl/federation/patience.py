"""Trying again: how long to pause, when to say so, when to give up."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from momkd_fl.errors import UserError

FIRST_PAUSE_S = 0.2
GROWTH = 1.6
SHORT_PAUSE_MAX_S = 2.0
LONG_PAUSE_MAX_S = 10.0
# While a server restarts every second counts; after this long, sites spare it.
SHORT_PAUSES_FOR_S = 120.0
SAY_EVERY_S = 15.0


class Patience:
    """One site's patience with a server that does not answer.

    Parameters
    ----------
    url : str
        Named in the sentences.
    give_up_after_s : float
        Seconds without an answer after which :meth:`failed` raises.
    say : callable
        Receives ``waiting`` (seconds, reason) at the first failure and every 15 s, and ``resumed`` (seconds).
    stop : threading.Event
        Ends every pause at once.
    """

    def __init__(
        self, url: str, give_up_after_s: float, say: Callable[[str, dict[str, object]], None], stop: threading.Event
    ) -> None:
        self._url, self._give_up_after_s, self._say, self._stop = url, give_up_after_s, say, stop
        self._since: float | None = None
        self._pause_s = FIRST_PAUSE_S
        self._said = 0.0

    def succeeded(self) -> None:
        """The server answered."""
        if self._since is not None:
            self._say("resumed", {"seconds": round(time.monotonic() - self._since, 1)})
        self._since, self._pause_s, self._said = None, FIRST_PAUSE_S, 0.0

    def failed(self, reason: str) -> None:
        """The server did not answer: pause before the next try.

        Raises
        ------
        UserError
            ``server-unreachable`` when it has been silent for ``give_up_after_s``.
        """
        now = time.monotonic()
        self._since = self._since if self._since is not None else now
        silent_s = now - self._since
        if silent_s >= self._give_up_after_s:
            raise UserError(
                "server-unreachable",
                f"The server at {self._url} has not answered for {silent_s:.0f} s ({reason}); giving up "
                "(connection.give_up_after_s). Check the address, the network and whether the server runs.",
            )
        if silent_s >= self._said:
            self._said = silent_s + SAY_EVERY_S
            self._say("waiting", {"seconds": round(silent_s, 1), "reason": reason})
        self._stop.wait(min(self._pause_s * random.uniform(0.8, 1.2), self._give_up_after_s - silent_s))
        longest = SHORT_PAUSE_MAX_S if silent_s < SHORT_PAUSES_FOR_S else LONG_PAUSE_MAX_S
        self._pause_s = min(self._pause_s * GROWTH, longest)
