"""Prometheus metrics of a coordinator and of a site, on the loopback address only.

Labels are a site's pseudonym, a phase, a state, a direction or an outcome; never a class, a slot or
anything of a patient. Each object has its own registry, so that several can live in one process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Thread
from types import TracebackType
from typing import Final, Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, start_http_server

from momkd_fl.errors import UserError
from momkd_fl.telemetry.vocabulary import CONNECTION_STATES, CREDENTIALS, OUTCOMES, PHASES, SITE_STATES, must_be

LOOPBACK: Final = "127.0.0.1"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


def pseudonyms(sites: Sequence[str]) -> dict[str, str]:
    """Pseudonym of each site, ``site-01`` onwards in the order of the sorted names."""
    return {site: f"site-{position:02d}" for position, site in enumerate(sorted(sites), start=1)}


class _Metrics:
    """What both sides have: seconds by phase, rounds, and the endpoint to read them from."""

    def __init__(self, prefix: str) -> None:
        self.registry = CollectorRegistry()
        self._phase = Histogram(
            f"{prefix}_phase_seconds", "Seconds by phase.", ["phase"], registry=self.registry, buckets=_SECONDS
        )
        self._rounds = Counter(f"{prefix}_rounds", "Rounds ended, by outcome.", ["outcome"], registry=self.registry)
        self._round = Gauge(f"{prefix}_round", "The round that is going on, from 1.", registry=self.registry)
        self._days_left = Gauge(
            f"{prefix}_credential_days_left",
            "Days until a credential ends, negative once it has.",
            ["credential"],
            registry=self.registry,
        )
        self._endpoint: tuple[WSGIServer, Thread] | None = None

    def serve(self, port: int) -> None:
        """Serve ``/metrics`` at 127.0.0.1:``port`` from a thread, until :meth:`close`.

        Raises
        ------
        UserError
            ``metrics-port-in-use``.
        """
        try:
            self._endpoint = start_http_server(port, addr=LOOPBACK, registry=self.registry)
        except OSError as reason:
            raise UserError(
                "metrics-port-in-use",
                f"The metrics port {port} on {LOOPBACK} cannot be opened ({reason.strerror}). "
                "Set telemetry.metrics_port to a free one, or leave it out.",
            ) from None

    @property
    def port(self) -> int | None:
        """The port that is served, None before :meth:`serve`."""
        return None if self._endpoint is None else self._endpoint[0].server_port

    def close(self) -> None:
        """Stop serving; the figures stay readable through ``registry``."""
        if self._endpoint is not None:
            server, thread = self._endpoint
            self._endpoint = None
            server.shutdown()
            server.server_close()
            thread.join()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the run; counted also when it ends in an error."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds(name, time.perf_counter() - started)

    def seconds(self, phase: str, seconds: float) -> None:
        """Record how long a phase took."""
        self._phase.labels(must_be(phase, PHASES, "phase")).observe(seconds)

    def round_started(self, number: int) -> None:
        """Set the round that is going on, counted from 1."""
        self._round.set(number)

    def round_ended(self, outcome: str = "ok") -> None:
        """Count a round that has ended."""
        self._rounds.labels(must_be(outcome, OUTCOMES, "outcome")).inc()

    def expires(self, credential: str, end: datetime) -> None:
        """Show the days until ``end``, reckoned whenever they are read."""
        left = self._days_left.labels(must_be(credential, CREDENTIALS, "credential"))
        left.set_function(lambda: (end - datetime.now(UTC)).total_seconds() / 86400)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ServerMetrics(_Metrics):
    """Metrics of the coordinator, ``momkd_server_*``.

    Parameters
    ----------
    rounds : int
        Rounds planned.
    sites : sequence of str
        Every listed site's name; the label is its pseudonym.
    """

    def __init__(self, rounds: int, sites: Sequence[str]) -> None:
        super().__init__("momkd_server")
        self.pseudonyms = pseudonyms(sites)
        planned = Gauge("momkd_server_rounds_planned", "Rounds planned.", registry=self.registry)
        planned.set(rounds)
        self._bytes = Counter(
            "momkd_server_bytes",
            "Bytes of payload by site and direction.",
            ["site", "direction"],
            registry=self.registry,
        )
        self._sites = Gauge("momkd_server_sites", "Sites by state.", ["state"], registry=self.registry)
        self._movement = Gauge(
            "momkd_server_memory_slot_movement",
            "Mean angle between a slot and its last value, in radians.",
            registry=self.registry,
        )
        self._effective = Gauge(
            "momkd_server_memory_effective_slots",
            "exp of the entropy of the assignment to slots.",
            registry=self.registry,
        )
        self._auroc = Gauge(
            "momkd_server_validation_auroc",
            "AUROC of the training sites' validation patients together.",
            registry=self.registry,
        )
        self._loss = Gauge("momkd_server_validation_loss", "Their loss.", registry=self.registry)
        self.states(dict.fromkeys(sites, "expected"))

    def traffic(self, site: str, *, sent: int = 0, received: int = 0) -> None:
        """Add bytes sent to and received from a site since the last call."""
        pseudonym = self.pseudonyms[site]
        self._bytes.labels(pseudonym, "sent").inc(sent)
        self._bytes.labels(pseudonym, "received").inc(received)

    def states(self, by_site: Mapping[str, str]) -> None:
        """Set how many sites are in each state (of :data:`~momkd_fl.telemetry.vocabulary.SITE_STATES`)."""
        now = [must_be(state, SITE_STATES, "state") for state in by_site.values()]
        for state in SITE_STATES:
            self._sites.labels(state).set(now.count(state))

    def memory(self, *, slot_movement: float, effective_slots: float) -> None:
        """Set the health of the memory after a round."""
        self._movement.set(slot_movement)
        self._effective.set(effective_slots)

    def validation(self, *, auroc: float | None, loss: float | None) -> None:
        """Set the validation figures of a round; NaN where not estimable."""
        self._auroc.set(float("nan") if auroc is None else auroc)
        self._loss.set(float("nan") if loss is None else loss)


class ClientMetrics(_Metrics):
    """Metrics of a site, ``momkd_site_*``."""

    def __init__(self) -> None:
        super().__init__("momkd_site")
        self._bytes = Counter(
            "momkd_site_bytes", "Bytes of payload by direction.", ["direction"], registry=self.registry
        )
        self._connection = Enum(
            "momkd_site_connection",
            "The connection to the coordinator.",
            states=list(CONNECTION_STATES),
            registry=self.registry,
        )

    def traffic(self, *, sent: int = 0, received: int = 0) -> None:
        """Add bytes sent to and received from the coordinator since the last call."""
        self._bytes.labels("sent").inc(sent)
        self._bytes.labels("received").inc(received)

    def connection(self, state: str) -> None:
        """Set the state of the connection (of :data:`~momkd_fl.telemetry.vocabulary.CONNECTION_STATES`)."""
        self._connection.state(must_be(state, CONNECTION_STATES, "state"))
