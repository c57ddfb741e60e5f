"""The grid of a simulation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from momkd_fl.federation.local import LocalGrid

pytestmark = pytest.mark.usefixtures("task")


def context() -> Context:
    return Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})


def app_that(changes: bool = False, fails: bool = False) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(request: Message, here: Context) -> Message:
        if fails:
            raise ValueError("patient 17 has no slides")
        seen = here.state.get("seen", ConfigRecord({"n": 0}))
        here.state["seen"] = ConfigRecord({"n": int(seen["n"]) + 1})
        value = request.content["w"].to_numpy_ndarrays()[0]
        if changes:
            request.content["w"] = ArrayRecord([np.zeros(1, np.float32)])
        content = RecordDict({"w": ArrayRecord([value + 1]), "seen": here.state["seen"]})
        return Message(content, reply_to=request)

    return app


def ask(grid: LocalGrid, sites: list[str], weights: ArrayRecord | None = None) -> list[Message]:
    weights = weights or ArrayRecord([np.arange(4, dtype=np.float32)])
    return [
        Message(RecordDict({"w": weights}), dst_node_id=grid.node_of(site), message_type="train", group_id="1")
        for site in sites
    ]


def test_sites_answer_in_order_and_keep_their_state() -> None:
    grid = LocalGrid({"a": (app_that(), context()), "b": (app_that(), context())})
    assert grid.online() == {"a", "b"} == {grid.sites[node] for node in grid.get_node_ids()}
    for number in (1, 2):
        replies = list(grid.send_and_receive(ask(grid, ["b", "a"])))
        assert [grid.sites[reply.metadata.src_node_id] for reply in replies] == ["b", "a"]
        assert [reply.content["seen"]["n"] for reply in replies] == [number, number]
        np.testing.assert_array_equal(replies[0].content["w"].to_numpy_ndarrays()[0], [1, 2, 3, 4])


def test_neither_side_can_change_what_the_other_holds() -> None:
    grid = LocalGrid({"a": (app_that(changes=True), context()), "b": (app_that(), context())})
    messages = ask(grid, ["a", "b"])
    first, second = grid.send_and_receive(messages)
    np.testing.assert_array_equal(messages[0].content["w"].to_numpy_ndarrays()[0], [0, 1, 2, 3])
    np.testing.assert_array_equal(second.content["w"].to_numpy_ndarrays()[0], [1, 2, 3, 4])
    first.content["seen"]["n"] = 99
    (again,) = grid.send_and_receive(ask(grid, ["a"]))
    assert again.content["seen"]["n"] == 2


def test_a_bug_at_one_site_is_its_own_and_says_no_more_than_its_kind() -> None:
    grid = LocalGrid({"a": (app_that(fails=True), context()), "b": (app_that(), context())})
    bad, good = grid.send_and_receive(ask(grid, ["a", "b"]))
    assert bad.has_error()
    assert "patient" not in bad.error.reason
    assert good.has_content()


def test_sites_are_asked_as_their_replies_are_wanted() -> None:
    grid = LocalGrid({"a": (app_that(), context()), "b": (app_that(), context())})
    replies: Iterator[Message] = iter(grid.send_and_receive(ask(grid, ["a", "b"])))
    next(replies)
    grid.stop()
    assert list(replies) == []
