"""Whole rounds of secure aggregation in one process, with sites that drop out; for the tests and the measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from momkd_fl.secagg import aggregator
from momkd_fl.secagg.aggregator import Step
from momkd_fl.secagg.manifest import Manifest, Policy, Segment, least_threshold
from momkd_fl.secagg.site import Values, join, receive
from momkd_fl.secagg.states import State
from momkd_fl.secagg.unmasking import Sum

MODEL = bytes(range(32))
RUN = "run-1"
STEPS = tuple(Step)
T = TypeVar("T")


@dataclass(frozen=True)
class Consortium:
    """The keys of all parties, and who is allowed what."""

    coordinator: Ed25519PrivateKey
    sites: Mapping[str, Ed25519PrivateKey]

    @staticmethod
    def of(count: int) -> Consortium:
        """New keys; sites are called S00, S01, and so on."""
        names = [f"S{number:02d}" for number in range(count)]
        return Consortium(Ed25519PrivateKey.generate(), {name: Ed25519PrivateKey.generate() for name in names})

    @property
    def identities(self) -> dict[str, bytes]:
        return {name: key.public_key().public_bytes_raw() for name, key in self.sites.items()}

    def policy(self, site: str, **other: object) -> Policy:
        """A site's policy: all the others pinned, one run allowed."""
        agreed: dict[str, object] = {
            "site": site,
            "coordinator": self.coordinator.public_key().public_bytes_raw(),
            "identities": self.identities,
            "pinned": frozenset(self.sites),
            "runs": frozenset({RUN}),
        }
        return Policy(**{**agreed, **other})  # type: ignore[arg-type]

    def manifest(self, segments: tuple[Segment, ...], **other: object) -> Manifest:
        """A round over all sites with the least threshold."""
        agreed: dict[str, object] = {
            "run": RUN,
            "round_number": 1,
            "model": MODEL,
            "participants": tuple(sorted(self.sites)),
            "threshold": least_threshold(len(self.sites)),
            "segments": segments,
        }
        return Manifest(**{**agreed, **other})  # type: ignore[arg-type]


@dataclass
class Costs:
    """CPU-seconds and bytes of one round; ``recovery_s`` is wall time from the last message to the sum."""

    site_cpu_s: dict[str, float] = field(default_factory=dict)
    aggregator_cpu_s: float = 0.0
    recovery_s: float = 0.0
    up_bytes: dict[str, int] = field(default_factory=dict)
    down_bytes: dict[str, int] = field(default_factory=dict)


@dataclass
class Rehearsal:
    """A round under way: the sites' states and what it has cost so far; with ``keep``, every message of it."""

    consortium: Consortium
    manifest: Manifest
    values: Mapping[str, Values]
    policies: Mapping[str, Policy]
    states: dict[str, State] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
    keep: bool = False
    messages: list[bytes] = field(default_factory=list)

    def run(self, drops: Mapping[str, Step] | None = None) -> Sum:
        """All five steps; a site in ``drops`` no longer answers from its step on."""
        gone = drops or {}
        message = self.manifest.signed(self.consortium.coordinator)
        state, out = aggregator.begin(message, self.consortium.identities, self.consortium.coordinator)
        for number, step in enumerate(STEPS):
            for site in out:
                if site in gone and STEPS.index(gone[site]) <= number:
                    continue
                reply = self._answer(site, out[site])
                state = self._aggregate(lambda state=state, reply=reply: aggregator.receive(state, reply))
            if step != Step.UNMASKING:
                state, out = self._aggregate(lambda state=state: aggregator.close(state))
        started = time.perf_counter()
        found = self._aggregate(lambda: aggregator.finish(state))
        self.costs.recovery_s = time.perf_counter() - started
        return found

    def _answer(self, site: str, message: bytes) -> bytes:
        started, costs = time.process_time(), self.costs
        if site in self.states:
            self.states[site], reply = receive(self.states[site], message, self.values[site])
        else:
            self.states[site], reply = join(self.policies[site], self.consortium.sites[site], message, MODEL)
        costs.site_cpu_s[site] = costs.site_cpu_s.get(site, 0.0) + time.process_time() - started
        costs.up_bytes[site] = costs.up_bytes.get(site, 0) + len(reply)
        costs.down_bytes[site] = costs.down_bytes.get(site, 0) + len(message)
        if self.keep:
            self.messages += [message, reply]
        return reply

    def _aggregate(self, work: Callable[[], T]) -> T:
        started = time.process_time()
        done = work()
        self.costs.aggregator_cpu_s += time.process_time() - started
        return done


def rehearse(consortium: Consortium, manifest: Manifest, values: Mapping[str, Values]) -> Rehearsal:
    """A round in which every site's policy agrees with the manifest."""
    policies = {
        site: consortium.policy(
            site,
            holds=frozenset(one.name for one in manifest.segments if one.holders and site in one.holders),
            neighbours_only=manifest.degree > 0,
        )
        for site in consortium.sites
    }
    return Rehearsal(consortium, manifest, values, policies)
