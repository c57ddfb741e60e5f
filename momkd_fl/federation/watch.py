"""Whoever watches a run at the coordinator: the progress view, the log and the metrics, told once."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from momkd_fl.config.federation import FederationConfig
from momkd_fl.federation.state import RoundRecord
from momkd_fl.telemetry.logs import JsonLog, Value
from momkd_fl.telemetry.metrics import ServerMetrics
from momkd_fl.telemetry.progress import Progress


@dataclass
class Watch:
    """Fan-out of what happens to the three ways of seeing it."""

    progress: Progress
    log: JsonLog
    metrics: ServerMetrics
    states: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def site(self, site: str, state: str) -> None:
        """A site changed its state (a word of telemetry.vocabulary.SITE_STATES)."""
        self.states[site] = state
        self.progress.site(site, state)
        self.metrics.states(self.states)

    def replied(self, site: str, state: str) -> None:
        """A site's reply was used or refused (states of strategy.Contributions)."""
        self.site(site, "done" if state == "trained" else "refused")

    def say(self, sentence: str, event: str, *, level: str = "info", **fields: Value) -> None:
        """A sentence for the person, an event for the log."""
        self.progress.say(sentence)
        self.log.event(event, level=level, **fields)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase, for the metrics and for the round's record."""
        started = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            self.metrics.seconds(name, took)

    def round_started(self, number: int) -> None:
        """Round ``number`` goes out."""
        self.seconds = {}
        self.metrics.round_started(number)

    def round_ended(self, record: RoundRecord, traffic: Mapping[str, tuple[int, int]]) -> None:
        """A round was aggregated; ``traffic`` is (sent, received) bytes of this round by site."""
        replies = sum(state == "trained" for state in record.states.values())
        self.progress.round(record.round, record.seconds, replies, record.auroc, record.loss)
        self.metrics.round_ended()
        self.metrics.memory(slot_movement=record.slot_movement_rad, effective_slots=record.effective_slots)
        self.metrics.validation(auroc=record.auroc, loss=record.loss)
        for site, (sent, received) in traffic.items():
            self.metrics.traffic(site, sent=sent, received=received)
        self.log.event(
            "round_finished",
            round=record.round,
            seconds=round(record.seconds, 3),
            bytes_sent=record.bytes_sent,
            bytes_received=record.bytes_received,
            replies=replies,
            auroc=record.auroc,
            loss=record.loss,
            slot_movement=record.slot_movement_rad,
            effective_slots=record.effective_slots,
            effective_patches=record.effective_patches,
        )


def open_watch(config: FederationConfig, *, plain: bool | None = None) -> Watch:
    """The views, the log and the metrics that the configuration asks for."""
    sites = list(config.members)
    evaluators = [site for site, member in config.members.items() if member.role == "evaluate"]
    progress = Progress.open(
        config.rounds.count, sites, quorum=config.rounds.quorum, evaluators=evaluators, plain=plain
    )
    log = JsonLog(config.telemetry.log, "coordinator", sites=sites)
    metrics = ServerMetrics(config.rounds.count, sites)
    if config.telemetry.metrics_port is not None:
        metrics.serve(config.telemetry.metrics_port)
    return Watch(progress, log, metrics, dict.fromkeys(sites, "expected"))


def unwatched(config: FederationConfig, said: TextIO | None = None) -> Watch:
    """A watch that shows nothing, for runs in the background; ``said`` receives its sentences."""
    sites = list(config.members)
    progress = Progress.open(config.rounds.count, sites, plain=True, stream=said or io.StringIO())
    return Watch(progress, JsonLog(None, "coordinator", sites=sites), ServerMetrics(config.rounds.count, sites))
