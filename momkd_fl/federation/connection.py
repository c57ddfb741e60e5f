"""What a site's session reports, told to its screen, its log and its metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from momkd_fl.telemetry.logs import JsonLog
from momkd_fl.telemetry.metrics import ClientMetrics

SAY_EVERY_S = 10.0
_STATES = {
    "connecting": "connecting",
    "active": "active",
    "received": "working",
    "sent": "waiting",
    "finished": "finished",
    "stopped": "stopped",
}


@dataclass
class Connection:
    """Turns the session's events into sentences, at most one a few seconds while nothing changes."""

    say: Callable[[str], None]
    log: JsonLog
    metrics: ClientMetrics
    _said_at: float = -SAY_EVERY_S
    _lost: bool = False

    def event(self, event: str, fields: dict[str, Any]) -> None:
        """One event of federation.flower.SiteSession."""
        if event in _STATES:
            self.metrics.connection(_STATES[event])
        if event == "connecting":
            self._waiting(float(fields["waited_s"]), str(fields["url"]), str(fields["reason"]))
        elif event == "active":
            self.say("Connected to the server again." if self._lost else "Connected to the server.")
            self.log.event("connected", resumed=self._lost)
            self._lost = False
        elif event == "clock":
            self.say(f"This machine's clock is {fields['off_s']} s off the server's; corrected for. Set it right.")
            self.log.event("clock_off", level="warning", seconds=float(fields["off_s"]))
        elif event == "dropped":
            self.say("The server no longer wants this answer (the round went on, or it restarted); asking again.")
            self.log.event("answer_dropped", level="warning")
        elif event == "refused":
            self.log.event("refused", level="error", code=str(fields["code"]))
        elif event == "sent" and "seconds" in fields:
            self.log.event("answered", seconds=float(fields["seconds"]))

    def _waiting(self, waited_s: float, url: str, reason: str) -> None:
        self._lost = True
        now = time.monotonic()
        if now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            self.say(f"No answer from {url} for {waited_s:.0f} s ({reason}); trying again until it is there.")
            self.log.event("server_not_reached", level="warning", waited_s=waited_s)
