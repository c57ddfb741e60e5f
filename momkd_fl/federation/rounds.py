"""The rounds: wait for a quorum, send, aggregate in a stream, move the memory, keep the best, save, go on."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from flwr.app import ConfigRecord, Message

from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.federation.dialogue import SiteGrid
from momkd_fl.federation.memory_bank import Movement, move_slots, moving
from momkd_fl.federation.private_plan import least_counts, private_plan, slots_release
from momkd_fl.federation.state import Arrays, Best, RoundRecord, ServerState
from momkd_fl.federation.strategy import (
    Contributions,
    MemoryFedAvg,
    as_arrays,
    as_record,
    optimiser_state,
)
from momkd_fl.federation.summed_round import summed_round
from momkd_fl.federation.sums import SecureSums
from momkd_fl.federation.watch import Watch
from momkd_fl.secagg.manifest import HOLDERS_MIN

POLL_S = 0.1
SAY_EVERY_S = 15.0
PEERS_AWAITED = "refused:peers-not-heard"
PAUSE_S, PAUSE_MAX_S = 0.1, 60.0
"""Before a round is begun again; it doubles with every failure. Every greeting is a line in the sites' ledgers."""
INFLUENCE = "influence.jsonl"
"""In the coordinator's folder: what each site had to say in each round. A repeated round has its lines again."""


class Traffic(Protocol):
    """Bytes of payload by site, (sent, received), since the start of the process."""

    def __call__(self) -> dict[str, tuple[int, int]]: ...


@dataclass
class Course:
    """What the rounds need besides the state.

    ``admit(sites)`` greets sites that are not on the run's list yet and returns those now on it; ``save`` makes
    a state durable; ``stop`` ends the run after the current wait. With ``sums`` the coordinator sees sums alone.
    """

    config: FederationConfig
    grid: SiteGrid
    strategy: MemoryFedAvg
    watch: Watch
    stop: threading.Event
    admit: Callable[[Collection[str]], set[str]]
    save: Callable[[ServerState], None]
    traffic: Traffic
    sums: SecureSums | None = None
    admitted: set[str] = field(default_factory=set)


def run_rounds(state: ServerState, course: Course) -> ServerState:
    """Rounds until the configured number, or until patience or the person ends them.

    Raises
    ------
    UserError
        ``round-failed`` where a round has too few replies time after time; what was reached is saved.
    """
    failed = 0
    while state.round < course.config.rounds.count and not course.stop.is_set():
        if exhausted(state, course.config.rounds.patience):
            course.watch.say("Validation has not improved for rounds.patience rounds: stopping early.", "early_stop")
            break
        participants = wait_for_quorum(course, state.round + 1)
        if course.stop.is_set():
            break
        after = one_round(state, course, participants)
        if after is None:
            failed += 1
            _pause(course, state.round + 1, failed)
        else:
            state, failed = after, 0
            with course.watch.phase("checkpoint"):
                course.save(state)
    return state


def _pause(course: Course, number: int, failed: int) -> None:
    """Wait before a round is begun again: sites that refuse at once would be asked without end.

    Those that wait for the word of peers who are away may wait as long as it takes.
    """
    if course.stop.is_set():
        return
    awaited = PEERS_AWAITED in course.strategy.contributions.states.values()
    if failed > course.config.rounds.repeats and not awaited:
        raise UserError(
            "round-failed",
            f"Round {number} was begun {failed} times, and each time too few sites took part to its end. The lines "
            "above and the sites' own screens say why. Start the server again when that is mended: it goes on here.",
        )
    course.stop.wait(min(PAUSE_S * 2 ** (failed - 1), PAUSE_MAX_S))


def one_round(state: ServerState, course: Course, participants: set[str]) -> ServerState | None:
    """One round from ``state``; None when fewer than the quorum replied, and nothing has changed."""
    number, strategy, rounds = state.round + 1, course.strategy, course.config.rounds
    course.watch.round_started(number)
    before, started = course.traffic(), time.monotonic()
    strategy.memory = state.memory
    strategy.participants = {course.grid.node_of(site): site for site in sorted(participants)}
    asked = ConfigRecord({"learning-rate-share": learning_rate_share(number, rounds.count, course.config)})
    outgoing = strategy.configure_train(number, as_record(state.weights), asked, course.grid)
    absent = _trainers(course.config) - participants
    for site in participants:
        course.watch.site(site, "working")
    for site in absent & set(state.members):
        course.watch.site(site, "missing")
    with course.watch.phase("train"):
        replies: Iterable[Message] = ()
        if course.sums is None:
            replies = course.grid.send_and_receive(outgoing, timeout=rounds.deadline_s)
        else:
            strategy.take_sum(*summed_round(course.sums, course.config, state, list(outgoing), participants))
        record, _ = strategy.aggregate_train(number, replies)
    seen = strategy.contributions
    if course.stop.is_set():
        return None  # whoever stopped the run waited for nobody: no site is late
    _report_absent(course, seen)
    seen.states |= dict.fromkeys(absent, "missing")
    if course.sums is not None:
        for site in seen.trained:
            course.watch.replied(site, "trained")
    if record is None:
        course.watch.metrics.round_ended("below_quorum")
        found = f"{len(seen.trained)} replies, quorum {rounds.quorum}"
        if course.sums is not None:
            found = "too few sites stayed to the end of the secure sum"
        course.watch.say(
            f"Round {number}: {found}. Nothing was changed; the round will be repeated.",
            "round_below_quorum",
            level="warning",
            round=number,
            replies=len(seen.trained),
            quorum=rounds.quorum,
        )
        return None
    memory, movement, released = _move(state, seen, course.config)
    best, loss, auroc = _select(state, seen) if course.config.privacy.measured else (None, None, None)
    now = course.traffic()
    traffic = {site: (now[site][0] - before[site][0], now[site][1] - before[site][1]) for site in now}
    log_influence(course.config.output_dir / INFLUENCE, state.run, number, seen)
    entry = _record(number, time.monotonic() - started, seen, movement, loss, auroc, course.watch, traffic)
    course.watch.round_ended(entry, traffic)
    return state.after(
        round=number,
        weights=as_arrays(record),
        memory=memory,
        released=released,
        optimiser=optimiser_state(strategy),
        history=(*state.history, entry),
        best=best,
    )


def log_influence(path: Path, run: str, number: int, seen: Contributions) -> None:
    """A line for each site of the round: norm of its weight difference, clip factor, share of the step."""
    lines = [
        json.dumps({"run": run, "round": number, "site": site, **dataclasses.asdict(one)})
        for site, one in seen.influence.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def wait_for_quorum(course: Course, number: int) -> set[str]:
    """Training sites that are online and admitted, once they are a quorum; says so while it waits.

    Sites that came late are greeted here, those that only evaluate too.
    """
    trainers, quorum = _trainers(course.config), least_sites(course.config)
    started, said = time.monotonic(), 0.0
    while not course.stop.is_set():
        online = course.grid.online()
        if online - course.admitted:
            course.admitted |= course.admit(online - course.admitted)
        ready = online & course.admitted & trainers
        if len(ready) >= quorum:
            return ready
        waited = time.monotonic() - started
        if waited >= said:
            said = waited + SAY_EVERY_S
            course.watch.say(
                f"Round {number} waits for sites: {len(ready)} online, quorum {quorum}, for {waited:.0f} s.",
                "waiting_for_sites",
                round=number,
                sites_online=len(ready),
                waited_s=round(waited, 1),
            )
        course.stop.wait(POLL_S)
    return set()


def least_sites(config: FederationConfig) -> int:
    """Fewest training sites with which a round begins."""
    if config.aggregation.kind != "secagg":
        return config.rounds.quorum
    return max(config.rounds.quorum, HOLDERS_MIN, config.privacy.noise_shares + 1, config.aggregation.threshold or 0)


def exhausted(state: ServerState, patience: int | None) -> bool:
    """Whether the last ``patience`` validated states were all worse than the best."""
    return patience is not None and state.best is not None and state.round - 1 - state.best.round >= patience


def learning_rate_share(number: int, count: int, config: FederationConfig) -> float:
    """Round ``number``'s share of the learning rate, of ``count``: from 1 to ``learning_rate_end`` by half a cosine."""
    end = config.training.learning_rate_end
    return end + (1.0 - end) * (1.0 + math.cos(math.pi * (number - 1) / max(count - 1, 1))) / 2


def better(best: Best | None, now: Best) -> Best:
    """The one whose validation patients are ranked better (AUROC of the summed histogram); of equals, the lower loss.

    Ranking, because with class-balanced training the loss is lowest before the student has learnt to be confident:
    selected by loss, runs on rare classes stopped at their first round.
    """
    if best is None:
        return now

    def rank(one: Best) -> tuple[float, float]:
        return ScoreHistogram.from_arrays(one.scores).auroc(
            minimum=1
        ) or 0.0, -math.inf if one.loss is None else -one.loss

    return now if rank(now) > rank(best) else best


def balanced_loss(loss_sums: np.ndarray, scores: Arrays) -> float | None:
    """Class-balanced mean log loss from sums per class (C,) and the histograms' counts; None where a class lacks."""
    counts = ScoreHistogram.from_arrays(scores).class_counts()
    return float((loss_sums / counts).mean()) if (counts > 0).all() else None


def _trainers(config: FederationConfig) -> set[str]:
    return {site for site, member in config.members.items() if member.role == "train"}


def _move(state: ServerState, seen: Contributions, config: FederationConfig) -> tuple[Arrays, Movement, Arrays]:
    """The memory after the round, how it moved, and which slots any round has moved."""
    sums = {name.removeprefix("sums."): value for name, value in seen.statistics.items() if name.startswith("sums.")}
    counts = {name.removeprefix("counts."): v for name, v in seen.statistics.items() if name.startswith("counts.")}
    if "slots" not in state.memory or not sums:
        return state.memory, Movement(0.0, 0.0, 0.0, 0.0), state.released
    memory = config.memory
    frozen = memory.mode in ("frozen", "gradient") or memory.source == "random"
    least = _least_counts(state, seen, config)
    slots, movement = move_slots(
        state.memory["slots"],
        sums,
        counts,
        momentum=1.0 if frozen else memory.momentum,
        genomic_weight=memory.genomic_weight,
        min_count=least,
    )
    moved = {f"slots_{each}": moving(sums, counts, each, least) & (not frozen) for each in sums}
    moved["slots"] = np.any(list(moved.values()), axis=0)
    ever = {name: now | state.released.get(name, np.zeros_like(now)).astype(bool) for name, now in moved.items()}
    return {**state.memory, "slots": slots}, movement, {**state.released, **ever}


def _least_counts(state: ServerState, seen: Contributions, config: FederationConfig) -> float | dict[str, float]:
    """Summed count from which a slot moves: as configured, or over the noise of the sites that released."""
    sigma = private_plan(config).sigma
    if sigma is None:
        return config.memory.min_count
    alone = config.privacy.share == "memory"
    genomic = [bool(state.panel) and state.members[site]["genomics"] and not alone for site in seen.trained]
    return least_counts(config, [slots_release(config, sigma, genomic=each) for each in genomic])


def _select(state: ServerState, seen: Contributions) -> tuple[Best | None, float | None, float | None]:
    """Validation of the state this round started from; it is kept where it is the best so far."""
    if not seen.scores:
        return state.best, None, None  # withheld: fewer than three sites have every class
    loss = balanced_loss(seen.loss_sum, seen.scores)
    auroc = ScoreHistogram.from_arrays(seen.scores).auroc(minimum=1)
    if loss is None:
        return state.best, loss, auroc
    scores = {name: value.copy() for name, value in seen.scores.items()}
    now = Best(state.round, loss, state.weights, state.memory, scores)
    return better(state.best, now), loss, auroc


def _report_absent(course: Course, seen: Contributions) -> None:
    for sentence in seen.sentences:
        course.watch.say(sentence, "reply_refused", level="warning")
    for site, state in seen.states.items():
        if state == "missing":
            course.watch.site(site, "late" if site in course.grid.online() else "missing")
        elif state == "refused:plan-missing":
            course.admitted.discard(site)
            course.watch.say(f"site {site} has lost its state of this run; it will be greeted again.", "state_lost")
        elif state == PEERS_AWAITED:
            course.admitted.discard(site)
            course.watch.say(
                f"site {site} has not heard from enough other sites; it, and they, will be greeted again.",
                "peers_awaited",
            )
        elif state.startswith("refused:"):
            course.watch.say(f"site {site} refused the round ({state.removeprefix('refused:')}).", "round_refused")


def _record(
    number: int,
    seconds: float,
    seen: Contributions,
    movement: Movement,
    loss: float | None,
    auroc: float | None,
    watch: Watch,
    traffic: dict[str, tuple[int, int]],
) -> RoundRecord:
    by_phase = {f"site.{name}": value for name, value in seen.mean("seconds").items()}
    return RoundRecord(
        round=number,
        seconds=seconds,
        seconds_by_phase={**watch.seconds, **by_phase},
        bytes_sent=sum(sent for sent, _ in traffic.values()),
        bytes_received=sum(received for _, received in traffic.values()),
        states=dict(seen.states),
        loss=loss,
        auroc=auroc,
        slot_movement_rad=movement.slot_movement_rad,
        moved_share=movement.moved_share,
        effective_slots=movement.effective_slots,
        slot_cosine=movement.slot_cosine,
        effective_patches=seen.mean("monitors").get("effective_patches"),
        losses=seen.mean("losses"),
    )
