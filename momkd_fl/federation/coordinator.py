"""One run from the coordinator's side, over any grid: gather, enrol, initialise, rounds, select, evaluate, farewell."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.evaluation.results import Disagreement
from momkd_fl.federation import anchors
from momkd_fl.federation import state as states
from momkd_fl.federation.aggregation import clip_bound
from momkd_fl.federation.anchors import AnchoringGrid, Anchors
from momkd_fl.federation.arrivals import check_train
from momkd_fl.federation.closing import Chosen, Closing, Evaluations
from momkd_fl.federation.dialogue import SiteGrid
from momkd_fl.federation.enrol import agree_panel, architecture_difference, call_roll, dismiss, send_plan, warned
from momkd_fl.federation.initialise import Start, initialise
from momkd_fl.federation.messages import SELECT, SHARED_SECTIONS, HelloReply, Parcel, Select, TrainReply
from momkd_fl.federation.plan import MODEL_FILE, SitePlan, save_model
from momkd_fl.federation.private_plan import must_be_useful, private_plan, released_in, slots_release
from momkd_fl.federation.rounds import Course, Traffic, run_rounds
from momkd_fl.federation.selection import learn_panel
from momkd_fl.federation.state import ServerState
from momkd_fl.federation.strategy import make_strategy, restore_optimiser
from momkd_fl.federation.student import Layout, initial_memory, initial_weights, layout_of, reply_shapes, shape_of
from momkd_fl.federation.sum_bounds import must_be_summable
from momkd_fl.federation.sum_keys import SumKeys
from momkd_fl.federation.sum_parts import select_parts
from momkd_fl.federation.sums import SecureSums
from momkd_fl.federation.vault import CLEAR, Vault
from momkd_fl.federation.watch import Watch
from momkd_fl.model.momkd import architecture_hash
from momkd_fl.secagg.manifest import HOLDERS_MIN

CHANGEABLE: Mapping[str, Any] = {
    **dict.fromkeys(("listen", "telemetry", "output_dir", "tls", "consortium", "signing_key", "seal"), True),
    "aggregation": {"step_deadline_s"},
    "rounds": {"quorum", "deadline_s", "gather_s"},
    "members": {"__all__": {"certificate", "config"}},
}
"""Sections and keys that a restarted run may have changed: how it is reached and watched, and how long it waits."""
CHECKPOINT_FILE = "checkpoint.safetensors"
REJOIN_S = 60.0
"""How long a restarted coordinator waits for all the sites it knew, before it goes on with a quorum."""


@dataclass
class Outcome:
    """A finished run: its state, what was selected, and the sites' own evaluations (by split, by site).

    ``differing`` are the fields in which sites differ from the federation, whether that stopped them or not.
    ``held_out``: with secure sums, the score histogram of all sites that evaluate, together.
    """

    state: ServerState
    chosen: Chosen
    evaluations: dict[str, Evaluations]
    failures: list[tuple[str, str]]
    differing: list[Disagreement] = field(default_factory=list)
    held_out: states.Arrays = field(default_factory=dict)


class Coordinator:
    """The coordinator of one run.

    Parameters
    ----------
    config : FederationConfig
    grid : SiteGrid
        Over the network or in process.
    watch : Watch
    stop : threading.Event
        Ends the run in order when set.
    traffic : callable
        Bytes (sent, received) by site so far.
    keys : SumKeys, optional
        What secure sums are signed with; needed where the configuration asks for them.
    fresh : bool
        Start anew even where a checkpoint could be resumed; the old one is kept under another name.
    vault : Vault
        How checkpoint and model lie on disk.
    """

    def __init__(
        self,
        config: FederationConfig,
        grid: SiteGrid,
        watch: Watch,
        stop: threading.Event,
        traffic: Traffic,
        *,
        fresh: bool = False,
        keys: SumKeys | None = None,
        vault: Vault = CLEAR,
    ) -> None:
        self.config, self.watch, self.stop, self.traffic, self.vault = config, watch, stop, traffic, vault
        self.grid: SiteGrid = AnchoringGrid(grid, Anchors(config.output_dir / anchors.FILE))
        self.checkpoint = config.output_dir / CHECKPOINT_FILE
        self.secure: SecureSums | None = None
        if config.aggregation.kind == "secagg":
            must_be_summable(config)
            if keys is None:
                raise UserError("sum-keys-missing", "aggregation 'secagg' needs the coordinator's signing key.")
            self.secure = SecureSums(config, self.grid, keys, config.output_dir, watch)
        self.failures: list[tuple[str, str]] = []
        self.stopped: list[Disagreement] = []
        vault.check(config.output_dir)
        if fresh and vault.holds(self.checkpoint):
            old = self.checkpoint.with_suffix(f".{time.time_ns()}.old")
            shutil.move(vault.path(self.checkpoint), vault.path(old))

    def run(self) -> Outcome | None:
        """The whole run; None when the person stopped it (the checkpoint allows going on)."""
        must_be_useful(self.config)
        state = self._resumed()
        admitted = set(state.members) if state else set()
        if state is not None:
            self._gather(set(state.members), min(self.config.rounds.gather_s, REJOIN_S))
        else:
            self._gather(set(self.config.members), self.config.rounds.gather_s)
            if self.stop.is_set():
                return None
            try:
                state, admitted = self._begin()
            except UserError:
                if self.stop.is_set():  # whoever stopped the run asked no further site: none of them is at fault
                    return None
                raise
            states.save(self.checkpoint, state, self.vault)
        layout = self._layout(state)
        state = run_rounds(state, self._course(state, layout, admitted))
        if self.stop.is_set():
            return None
        closing = Closing(self.config, self.grid, self.watch, self.failures, self.secure)
        chosen = closing.choose(state)
        state = state.after(best=chosen.best)
        states.save(self.checkpoint, state, self.vault)
        self._admit(state, self.grid.online() - set(state.members))
        evaluations = closing.evaluate(state, chosen)
        differing = self.stopped + warned(self.config, state.members)
        outcome = Outcome(state, chosen, evaluations, self.failures, differing, closing.held_out)
        closing.farewell(state, chosen)
        self._keep_model(state, chosen)
        return outcome

    def _keep_model(self, state: ServerState, chosen: Chosen) -> None:
        """The model the sites were handed, in one file beside the report."""
        shared = self.config.model_dump(mode="json", include=set(SHARED_SECTIONS))
        plan = SitePlan(state.run, shared, state.panel, state.architecture, state.space)
        arrays = {"weights": chosen.best.weights, "memory": chosen.best.memory}
        path = self.config.output_dir / MODEL_FILE
        save_model(path, plan, arrays, chosen.threshold, chosen.calibration.to_list(), chosen.best.round, self.vault)

    def _resumed(self) -> ServerState | None:
        if not self.vault.holds(self.checkpoint):
            return None
        state = states.load(self.checkpoint, self.vault)
        if state.config_digest != config_digest(self.config):
            raise UserError(
                "resume-config-changed",
                f"{self.checkpoint} belongs to a run with another configuration. Restore that configuration to go "
                "on, or start anew with --fresh (the old checkpoint is kept).",
            )
        sentence = f"Resuming run {state.run} after round {state.round}."
        self.watch.say(sentence, "resumed", round=state.round, resumed=True)
        return state

    def _gather(self, listed: set[str], limit_s: float) -> None:
        """Wait for every listed site, and after ``limit_s`` seconds for a quorum only; say so meanwhile."""
        trainers = {site for site, member in self.config.members.items() if member.role == "train"}
        started, said = time.monotonic(), 0.0
        with self.watch.phase("gather"):
            while not self.stop.is_set():
                online = self.grid.online()
                for site in online:
                    if self.watch.states.get(site) != "online":
                        self.watch.site(site, "online")
                waited = time.monotonic() - started
                if online >= listed:
                    return
                if waited > limit_s and len(online & trainers) >= self.config.rounds.quorum:
                    return
                if waited >= said:
                    said = waited + 15.0
                    missing = ", ".join(sorted(listed - online))
                    self.watch.say(
                        f"Waiting for {missing} ({waited:.0f} s).",
                        "waiting_for_sites",
                        waited_s=round(waited, 1),
                        sites_online=len(online),
                        sites_expected=len(listed),
                    )
                self.stop.wait(0.05)

    def _begin(self) -> tuple[ServerState, set[str]]:
        run = f"{self.config.name}-{secrets.token_hex(4)}"
        with self.watch.phase("hello"):
            hellos = self._greet(run, self.grid.online(), {})
        panel = self._panel(run, hellos)
        shape = shape_of(self.config, panel)
        state = ServerState(
            run=run,
            round=0,
            config_digest=config_digest(self.config),
            architecture=architecture_hash(shape),
            panel=panel,
            members={},
            weights=initial_weights(self.config, shape),
            memory=initial_memory(self.config, shape),
            seed=self.config.seed,
        )
        with self.watch.phase("plan"):
            planned = self._plan(state, hellos)
        state = state.after(members={site: hellos[site].model_dump() for site in planned})
        trainers = [site for site in planned if hellos[site].role == "train"]
        if len(trainers) < self.config.rounds.quorum:
            raise UserError(
                "quorum-impossible",
                f"Only {len(trainers)} training sites can take part, rounds.quorum is {self.config.rounds.quorum}. "
                "The sentences above say why the others cannot.",
            )
        genomic = [site for site in trainers if hellos[site].genomics] if panel else []
        with self.watch.phase("init"):
            start = Start(self.config, self.grid, run, trainers, genomic, self.secure, state.members)
            state = initialise(state, start, lambda sentence: self.watch.say(sentence, "initialise"))
        return state.after(started=start.started), planned

    def _panel(self, run: str, hellos: dict[str, HelloReply]) -> tuple[str, ...]:
        """The panel named, or learnt from the training patients of the training sites alone."""
        panel = agree_panel(self.config, hellos)
        if not panel or self.config.genes.panel != "learnt":
            return panel
        asked = [site for site, hello in hellos.items() if hello.genomics and hello.role == "train"]
        with self.watch.phase("init"):
            return learn_panel(
                self.grid,
                self.config,
                run,
                asked,
                panel,
                lambda sentence: self.watch.say(sentence, "select_genes"),
                None if self.secure is None else lambda body: self._secure_selection(run, body, asked, hellos),
            )

    def _secure_selection(
        self, run: str, body: Select, sites: Collection[str], hellos: Mapping[str, HelloReply]
    ) -> dict[str, NDArray[np.float64]]:
        """The sums that a panel is learnt from, as one secure sum; every class must be held by three of the sites."""
        assert self.secure is not None
        parts = select_parts(self.config, len(body.candidates))
        members = {site: hello.model_dump() for site, hello in hellos.items()}
        total = self.secure.must(
            SELECT, body, {}, parts, sites, members=members, run=run, what="genes.panel 'learnt'", everyone=True
        )
        wanted = {part.source.removeprefix("statistics.") for part in parts}
        gates = {part.gate for part in parts}
        held = all(sum(gate in hellos[site].holds for site in sites) >= HOLDERS_MIN for gate in gates if gate)
        found = total.group("statistics")
        if not held or total.withheld or set(found) != wanted:
            raise UserError(
                "sum-failed",
                "genes.panel 'learnt': fewer than three sites have enough patients of every class with genes, so that "
                "no sum of them is seen. Name a panel in genes.panel, or set it to 'shared'.",
            )
        return found

    def _greet(
        self, run: str, sites: Collection[str], members: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, HelloReply]:
        roll = call_roll(self.grid, self.config, run, sites, members)
        self.stopped += [one for one in roll.differing if one.site in roll.refused]
        for sentence in roll.warnings:
            self.watch.say(f"Warning: {sentence}", "fingerprint_warning", level="warning")
        self._turn_away(run, roll.refused)
        return roll.accepted

    def _plan(self, state: ServerState, hellos: dict[str, HelloReply]) -> set[str]:
        answers = send_plan(self.grid, self.config, state.run, hellos, state.panel, state.architecture)
        self.stopped += [
            architecture_difference(site, state.architecture)
            for site, code in answers.refusals.items()
            if code == "architecture-mismatch"
        ]
        self._turn_away(
            state.run, {site: UserError(code, answers.sentences[site]) for site, code in answers.refusals.items()}
        )
        return set(answers.parcels)

    def _turn_away(self, run: str, refused: dict[str, UserError]) -> None:
        for site, mistake in refused.items():
            self.watch.site(site, "refused")
            self.watch.say(f"Refused: {mistake.sentence}", "site_refused", level="error", site=site, code=mistake.code)
            self.failures.append((site, mistake.code))
        dismiss(self.grid, run, refused)

    def _admit(self, state: ServerState, sites: Collection[str]) -> set[str]:
        """Greet sites that came late, or lost their state, and bring them up to date."""
        known = {site for site in sites if site not in self.failures_by_site()}
        hellos = self._greet(state.run, known, state.members)
        planned = self._plan(state, hellos)
        if planned and state.space:
            genomic = {site for site in planned if hellos[site].role == "train" and hellos[site].genomics}
            Start(self.config, self.grid, state.run, planned, genomic).tell_space(state.space)
        for site in planned:
            state.members[site] = hellos[site].model_dump()
            self.watch.site(site, "online")
        return planned

    def failures_by_site(self) -> set[str]:
        """Sites that were turned away for good."""
        return {site for site, _ in self.failures}

    def _layout(self, state: ServerState) -> Layout:
        return layout_of(shape_of(self.config, state.panel))

    def _course(self, state: ServerState, layout: Layout, admitted: set[str]) -> Course:
        config = self.config
        weights = {site: config.strategy.site_weights.get(site, 1.0) for site in config.members}
        sigma = private_plan(config).sigma

        def check(site: str, parcel: Parcel[TrainReply]) -> None:
            genomic = bool(state.panel) and state.members[site]["genomics"] and config.privacy.share == "all"
            noise = None if sigma is None else slots_release(config, sigma, genomic=genomic)
            check_train(site, parcel, config, noise)

        strategy = make_strategy(
            config.strategy,
            run=state.run,
            site_weights=weights,
            quorum=config.rounds.quorum if self.secure is None else HOLDERS_MIN,
            reply_shapes=lambda site: reply_shapes(config, layout, state.memory, state.members[site]["genomics"]),
            on_reply=self.watch.replied,
            released_in=lambda round: released_in(config, round),
            aggregation=config.aggregation,
            clip_norm=clip_bound(config, sum(layout.sizes.values())),
            check=check,
        )
        restore_optimiser(strategy, state.optimiser)
        return Course(
            config=config,
            grid=self.grid,
            strategy=strategy,
            watch=self.watch,
            stop=self.stop,
            admit=lambda sites: self._admit(state, sites),
            save=lambda now: states.save(self.checkpoint, now, self.vault),
            traffic=self.traffic,
            sums=self.secure,
            admitted=admitted,
        )


def config_digest(config: FederationConfig) -> str:
    """SHA-256 of the configuration without what may change between restarts (addresses, telemetry, waiting)."""
    kept = config.model_dump(mode="json", exclude=CHANGEABLE)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
