"""How the coordinator aggregates: Flower's FedAvg, FedProx or FedAdam over a stream of replies.

Replies are consumed as they arrive, each clipped to a public norm (aggregation.py). A mean is one running sum, so that
the server holds two models whatever the number of sites; a robust middle holds all of them. Sites count equally, or by
public weights; never by an exact patient count. The genomic branch is averaged over the sites that have genomics.
Beside the weights, each reply brings memory statistics, which are small and bounded by site (site_sums.py), and score
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

from momkd_fl.config.aggregation import Aggregation
from momkd_fl.config.federation import Strategy as StrategyConfig
from momkd_fl.errors import UserError
from momkd_fl.federation import messages
from momkd_fl.federation.aggregation import Influence, new_aggregate
from momkd_fl.federation.messages import TRAIN, Arrays, Parcel, Train, TrainReply
from momkd_fl.federation.site_sums import combined

Shapes = Mapping[str, tuple[int, ...]]
Flat = dict[str, NDArray[np.float64]]


@dataclass
class Contributions:
    """What the sites of one round sent, summed; and who they were.

    ``states`` maps site to ``trained``, ``missing`` or ``refused:<code>``; ``influence`` is for the coordinator alone.
    Of a secure sum there is nothing by site but ``states``: ``bodies`` and ``influence`` are empty,
    ``losses_by_class`` and ``means`` are given.
    """

    states: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, TrainReply] = field(default_factory=dict)
    statistics: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    influence: dict[str, Influence] = field(default_factory=dict)
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
        aggregation: Aggregation | None = None,
        clip_norm: float = math.inf,
        check: Callable[[str, Parcel[TrainReply]], None] = lambda site, parcel: None,
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
        aggregation : Aggregation, optional
            Plain or robust, and how far one site counts.
        clip_norm : float
            Public norm that weight differences are clipped to.
        check : callable
            Called with (site, parcel) of a reply whose shapes are right; raises UserError to refuse it whole.
        """
        self.run, self.site_weights, self.reply_shapes = run, dict(site_weights), reply_shapes
        self.quorum, self.on_reply, self.released_in = quorum, on_reply, released_in
        self.aggregation, self.clip_norm, self.check = aggregation or Aggregation(), clip_norm, check
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
        if self._summed is not None:
            return self._of_sum()
        sizes = {branch: value.size for branch, value in self._weights.items()}
        aggregate = new_aggregate(self.aggregation, sizes, self.clip_norm)
        statistics: dict[str, Mapping[str, NDArray[np.float32]]] = {}
        for reply in replies:
            site = self.participants.get(reply.metadata.src_node_id)
            if site is None or self.contributions.states[site] != "missing":
                continue  # not asked, or answered already
            arrays = self._accept(site, reply, server_round)
            self.on_reply(site, self.contributions.states[site])
            if self.contributions.states[site] == "trained":
                aggregate.add(site, arrays.get("update", {}), self.site_weights[site])
                statistics[site] = arrays.get("statistics", {})
        seen, limits = self.contributions, self.aggregation
        seen.statistics = combined(statistics, limits.patients_max, robust=limits.kind == "robust")
        if len(seen.trained) < self.quorum:
            return None, None
        target = {branch: self._weights[branch] + step for branch, step in aggregate.steps().items()}
        seen.influence = aggregate.influence()
        return as_record(target), None

    def take_sum(self, seen: Contributions, update: Flat) -> None:
        """Instead of replies: the weighted sum of the differences over the sites that ``seen`` calls trained."""
        self.contributions, self._summed = seen, update

    def _of_sum(self) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The weights moved by a secure sum; a branch that was withheld stays."""
        assert self._summed is not None
        summed, self._summed = self._summed, None
        trained = self.contributions.trained
        if len(trained) < self.quorum:
            return None, None
        target: dict[str, NDArray[Any]] = dict(self._weights)
        for branch, total in summed.items():
            share = sum(self.site_weights[site] for site in trained if branch in self.reply_shapes(site)["update"])
            if share:
                target[branch] = self._weights[branch] + total / share
        return as_record(target), None

    def _accept(self, site: str, reply: Message, server_round: int) -> Arrays:
        """Check one reply whole and return its arrays; an unacceptable one changes nothing but the site's state."""
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
            self.check(site, parcel)
        except UserError as mistake:
            seen.states[site] = f"refused:{mistake.code}"
            seen.sentences.append(mistake.sentence)
            return {}
        seen.states[site] = "trained"
        seen.bodies[site] = parcel.body
        for name, value in parcel.arrays.get("scores", {}).items():
            seen.scores[name] = seen.scores.get(name, 0.0) + value.astype(np.float64)
        return parcel.arrays


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
