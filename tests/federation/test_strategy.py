"""Aggregation over hand-made replies: means by hand, refusals that leave no trace, memory that does not grow."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from momkd_fl.config.aggregation import Aggregation
from momkd_fl.config.federation import Strategy
from momkd_fl.errors import UserError
from momkd_fl.federation.answering import answer
from momkd_fl.federation.messages import (
    TRAIN,
    Arrays,
    Parcel,
    TrainReply,
    open_request,
    refuse,
)
from momkd_fl.federation.strategy import (
    MemoryFedAdam,
    MemoryFedAvg,
    MemoryFedProx,
    as_arrays,
    as_record,
    make_strategy,
    optimiser_state,
    restore_optimiser,
)

pytestmark = pytest.mark.usefixtures("task")

RUN = "run-1"
GENOMIC = {"north", "south"}
NODES = {11: "north", 12: "south", 13: "west", 14: "east"}
SIZES = {"histology": 4, "genomics": 3}
SLOTS = (2, 2, 3)
ETA, BETA_1, BETA_2, TAU = 0.1, 0.9, 0.99, 1e-3
NAMES = ("fedavg", "fedprox", "fedadam")


class Nodes:
    """The node ids of a federation, and nothing else of a grid."""

    def get_node_ids(self) -> list[int]:
        return list(NODES)


def shapes_of(site: str) -> dict[str, dict[str, tuple[int, ...]]]:
    modalities = ["histology", "genomics"] if site in GENOMIC else ["histology"]
    return {
        "update": {branch: (SIZES[branch],) for branch in modalities},
        "scores": {"histogram": (2, 5)},
        "statistics": {f"sums.{m}": SLOTS for m in modalities} | {f"counts.{m}": SLOTS[:2] for m in modalities},
    }


def make(name: str = "fedavg", *, sites: Iterable[str] = NODES.values(), **ours: Any) -> MemoryFedAvg:
    config = Strategy(name=name, server_learning_rate=ETA, proximal_mu=0.25)
    options = {"run": RUN, "site_weights": dict.fromkeys(NODES.values(), 1.0), "reply_shapes": shapes_of}
    strategy = make_strategy(config, **(options | ours))
    strategy.participants = {node: site for node, site in NODES.items() if site in set(sites)}
    strategy.memory = {"slots": np.full(SLOTS, 0.5, np.float32)}
    return strategy


def start_weights() -> dict[str, NDArray[np.float32]]:
    return {branch: np.linspace(-1, 1, size).astype(np.float32) for branch, size in SIZES.items()}


def contribution(site: str, seed: int = 0) -> Arrays:
    random = np.random.default_rng([seed, *site.encode()])
    return {
        group: {name: random.uniform(0.1, 1.0, shape).astype(np.float32) for name, shape in members.items()}
        for group, members in shapes_of(site).items()
    }


def body_of(site: str) -> TrainReply:
    return TrainReply(seconds={"fit": 1.0}, losses={"task": 0.5}, loss_sum=[float(len(site)), 1.0], monitors={})


def parcel_for(request: Message, **changes: Any) -> Parcel[Any]:
    opened = open_request(request, TRAIN)
    return Parcel(**({"kind": "train", "run": opened.run, "round": opened.round, "body": None, "arrays": {}} | changes))


class Round:
    """The requests of one round, by site, and replies made to them."""

    def __init__(
        self, strategy: MemoryFedAvg, number: int = 1, weights: dict[str, NDArray[np.float32]] | None = None
    ) -> None:
        self.strategy, self.number = strategy, number
        self.weights = start_weights() if weights is None else weights
        sent = list(strategy.configure_train(number, as_record(self.weights), ConfigRecord(), Nodes()))
        self.requests = {strategy.participants[message.metadata.dst_node_id]: message for message in sent}

    def reply(self, site: str, arrays: Arrays | None = None, **parcel: Any) -> Message:
        request = self.requests[site]
        sent = contribution(site) if arrays is None else arrays
        return answer(TRAIN, request, parcel_for(request, **parcel), body_of(site), sent)

    def replies(self) -> list[Message]:
        return [self.reply(site) for site in self.requests]

    def end(self, replies: Iterable[Message] | None = None) -> dict[str, NDArray[np.float32]] | None:
        record, metrics = self.strategy.aggregate_train(self.number, self.replies() if replies is None else replies)
        assert metrics is None
        return None if record is None else as_arrays(record)


def mean_update(branch: str, sites: Iterable[str], weights: dict[str, float] | None = None) -> NDArray[np.float64]:
    held = [site for site in sites if branch == "histology" or site in GENOMIC]
    return np.average(
        [contribution(site)["update"][branch].astype(np.float64) for site in held],
        axis=0,
        weights=[(weights or {}).get(site, 1.0) for site in held],
    )


def trace(strategy: MemoryFedAvg) -> dict[str, Any]:
    """All that a round leaves at the strategy, except the sites' states and what was said of them."""
    seen = strategy.contributions
    return {
        "statistics": {name: value.tobytes() for name, value in seen.statistics.items()},
        "scores": {name: value.tobytes() for name, value in seen.scores.items()},
        "bodies": dict(seen.bodies),
        "influence": dict(seen.influence),
        "optimiser": {name: value.tobytes() for name, value in optimiser_state(strategy).items()},
    }


@pytest.mark.parametrize(
    ("name", "ours", "flower"),
    [("fedavg", MemoryFedAvg, FedAvg), ("fedprox", MemoryFedProx, FedProx), ("fedadam", MemoryFedAdam, FedAdam)],
)
def test_configuration_names_the_strategy(name: str, ours: type, flower: type) -> None:
    strategy = make(name, quorum=3)
    assert type(strategy) is ours
    assert isinstance(strategy, flower)
    assert isinstance(strategy, MemoryFedAvg)
    assert (strategy.run, strategy.quorum) == (RUN, 3)


@pytest.mark.parametrize(("name", "mu"), [("fedavg", 0.0), ("fedprox", 0.25), ("fedadam", 0.0)])
def test_one_message_to_each_participant(name: str, mu: float) -> None:
    strategy = make(name, sites=["north", "west"])
    current = Round(strategy, 4)
    assert set(current.requests) == {"north", "west"}
    for site, request in current.requests.items():
        assert NODES[request.metadata.dst_node_id] == site
        parcel = open_request(request, TRAIN)
        assert (parcel.run, parcel.round, parcel.body.proximal_mu) == (RUN, 4, mu)
        assert set(parcel.arrays) == {"weights", "memory"}
        for branch, value in start_weights().items():
            np.testing.assert_array_equal(parcel.arrays["weights"][branch], value)
        np.testing.assert_array_equal(parcel.arrays["memory"]["slots"], strategy.memory["slots"])
    assert strategy.contributions.states == {"north": "missing", "west": "missing"}


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_mean_of_the_updates(name: str) -> None:
    found = Round(make(name)).end()
    for branch, value in start_weights().items():
        np.testing.assert_allclose(found[branch], value + mean_update(branch, NODES.values()), rtol=1e-6)
        assert found[branch].dtype == np.float32


def test_public_weights() -> None:
    public = {"north": 3.0, "south": 1.0, "west": 0.5, "east": 0.0}
    found = Round(make(site_weights=public)).end()
    for branch, value in start_weights().items():
        np.testing.assert_allclose(found[branch], value + mean_update(branch, NODES.values(), public), rtol=1e-6)


@given(scale=st.floats(1e-3, 1e3))
def test_only_the_ratio_of_public_weights_counts(scale: float) -> None:
    public = {"north": 3.0, "south": 1.0, "west": 0.5, "east": 2.0}
    found = Round(make(site_weights=public)).end()
    scaled = Round(make(site_weights={site: scale * value for site, value in public.items()})).end()
    for branch in SIZES:
        np.testing.assert_allclose(scaled[branch], found[branch], rtol=1e-6)


def test_genomic_branch_is_the_mean_of_the_genomic_sites() -> None:
    everyone = Round(make()).end()
    genomic = Round(make(sites=GENOMIC)).end()
    np.testing.assert_array_equal(everyone["genomics"], genomic["genomics"])
    assert not np.array_equal(everyone["histology"], genomic["histology"])


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_branch_that_nobody_trained_keeps_its_value_bit_for_bit(name: str) -> None:
    found = Round(make(name, sites=["west", "east"])).end()
    assert found["genomics"].tobytes() == start_weights()["genomics"].tobytes()


@pytest.mark.parametrize("name", NAMES)
@given(order=st.permutations(list(NODES.values())))
def test_order_of_arrival_does_not_matter(name: str, order: list[str]) -> None:
    first, second = Round(make(name)), Round(make(name))
    expected = first.end()
    found = second.end([second.reply(site) for site in order])
    for branch in SIZES:
        np.testing.assert_allclose(found[branch], expected[branch], rtol=1e-6, atol=1e-7)
    a, b = first.strategy.contributions, second.strategy.contributions
    assert (a.bodies, a.states) == (b.bodies, b.states)
    for group in ("statistics", "scores"):
        for name_, value in getattr(a, group).items():
            np.testing.assert_allclose(getattr(b, group)[name_], value, rtol=1e-12)


def test_statistics_and_scores_add_up() -> None:
    strategy = make()
    Round(strategy).end()
    seen = strategy.contributions
    sent = {site: contribution(site) for site in NODES.values()}
    assert seen.trained == list(NODES.values())
    assert seen.bodies == {site: body_of(site) for site in NODES.values()}
    for group, held in (("statistics", seen.statistics), ("scores", seen.scores)):
        names = {name for arrays in sent.values() for name in arrays[group]}
        assert set(held) == names
        for name in names:
            expected = sum(arrays[group][name].astype(np.float64) for arrays in sent.values() if name in arrays[group])
            np.testing.assert_allclose(held[name], expected, rtol=1e-12)
            assert held[name].dtype == np.float64
    for site, arrays in sent.items():
        whole = np.concatenate(list(arrays["update"].values()))
        assert seen.influence[site].norm == pytest.approx(float(np.linalg.norm(whole)), rel=1e-6)


def adam(
    weights: dict[str, Any], mean: Callable[[str], Any], moments: dict[str, Any], number: int
) -> dict[str, NDArray[np.float64]]:
    """One step of FedAdam (Reddi et al. 2021) with Flower's bias correction; ``moments`` is brought up to date."""
    rate = ETA * np.sqrt(1 - BETA_2 ** (number + 1)) / (1 - BETA_1 ** (number + 1))
    found = {}
    for branch, value in weights.items():
        m, v = moments.get(branch, (0.0, 0.0))
        m = BETA_1 * m + (1 - BETA_1) * mean(branch)
        v = BETA_2 * v + (1 - BETA_2) * mean(branch) ** 2
        moments[branch] = m, v
        found[branch] = value + rate * m / (np.sqrt(v) + TAU)
    return found


def test_fedadam_by_hand_over_three_rounds() -> None:
    strategy, moments = make("fedadam"), {}
    weights, expected = start_weights(), start_weights()
    for number in (1, 2, 3):
        weights = Round(strategy, number, weights).end()
        expected = adam(expected, lambda branch: mean_update(branch, NODES.values()), moments, number)
        for branch in SIZES:
            np.testing.assert_allclose(weights[branch], expected[branch], rtol=1e-4)
    state = optimiser_state(strategy)
    assert set(state) == {"m_t.histology", "m_t.genomics", "v_t.histology", "v_t.genomics"}
    for branch, (m, v) in moments.items():
        np.testing.assert_allclose(state[f"m_t.{branch}"], m, rtol=1e-4)
        np.testing.assert_allclose(state[f"v_t.{branch}"], v, rtol=1e-4)


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_no_optimiser_no_state(name: str) -> None:
    strategy = make(name)
    Round(strategy).end()
    assert optimiser_state(strategy) == {}


def test_fedadam_goes_on_from_a_checkpoint_bit_for_bit() -> None:
    through = make("fedadam")
    after_one = Round(through, 1).end()
    saved = {name: value.copy() for name, value in optimiser_state(through).items()}
    expected = Round(through, 2, after_one).end()
    resumed = make("fedadam")
    restore_optimiser(resumed, saved)
    found = Round(resumed, 2, after_one).end()
    for branch in SIZES:
        assert found[branch].tobytes() == expected[branch].tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("replies", "quorum"), [(0, 1), (1, 2), (3, 4)])
def test_below_the_quorum_nothing_changes(name: str, replies: int, quorum: int) -> None:
    strategy = make(name, quorum=quorum)
    weights = Round(strategy, 1).end()
    before = optimiser_state(strategy)
    failed = Round(strategy, 2, weights)
    assert failed.end(failed.replies()[:replies]) is None
    after = optimiser_state(strategy)
    assert {key: value.tobytes() for key, value in after.items()} == {k: v.tobytes() for k, v in before.items()}
    assert list(strategy.contributions.states.values()).count("missing") == 4 - replies

    control = make(name, quorum=quorum)
    Round(control, 1).end()
    repeated, expected = Round(strategy, 2, weights).end(), Round(control, 2, weights).end()
    for branch in SIZES:
        assert repeated[branch].tobytes() == expected[branch].tobytes(), "the failed round left a trace"


@pytest.mark.parametrize("name", NAMES)
def test_quorum_counts_replies_that_could_be_used(name: str) -> None:
    strategy = make(name, quorum=3)
    current = Round(strategy)
    replies = [current.reply("north"), current.reply("west"), refuse(current.requests["south"], "bag-empty")]
    assert current.end(replies) is None
    assert strategy.contributions.states == {
        "north": "trained",
        "south": "refused:bag-empty",
        "west": "trained",
        "east": "missing",
    }


def changed(site: str, group: str, name: str, value: Any) -> Arrays:
    arrays = contribution(site)
    arrays[group] = {**arrays[group], name: np.asarray(value, np.float32)}
    return arrays


def without(site: str, group: str, name: str | None = None) -> Arrays:
    arrays = contribution(site)
    if name is None:
        del arrays[group]
    else:
        del arrays[group][name]
    return arrays


def with_body(reply: Message, old: str, new: str) -> Message:
    envelope = dict(reply.content["envelope"])
    envelope["body"] = envelope["body"].replace(old, new)
    reply.content["envelope"] = ConfigRecord(envelope)
    return reply


def with_protocol(reply: Message, protocol: int) -> Message:
    reply.content["envelope"] = ConfigRecord({**reply.content["envelope"], "protocol": protocol})
    return reply


def with_negative_shape(reply: Message) -> Message:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16)
    reply.content["update"] = ArrayRecord({"histology": Array("float32", (-1, -4), "numpy.ndarray", data)})
    return reply


NAN = np.full(4, np.nan)
MALFORMED: dict[str, tuple[str, Callable[[Round], Message]]] = {
    "nan update": ("message-not-finite", lambda r: r.reply("west", changed("west", "update", "histology", NAN))),
    "nan sums": (
        "message-not-finite",
        lambda r: r.reply("west", changed("west", "statistics", "sums.histology", np.full(SLOTS, np.inf))),
    ),
    "nan in the body": (
        "message-schema",
        lambda r: with_body(r.reply("west"), '"task":0.5', '"task":NaN'),
    ),
    "short update": ("message-shape", lambda r: r.reply("west", changed("west", "update", "histology", [1.0, 2.0]))),
    "broadcasting update": (
        "message-shape",
        lambda r: r.reply("west", changed("west", "update", "histology", np.ones((1, 4)))),
    ),
    "scalar update": ("message-shape", lambda r: r.reply("west", changed("west", "update", "histology", [1.0]))),
    "genomic update of a site without": (
        "message-shape",
        lambda r: r.reply("west", changed("west", "update", "genomics", np.ones(3))),
    ),
    "statistics of a modality it lacks": (
        "message-shape",
        lambda r: r.reply("west", changed("west", "statistics", "sums.genomics", np.ones(SLOTS))),
    ),
    "no update": ("message-shape", lambda r: r.reply("west", without("west", "update"))),
    "no scores": ("message-shape", lambda r: r.reply("west", without("west", "scores"))),
    "no counts": ("message-shape", lambda r: r.reply("west", without("west", "statistics", "counts.histology"))),
    "extra group": ("message-schema", lambda r: r.reply("west", contribution("west") | {"labels": {}})),
    "unknown field": ("message-schema", lambda r: with_body(r.reply("west"), '"losses"', '"ids":[],"losses"')),
    "not json": ("message-schema", lambda r: with_body(r.reply("west"), "{", "[")),
    "negative shape": ("message-schema", lambda r: with_negative_shape(r.reply("west"))),
    "empty": ("message-schema", lambda r: Message(RecordDict(), reply_to=r.requests["west"])),
    "protocol": ("message-version", lambda r: with_protocol(r.reply("west"), 2)),
    "last round's": ("message-replayed", lambda r: r.reply("west", round=r.number - 1)),
    "another run's": ("message-replayed", lambda r: r.reply("west", run="run-0")),
    "refused": ("bag-empty", lambda r: refuse(r.requests["west"], "bag-empty")),
    "transport": ("transport", lambda r: Message(Error(3, "patient p17 at /data"), reply_to=r.requests["west"])),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("place", [0, 3])
def test_reply_that_cannot_be_used_changes_nothing_but_its_state(name: str, case: str, place: int) -> None:
    code, malformed = MALFORMED[case]
    control = Round(make(name, sites=["north", "south", "east"]))
    expected = control.end()
    current = Round(make(name))
    replies = [current.reply(site) for site in ("north", "south", "east")]
    replies.insert(place, malformed(current))
    found = current.end(replies)
    seen = current.strategy.contributions
    assert seen.states.pop("west") == f"refused:{code}"
    assert seen.states == control.strategy.contributions.states
    assert trace(current.strategy) == trace(control.strategy)
    assert all("west" in sentence for sentence in seen.sentences)
    for branch in SIZES:
        assert found[branch].tobytes() == expected[branch].tobytes()


def test_group_that_was_not_asked_for_is_refused() -> None:
    """A group that a train reply may carry, but this run has no use for, of whatever shape."""

    def no_scores(site: str) -> dict[str, dict[str, tuple[int, ...]]]:
        return {group: members for group, members in shapes_of(site).items() if group != "scores"}

    current = Round(make(reply_shapes=no_scores))
    current.end([current.reply("north", without("north", "scores")), current.reply("west")])
    seen = current.strategy.contributions
    assert seen.states["north"] == "trained"
    assert seen.states["west"] == "refused:message-shape"
    assert seen.scores == {}


def test_reply_of_a_stranger_is_ignored() -> None:
    strategy = make(sites=["north", "south"])
    everyone = Round(make())
    current = Round(strategy)
    found = current.end([*current.replies(), everyone.reply("west")])
    expected = Round(make(sites=["north", "south"])).end()
    for branch in SIZES:
        assert found[branch].tobytes() == expected[branch].tobytes()
    assert set(strategy.contributions.states) == {"north", "south"}


def test_site_counts_once_however_often_it_replies() -> None:
    current = Round(make(sites=["north", "south"]))
    replies = [current.reply("north"), current.reply("south"), current.reply("north", contribution("north", seed=1))]
    found = current.end(replies)
    control = Round(make(sites=["north", "south"]))
    expected = control.end()
    assert trace(current.strategy) == trace(control.strategy)
    for branch in SIZES:
        assert found[branch].tobytes() == expected[branch].tobytes()


def test_each_reply_is_reported_as_it_arrives() -> None:
    told: list[tuple[str, str]] = []
    current = Round(make(on_reply=lambda site, state: told.append((site, state))))

    def arriving() -> Iterator[Message]:
        yield current.reply("west")
        assert told == [("west", "trained")]
        yield refuse(current.requests["north"], "bag-empty")
        assert told[1:] == [("north", "refused:bag-empty")]

    current.end(arriving())
    assert len(told) == 2


def test_next_round_starts_with_nothing() -> None:
    strategy = make()
    Round(strategy, 1).end()
    Round(strategy, 2)
    assert strategy.contributions.trained == []
    assert trace(strategy) == trace(make())


def large_round(sites: int, size: int) -> tuple[MemoryFedAvg, Iterator[Message], weakref.WeakSet[Message], list[int]]:
    """A round of ``sites`` sites with ``size`` weights whose replies are made when they are wanted."""
    names = {node: f"site-{node}" for node in range(sites)}
    strategy = make(
        site_weights=dict.fromkeys(names.values(), 1.0), reply_shapes=lambda site: {"update": {"histology": (size,)}}
    )
    strategy.participants = names
    weights = as_record({"histology": np.zeros(size, np.float32)})
    sent = iter(list(strategy.configure_train(1, weights, ConfigRecord(), Nodes())))
    alive: weakref.WeakSet[Message] = weakref.WeakSet()
    held: list[int] = []

    def arriving() -> Iterator[Message]:
        for number, request in enumerate(sent):
            gc.collect()
            held.append(len(alive))
            update = {"update": {"histology": np.full(size, number, np.float32)}}
            reply = answer(TRAIN, request, Parcel("train", RUN, 1, None, {}), body_of("west"), update)
            alive.add(reply)
            yield reply
            del reply

    return strategy, arriving(), alive, held


def test_replies_are_let_go_of_as_they_are_added() -> None:
    strategy, replies, _, held = large_round(8, 16)
    record, _ = strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(as_arrays(record)["histology"], np.full(16, 3.5), rtol=1e-6)
    assert len(held) == 8
    assert max(held) <= 1, "only the reply just added may still be held"


def test_memory_does_not_grow_with_the_sites() -> None:
    size, peaks = 250_000, {}
    for sites in (3, 12):
        strategy, replies, _, _ = large_round(sites, size)
        tracemalloc.start()
        try:
            strategy.aggregate_train(1, replies)
            peaks[sites] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peaks[12] - peaks[3] < 0.1 * 4 * size


def test_records_are_float32() -> None:
    held = {"histology": np.arange(4.0), "genomics": np.ones((2, 3), np.float16)}
    back = as_arrays(as_record(held))
    assert {value.dtype for value in back.values()} == {np.dtype(np.float32)}
    for name, value in held.items():
        np.testing.assert_array_equal(back[name], value)


def attacked(current: Round, factor: float) -> list[Message]:
    """The replies of all sites, west's update multiplied."""
    arrays = contribution("west")
    arrays["update"] = {"histology": (factor * arrays["update"]["histology"]).astype(np.float32)}
    return [current.reply(site, arrays if site == "west" else None) for site in NODES.values()]


ROBUST = Aggregation(kind="robust")
BOUND = float(np.median([np.linalg.norm(contribution(site)["update"]["histology"]) for site in NODES.values()]))


@pytest.mark.parametrize("kind", ["plain", "robust"])
def test_no_site_moves_the_model_by_more_than_the_clip(kind: str) -> None:
    """Of n sites, one moves a mean by at most twice the bound over n, and a middle by no more than the bound."""
    config = Aggregation(kind=kind)
    honest = Round(make(aggregation=config, clip_norm=BOUND)).end()
    current = Round(make(aggregation=config, clip_norm=BOUND))
    found = current.end(attacked(current, -1e6))
    moved = np.linalg.norm(found["histology"] - honest["histology"])
    assert moved <= (2 * BOUND / 4 if kind == "plain" else BOUND) * (1 + 1e-5)
    unclipped = Round(make())
    lost = unclipped.end(attacked(unclipped, -1e6))
    assert np.linalg.norm(lost["histology"] - honest["histology"]) > 1e4, "the control holds as well"


def test_a_bound_that_nobody_reaches_changes_no_bit() -> None:
    free, bounded = Round(make()).end(), Round(make(clip_norm=1e3)).end()
    for branch in SIZES:
        assert free[branch].tobytes() == bounded[branch].tobytes()


@pytest.mark.parametrize("config", [Aggregation(), ROBUST, Aggregation(kind="robust", rule="trimmed_mean")])
def test_the_influence_log_names_the_odd_one(config: Aggregation) -> None:
    current = Round(make(aggregation=config, clip_norm=BOUND))
    current.end(attacked(current, -100.0))
    seen = current.strategy.contributions.influence
    assert set(seen) == set(NODES.values())
    assert sum(one.share for one in seen.values()) == pytest.approx(1.0)
    assert seen["west"].norm == pytest.approx(
        100 * np.linalg.norm(contribution("west")["update"]["histology"]), rel=1e-5
    )
    assert seen["west"].clip_factor == pytest.approx(BOUND / seen["west"].norm, rel=1e-6)
    assert seen["west"].share <= 0.5
    assert all(one.clip_factor == min(1.0, BOUND / one.norm) for one in seen.values())
    if config.kind == "robust":
        assert seen["west"].share < min(one.share for site, one in seen.items() if site != "west")


def test_shares_of_a_mean_by_hand() -> None:
    current = Round(make(sites=["west", "east"], site_weights={"west": 3.0, "east": 1.0}))
    arrays = {site: contribution(site) for site in ("west", "east")}
    for site, length in (("west", 2.0), ("east", 6.0)):
        arrays[site]["update"] = {"histology": np.array([length, 0, 0, 0], np.float32)}
    current.end([current.reply(site, value) for site, value in arrays.items()])
    seen = current.strategy.contributions.influence
    assert (seen["west"].share, seen["east"].share) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("rule", ["geometric_median", "trimmed_mean"])
@pytest.mark.parametrize("order", [["east", "west", "south", "north"], ["west", "north", "east", "south"]])
def test_robust_order_of_arrival_changes_no_bit(rule: str, order: list[str]) -> None:
    first, second = (Round(make(aggregation=Aggregation(kind="robust", rule=rule))) for _ in range(2))
    expected, found = first.end(), second.end([second.reply(site) for site in order])
    for branch in SIZES:
        assert found[branch].tobytes() == expected[branch].tobytes()


def test_robust_keeps_a_branch_that_nobody_trained_and_ignores_a_weight_of_zero() -> None:
    found = Round(make(sites=["west", "east"], aggregation=ROBUST)).end()
    assert found["genomics"].tobytes() == start_weights()["genomics"].tobytes()
    weights = {"north": 1.0, "south": 1.0, "west": 1.0, "east": 0.0}
    one = Round(make(site_weights=weights, aggregation=ROBUST)).end()
    two = Round(make(sites=["north", "south", "west"], aggregation=ROBUST)).end()
    np.testing.assert_allclose(one["histology"], two["histology"], rtol=1e-6)


def test_robust_memory_sums_are_bounded_by_the_middle_site() -> None:
    current = Round(make(aggregation=ROBUST))
    replies = []
    for site in NODES.values():
        arrays = contribution(site)
        counts = np.full(SLOTS[:2], 1000.0 if site == "west" else 2.0, np.float32)
        arrays["statistics"]["counts.histology"] = counts
        replies.append(current.reply(site, arrays))
    current.end(replies)
    np.testing.assert_allclose(current.strategy.contributions.statistics["counts.histology"], 8.0)


def test_a_reply_that_the_check_refuses_leaves_no_trace() -> None:
    def check(site: str, parcel: Parcel[TrainReply]) -> None:
        if site == "west":
            raise UserError("message-value", f"site {site}: no.")

    current = Round(make(check=check))
    found = current.end()
    control = Round(make(sites=["north", "south", "east"]))
    expected = control.end()
    seen = current.strategy.contributions
    assert seen.states.pop("west") == "refused:message-value"
    assert trace(current.strategy) == trace(control.strategy)
    for branch in SIZES:
        assert found[branch].tobytes() == expected[branch].tobytes()
