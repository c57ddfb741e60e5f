"""How the coordinator aggregates: Flower's FedAvg, FedProx or FedAdam over a stream of replies.

Replies are consumed as they arrive and added to one running sum, so the server holds two models whatever the
number of sites. Sites count equally, or by public weights; never by an exact patient count. The genomic branch
is averaged over the sites that have genomics. Beside the weights, each reply brings memory statistics and score
histograms, which add up in the same stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from numpy.typing import NDArray

from momkd_fl.config.federation import Strategy as StrategyConfig
from momkd_fl.errors import UserError
from momkd_fl.federation import messages
from momkd_fl.federation.messages import TRAIN, Arrays, Train, TrainReply

Shapes = Mapping[str, tuple[int, ...]]
Flat = dict[str, NDArray[np.float64]]


@dataclass
class Contributions:
    """What the sites of one round sent, summed; and who they were.

    ``states`` maps site to ``trained``, ``missing`` or ``refused:<code>``. Of a secure sum there is nothing by site but
    that: ``bodies`` and ``update_norms`` are empty, ``losses_by_class`` and ``means`` are given.
    """

    states: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, TrainReply] = field(default_factory=dict)
    statistics: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    update_norms: dict[str, float] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    losses_by_class: NDArray[np.float64] | None = None
    means: Mapping[str, Mapping[str, float]] | None = None

    @property
    def loss_sum(self) -> NDArray[np.float64]:
        """Validation losses by class (C,), over the sites."""
        if self.losses_by_class is not None:
            return self.losses_by_class
        return np.asarray(np.sum([body.loss_sum for body in self.bodies.values()], axis=0), np.float64)

    def mean(self, kind: str) -> dict[str, float]:
        """Means over the sites that measured it, by name; ``kind``: ``losses``, ``monitors`` or ``seconds``."""
        if self.means is not None:
            return dict(self.means.get(kind, {}))
        told: list[Mapping[str, float]] = [getattr(body, kind) for body in self.bodies.values()]
        names = dict.fromkeys(name for one in told for name in one)
        return {name: float(np.mean([one[name] for one in told if name in one])) for name in names}

    @property
    def trained(self) -> list[str]:
        """Sites whose reply was used."""
        return [site for site, state in self.states.items() if state == "trained"]


class MemoryFedAvg(FedAvg):
    """FedAvg over weight differences, in a stream, with memory statistics beside the weights (see :meth:`serve`)."""

    def __init__(self, **flower: Any) -> None:
        super().__init__(**flower)
        self.memory: dict[str, NDArray[np.float32]] = {}
        self.participants: dict[int, str] = {}
        self.contributions = Contributions()
        self._weights: dict[str, NDArray[np.float32]] = {}
        self._summed: Flat | None = None

    def serve(
        self,
        *,
        run: str,
        site_weights: Mapping[str, float],
        reply_shapes: Callable[[str], Mapping[str, Shapes]],
        quorum: int = 1,
        on_reply: Callable[[str, str], None] = lambda site, state: None,
        released_in: Callable[[int], bool] = lambda round: True,
    ) -> MemoryFedAvg:
        """Take up a run; Flower's constructors pass on only what they know themselves.

        Parameters
        ----------
        run : str
            Identity of the run; replies of another run are refused.
        site_weights : mapping of str to float
            Public weight of each site.
        reply_shapes : callable
            ``(site) -> {group: {name: shape}}``: what the site's reply must consist of, exactly.
        quorum : int
            Fewest replies that make a round.
        on_reply : callable
            Called with (site, state) as each reply arrives, for whoever watches.
        released_in : callable
            Whether statistics come with the replies of a round; where not, a reply with some is refused.
        """
        self.run, self.site_weights, self.reply_shapes = run, dict(site_weights), reply_shapes
        self.quorum, self.on_reply, self.released_in = quorum, on_reply, released_in
        return self

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One ``train`` message per participating node, all with the same weights and memory."""
        self._weights = {branch: array.numpy() for branch, array in arrays.items()}
        body = Train(
            proximal_mu=float(config.get("proximal-mu", 0.0)),
            learning_rate_share=float(config.get("learning-rate-share", 1.0)),
        )
        content: Arrays = {"weights": self._weights, "memory": self.memory}
        self.contributions = Contributions(states=dict.fromkeys(self.participants.values(), "missing"))
        return messages.ask_each(TRAIN, body, self.participants, run=self.run, round=server_round, arrays=content)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up the replies as they come; None when fewer than the quorum could be used."""
        totals, shares = self._taken(server_round, replies)
        if len(self.contributions.trained) < self.quorum:
            return None, None
        target = {
            branch: self._weights[branch] + (total / shares[branch] if shares[branch] else 0.0)
            for branch, total in totals.items()
        }
        return as_record(target), None

    def take_sum(self, seen: Contributions, update: Flat) -> None:
        """Instead of replies: the weighted sum of the differences over the sites that ``seen`` calls trained."""
        self.contributions, self._summed = seen, update

    def _taken(self, server_round: int, replies: Iterable[Message]) -> tuple[Flat, dict[str, float]]:
        """Weighted sums of the differences by branch, and the weights in them."""
        totals = {branch: np.zeros(value.shape, np.float64) for branch, value in self._weights.items()}
        shares = dict.fromkeys(totals, 0.0)
        if self._summed is not None:
            summed, self._summed = self._summed, None
            for branch, total in summed.items():
                inside = [site for site in self.contributions.trained if branch in self.reply_shapes(site)["update"]]
                totals[branch], shares[branch] = total, sum(self.site_weights[site] for site in inside)
            return totals, shares
        for reply in replies:
            site = self.participants.get(reply.metadata.src_node_id)
            if site is None or self.contributions.states[site] != "missing":
                continue  # not asked, or answered already
            update = self._accept(site, reply, server_round)
            self.on_reply(site, self.contributions.states[site])
            for branch, difference in update.items():
                totals[branch] += np.float64(self.site_weights[site]) * difference  # not rounded before it is summed
                shares[branch] += self.site_weights[site]
        return totals, shares

    def _accept(self, site: str, reply: Message, server_round: int) -> dict[str, NDArray[np.float32]]:
        """Check one reply whole and add it; an unacceptable one changes nothing but the site's state."""
        seen = self.contributions
        if reply.has_error():
            seen.states[site] = f"refused:{messages.site_code(reply)}"
            return {}
        try:
            parcel = messages.open_reply(reply, TRAIN, site, run=self.run, round=server_round)
            expected = dict(self.reply_shapes(site))
            if not self.released_in(server_round):
                expected["statistics"] = {}
            for group in (*expected, *(name for name in parcel.arrays if name not in expected)):
                arrays = parcel.arrays.get(group, {})
                messages.expect_shapes(arrays, expected.get(group, {}), f"site {site}: {group}")
        except UserError as mistake:
            seen.states[site] = f"refused:{mistake.code}"
            seen.sentences.append(mistake.sentence)
            return {}
        seen.states[site] = "trained"
        seen.bodies[site] = parcel.body
        for sums, group in ((seen.statistics, "statistics"), (seen.scores, "scores")):
            for name, value in parcel.arrays.get(group, {}).items():
                sums[name] = sums.get(name, 0.0) + value.astype(np.float64)
        update = parcel.arrays.get("update", {})
        seen.update_norms[site] = math.sqrt(sum(float(np.vdot(part, part)) for part in update.values()))
        return update


class MemoryFedProx(FedProx, MemoryFedAvg):
    """FedProx: Flower puts the proximal term into the configuration, the sites apply it."""


class MemoryFedAdam(FedAdam, MemoryFedAvg):
    """FedAdam: Flower's server optimiser on the mean that :class:`MemoryFedAvg` forms."""


def make_strategy(config: StrategyConfig, **ours: Any) -> MemoryFedAvg:
    """The strategy that the configuration names (``ours``: arguments of :meth:`MemoryFedAvg.serve`)."""
    flower: dict[str, Any] = {
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
    }
    strategy: MemoryFedAvg
    if config.name == "fedprox":
        strategy = MemoryFedProx(proximal_mu=config.proximal_mu, **flower)
    elif config.name == "fedadam":
        strategy = MemoryFedAdam(eta=config.server_learning_rate, **flower)
    else:
        strategy = MemoryFedAvg(**flower)
    return strategy.serve(**ours)


def optimiser_state(strategy: MemoryFedAvg) -> dict[str, NDArray[np.float64]]:
    """The server optimiser's moments, for the checkpoint; empty for FedAvg and FedProx."""
    state: dict[str, NDArray[np.float64]] = {}
    for moment in ("m_t", "v_t"):
        for branch, value in (getattr(strategy, moment, None) or {}).items():
            state[f"{moment}.{branch}"] = np.asarray(value, np.float64)
    return state


def restore_optimiser(strategy: MemoryFedAvg, state: Mapping[str, NDArray[np.float64]]) -> None:
    """Put back what :func:`optimiser_state` returned."""
    for moment in ("m_t", "v_t"):
        found = {key.split(".", 1)[1]: value for key, value in state.items() if key.startswith(f"{moment}.")}
        if found:
            setattr(strategy, moment, {name: value.astype(np.float32) for name, value in found.items()})


def as_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Float32 arrays as one Flower record."""
    return ArrayRecord({name: Array(np.ascontiguousarray(value, dtype=np.float32)) for name, value in arrays.items()})


def as_arrays(record: ArrayRecord) -> dict[str, NDArray[np.float32]]:
    """The arrays of a record, float32."""
    return {name: array.numpy().astype(np.float32, copy=False) for name, array in record.items()}
