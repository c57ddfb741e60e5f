"""The coordinator's part in secure sums: one question, five steps, one sum (secagg/aggregator.py).

Every step waits for its sites until its deadline. A site that does not answer, refuses, or answers what the protocol
refuses has dropped out; fewer than the threshold end the sum, and whoever asked begins another with a new number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.federation import messages
from momkd_fl.federation.dialogue import SiteGrid
from momkd_fl.federation.messages import (
    INCOMING,
    JOIN,
    OUTGOING,
    SECAGG,
    SUM_STEPS,
    Arrays,
    Body,
    Join,
    Kind,
)
from momkd_fl.federation.sum_keys import SumKeys
from momkd_fl.federation.sum_numbers import SumNumbers
from momkd_fl.federation.sum_parts import Flat, Part, agreed_noise, assembled, question_digest, sites_min
from momkd_fl.federation.watch import Watch
from momkd_fl.secagg import aggregator
from momkd_fl.secagg.aggregator import Collecting, Outgoing
from momkd_fl.secagg.manifest import Manifest, least_threshold
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.unmasking import Sum

FILE: Final = "sums.json"
LISTINGS: Final = 3
"""How often a sum's lists of holders are written; then it goes on without whoever lacks what it is listed for."""
ATTEMPTS: Final = 3
"""How often a sum of the start or the end is begun; a round of training is repeated as long as the run goes on."""
WITHHELD: Final = "refused:sum-withheld"
_FIELDS: Final = {kind.name: kind.request() for kind in SUM_STEPS[1:]}


@dataclass(frozen=True)
class Total:
    """What the coordinator knows after a sum.

    Parameters
    ----------
    survivors : the sites in it
    values : sums by source (``update.histology``), in float64; zeros for a withheld class
    withheld : parts that fewer than three sites hold
    lacking : by site, gates of which it withheld in this sum what its greeting said it holds
    """

    survivors: tuple[str, ...]
    values: Flat
    withheld: tuple[str, ...]
    lacking: Mapping[str, set[str]] = field(default_factory=dict)

    def group(self, name: str) -> Flat:
        """Sums of one group of arrays, by member."""
        return {key.removeprefix(f"{name}."): value for key, value in self.values.items() if key.startswith(f"{name}.")}


@dataclass
class Attempt:
    """How one sum went: ``total`` is None where too few sites stayed; ``states`` as in strategy.Contributions.

    ``lacking``: by site, gates of which it withholds in this sum what its greeting said it holds.
    """

    states: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    lacking: dict[str, set[str]] = field(default_factory=dict)
    total: Total | None = None


class SecureSums:
    """Asks questions whose answers only their sum is seen of.

    Parameters
    ----------
    keys : SumKeys
        The coordinator's signing key, and the sites' public ones.
    folder : Path
        Where the number of the last sum is kept.
    """

    def __init__(self, config: FederationConfig, grid: SiteGrid, keys: SumKeys, folder: Path, watch: Watch) -> None:
        self._config, self._grid, self._keys, self._watch = config, grid, keys, watch
        self._numbers = SumNumbers(folder / FILE)
        self._said: set[str] = set()

    def ask(
        self,
        kind: Kind[Any, Any],
        body: Body,
        arrays: Arrays,
        parts: Collection[Part],
        sites: Collection[str],
        *,
        members: Mapping[str, Mapping[str, Any]],
        run: str,
        round: int,
        everyone: bool = False,
    ) -> Attempt:
        """One sum over ``sites``; over nobody, and without a message, where no part has three holders.

        Parameters
        ----------
        members : the sites' greetings, which say what each can contribute to
        round : of training; the sum's own number is another
        everyone : whether no site may drop out: then no sum over fewer is ever unmasked

        Raises
        ------
        UserError
            ``sum-too-few-sites``, ``sum-not-listed``.
        """
        if len(sites) < sites_min(self._config, parts):
            return Attempt(dict.fromkeys(sorted(sites), "missing"))
        join = Join.model_validate(
            {
                "question": kind.name,
                "body": body.model_dump_json(),
                "site_weights": {s: w for s, w in self._config.strategy.site_weights.items() if w != 1.0},
            }
        )
        lacking: dict[str, set[str]] = {}
        for left in reversed(range(LISTINGS)):
            attempt = Attempt(dict.fromkeys(sorted(sites), "missing"), lacking=lacking)
            held = {site: set(members[site]["holds"]) - lacking.get(site, set()) for site in sites}
            manifest = self._manifest(join, arrays, parts, held, run, everyone=everyone)
            if manifest is None:
                attempt.total = Total((), {}, ())
                return attempt
            found = self._summed(manifest, join, arrays, attempt, run=run, round=round, relist=left > 0)
            if WITHHELD not in attempt.states.values():
                break
        if found is not None:
            self._tell_withheld(found, sites_min(self._config, parts))
            values = assembled(parts, found.values, self._config.classes)
            attempt.total = Total(found.survivors, values, found.withheld, lacking)
            for site in attempt.states:
                if site in found.survivors:
                    attempt.states[site] = "trained"
        return attempt

    def must(
        self,
        kind: Kind[Any, Any],
        body: Body,
        arrays: Arrays,
        parts: Collection[Part],
        sites: Collection[str],
        *,
        members: Mapping[str, Mapping[str, Any]],
        run: str,
        round: int = 0,
        what: str,
        everyone: bool = False,
    ) -> Total:
        """A sum without which the run cannot go on; begun up to three times. ``everyone`` as in :meth:`ask`.

        Raises
        ------
        UserError
            ``sum-failed``.
        """
        least = sites_min(self._config, parts)
        if len(sites) < least:
            raise UserError(
                "sum-failed",
                f"{what}: only {len(sites)} sites take part, and with aggregation 'secagg' nothing is known of fewer "
                f"than {least}. With fewer genomic sites set memory.genomics: false, or agree on 'plain'.",
            )
        lost: dict[str, str] = {}
        for _ in range(ATTEMPTS):
            attempt = self.ask(
                kind, body, arrays, parts, sites, members=members, run=run, round=round, everyone=everyone
            )
            if attempt.total is not None:
                return attempt.total
            lost |= attempt.dropped
        told = "; ".join(f"{site} at {why}" for site, why in sorted(lost.items()))
        raise UserError(
            "sum-failed",
            f"{what}: too few sites stayed to the end of the secure sum, {ATTEMPTS} times ({told}). Look at those "
            "sites' logs, then start the server again.",
        )

    def _manifest(
        self,
        join: Join,
        arrays: Arrays,
        parts: Collection[Part],
        held: Mapping[str, Collection[str]],
        run: str,
        *,
        everyone: bool,
    ) -> Manifest | None:
        """The next sum's manifest, its number on disk; without the parts that fewer than three sites hold.

        ``held``: by site, the gates that it passes. None where no part is left.
        """
        participants = tuple(sorted(held))
        segments, needed = [], sites_min(self._config, parts)
        for part in parts:
            holders = None
            if part.gate is not None:
                holders = tuple(site for site in participants if part.gate in held[site])
                if len(holders) < needed:
                    self._tell(part.gate, len(holders), needed)
                    continue
            segments.append(part.segment(holders))
        if not segments:
            return None
        number = self._numbers.last(run) + 1
        self._numbers.store(run, number)
        model = question_digest(join.question, join.body, join.site_weights, arrays, agreed_noise(self._config))
        least = len(participants) if everyone else 0
        threshold = max(least_threshold(len(participants)), self._config.aggregation.threshold or 0, least)
        if threshold > len(participants):
            raise UserError(
                "sum-too-few-sites",
                f"A secure sum over {len(participants)} sites cannot begin: aggregation.threshold is {threshold}.",
            )
        return Manifest(run, number, model, participants, threshold, tuple(segments))

    def _summed(
        self, manifest: Manifest, join: Join, arrays: Arrays, attempt: Attempt, *, run: str, round: int, relist: bool
    ) -> Sum | None:
        """One manifest's sum; None once too few are left, or, with ``relist``, where a site lacks what it is in for."""
        signed = manifest.signed(self._keys.identity)
        try:
            state, out = aggregator.begin(signed, self._keys.peers().identities, self._keys.identity)
        except SecAggError as problem:
            raise UserError(
                "sum-not-listed",
                f"A secure sum cannot begin: {problem}. The consortium's allow-list must name every member's signing "
                "key.",
            ) from None
        for kind in SUM_STEPS:
            body = join if kind is JOIN else _FIELDS[kind.name]
            wait_s = self._config.rounds.deadline_s if kind is JOIN else self._config.aggregation.step_deadline_s
            outgoing = []
            for message, sites in _alike(out).items():
                nodes = [self._grid.node_of(site) for site in sites]
                step = {SECAGG: {INCOMING[kind.name]: np.frombuffer(message, np.uint8)}}
                content = {**(arrays if kind is JOIN else {}), **step}
                outgoing += messages.ask_each(kind, body, nodes, run=run, round=round, arrays=content)
            for reply in self._grid.send_and_receive(outgoing, timeout=wait_s):
                site = self._grid.sites[reply.metadata.src_node_id]
                state = self._take(state, kind, site, reply, attempt, run, round)
            if relist and kind is JOIN and WITHHELD in attempt.states.values():
                return None
            for site in state.missing:
                attempt.dropped.setdefault(site, f"step '{kind.name}': {_why(attempt.states[site])}")
            try:
                if kind is SUM_STEPS[-1]:
                    return aggregator.finish(state)
                state, out = aggregator.close(state)
            except SecAggError as problem:
                attempt.dropped.setdefault(problem.site or "the sum", f"step '{kind.name}': {problem.code}")
                return None
        return None

    def _take(
        self, state: Collecting, kind: Kind[Any, Any], site: str, reply: Any, attempt: Attempt, run: str, round: int
    ) -> Collecting:
        """A site's reply into the state; one that cannot be used is as if it had not come."""
        if reply.has_error():
            attempt.states[site] = f"refused:{messages.site_code(reply)}"
            return state
        try:
            parcel = messages.open_reply(reply, kind, site, run=run, round=round)
            found = parcel.arrays.get(SECAGG, {})
            if kind is JOIN and parcel.body.withholds:
                self._without(site, parcel.body.withholds, attempt)
                return state
            if set(found) != {OUTGOING[kind.name]}:
                raise UserError("message-schema", f"site {site}: '{kind.name}' came without '{OUTGOING[kind.name]}'.")
            return aggregator.receive(state, found[OUTGOING[kind.name]].tobytes())
        except UserError as mistake:
            attempt.states[site] = f"refused:{mistake.code}"
        except SecAggError:
            attempt.states[site] = "refused:sum-refused"
        return state

    def _without(self, site: str, gates: list[str], attempt: Attempt) -> None:
        """A site that lacks what the sum lists it for; said once a run for the same."""
        attempt.states[site] = WITHHELD
        attempt.lacking.setdefault(site, set()).update(gates)
        told = ", ".join(sorted(gates))
        if f"{site} {told}" not in self._said:
            self._said.add(f"{site} {told}")
            self._watch.say(
                f"site {site} withholds {told}, where it finds too few patients: the sum is formed without its part.",
                "sum_withheld",
                level="warning",
            )

    def _tell_withheld(self, found: Sum, least: int) -> None:
        for name in found.withheld:
            self._watch.say(
                f"'{name}' was withheld: fewer than {least} of its holders stayed.", "sum_withheld",
                level="warning",
            )  # fmt: skip

    def _tell(self, gate: str, holders: int, least: int) -> None:
        """Once a run for each gate."""
        if gate not in self._said:
            self._said.add(gate)
            self._watch.say(
                f"Sums of '{gate}' are left out: {holders} sites have them, at least {least} must.",
                "sum_left_out",
                level="warning",
            )


def _alike(out: Outgoing) -> dict[bytes, list[str]]:
    """The sites by what they are sent, so that a content that several get is built once."""
    found: dict[bytes, list[str]] = {}
    for site, message in out.items():
        found.setdefault(message, []).append(site)
    return found


def _why(state: str) -> str:
    return state.removeprefix("refused:") if state.startswith("refused:") else "no answer in time"
