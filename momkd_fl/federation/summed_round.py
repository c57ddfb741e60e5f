"""A round of training by a secure sum: what the strategy takes instead of the sites' replies."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from flwr.app import Message

from momkd_fl.config.federation import FederationConfig
from momkd_fl.federation.messages import TRAIN, open_request
from momkd_fl.federation.private_plan import released_in
from momkd_fl.federation.state import ServerState
from momkd_fl.federation.strategy import Contributions, Flat
from momkd_fl.federation.student import layout_of, reply_shapes, shape_of
from momkd_fl.federation.sum_parts import mean_metrics, train_parts
from momkd_fl.federation.sums import Attempt, SecureSums


def summed_round(
    sums: SecureSums,
    config: FederationConfig,
    state: ServerState,
    outgoing: Sequence[Message],
    participants: Collection[str],
) -> tuple[Contributions, Flat]:
    """The round that ``outgoing`` asks for, as sums over the sites that stayed; and the sum of their differences.

    Parameters
    ----------
    outgoing : the strategy's messages, one a site, all with the same content
    """
    asked = open_request(outgoing[0], TRAIN)
    shapes = reply_shapes(config, layout_of(shape_of(config, state.panel)), state.memory, True)
    weights = [weight for weight in config.strategy.site_weights.values() if weight != 1.0]
    parts = train_parts(config, shapes, released=released_in(config, asked.round), weights=weights)
    attempt = sums.ask(
        TRAIN, asked.body, asked.arrays, parts, participants, members=state.members, run=asked.run, round=asked.round
    )
    return _contributions(attempt), {} if attempt.total is None else attempt.total.group("update")


def _contributions(attempt: Attempt) -> Contributions:
    """Who stayed, and sums; nothing else of any site."""
    seen = Contributions(states=attempt.states)
    lost = sorted(attempt.dropped.items())
    seen.sentences = [f"Secure sum: {site} dropped out at {why}." for site, why in lost]
    total = attempt.total
    if total is None:
        seen.means = {}
        return seen
    seen.statistics, seen.scores = total.group("statistics"), total.group("scores")
    seen.losses_by_class = total.values.get("loss_sum", np.zeros(0))
    seen.means = mean_metrics(total.values)
    return seen
