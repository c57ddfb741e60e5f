"""Messages: what is written is read, and anything else is refused whole, in words that name sender and field."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from benchmarks.right_messages import BODIES, SMALL, contents
from momkd_fl.errors import UserError
from momkd_fl.federation import messages
from momkd_fl.federation.answering import answer
from momkd_fl.federation.messages import (
    EVALUATE,
    FINISH,
    HELLO,
    INITIALISE,
    KINDS,
    PLAN,
    SITE_ERROR,
    TRAIN,
    Finish,
    Kind,
    TrainReply,
    ask,
    expect_shapes,
    open_reply,
    open_request,
    refuse,
)

pytestmark = pytest.mark.usefixtures("task")

NODE = 7


def request_of(kind: Kind[Any, Any], **changes: Any) -> Message:
    options = {"run": "run-1", "round": 3, "arrays": contents(kind.request_groups)}
    return ask(kind, BODIES[kind.name][0], NODE, **(options | changes))


def reply_of(kind: Kind[Any, Any], request: Message | None = None, groups: dict[str, Any] | None = None) -> Message:
    request = request or request_of(kind)
    groups = contents(kind.reply_groups) if groups is None else groups
    return answer(kind, request, open_request(request, kind), BODIES[kind.name][1], groups)


def open_train(reply: Message) -> Any:
    return open_reply(reply, TRAIN, "north", run="run-1", round=3)


@contextmanager
def refused(code: str, *words: str) -> Iterator[None]:
    with pytest.raises(UserError) as caught:
        yield
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.sentence


def with_envelope(reply: Message, **fields: Any) -> Message:
    """The reply with fields of its envelope replaced; None takes a field out."""
    kept = {**reply.content["envelope"], **fields}
    reply.content["envelope"] = ConfigRecord({name: value for name, value in kept.items() if value is not None})
    return reply


def with_body(reply: Message, **fields: Any) -> Message:
    body = json.loads(reply.content["envelope"]["body"]) | fields
    return with_envelope(reply, body=json.dumps(body))


def with_array(reply: Message, array: Array) -> Message:
    reply.content["update"] = ArrayRecord({"histology": array})
    return reply


def npy(shape: str, data: bytes = b"", *, descr: str = "'<f4'", fortran: bool = False) -> bytes:
    """A .npy file whose header says whatever it is told to."""
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def same(found: messages.Arrays, sent: messages.Arrays) -> None:
    assert {group: set(members) for group, members in found.items()} == {g: set(m) for g, m in sent.items()}
    for group, members in sent.items():
        for name, value in members.items():
            assert found[group][name].dtype == (np.uint8 if group == messages.SECAGG else np.float32)
            assert found[group][name].shape == value.shape
            assert found[group][name].tobytes() == value.tobytes()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_round_trip_of_every_kind(kind: Kind[Any, Any]) -> None:
    request = request_of(kind)
    assert request.metadata.dst_node_id == NODE
    assert request.metadata.message_type == kind.message_type
    parcel = open_request(request, kind)
    assert (parcel.kind, parcel.run, parcel.round, parcel.body) == (kind.name, "run-1", 3, BODIES[kind.name][0])
    same(parcel.arrays, contents(kind.request_groups))
    reply = reply_of(kind, request)
    assert reply.metadata.src_node_id == NODE
    back = open_reply(reply, kind, "north", run="run-1", round=3)
    assert (back.run, back.round, back.body) == ("run-1", 3, BODIES[kind.name][1])
    same(back.arrays, contents(kind.reply_groups))


def test_every_kind_is_here() -> None:
    assert {kind.name for kind in KINDS} == set(BODIES)
    assert len({kind.message_type for kind in KINDS}) == len(KINDS)


@given(value=arrays(np.float32, array_shapes(min_dims=1, max_dims=4, min_side=0), elements=st.floats(width=32)))
def test_any_finite_array_survives_bit_for_bit(value: np.ndarray) -> None:
    reply = reply_of(TRAIN, groups={"update": {"histology": value}})
    if np.isfinite(value).all():
        same(open_train(reply).arrays, {"update": {"histology": value}})
    else:
        with refused("message-not-finite", "site north", "update.histology"):
            open_train(reply)


def test_array_of_no_dimension_keeps_its_shape() -> None:
    value = np.array(2.5, np.float32)
    same(open_train(reply_of(TRAIN, groups={"statistics": {"total": value}})).arrays, {"statistics": {"total": value}})


def test_float64_and_strided_arrays_are_sent_as_float32() -> None:
    value = np.arange(12, dtype=np.float64).reshape(3, 4).T[::2]
    found = open_train(reply_of(TRAIN, groups={"update": {"histology": value}})).arrays["update"]["histology"]
    np.testing.assert_array_equal(found, value.astype(np.float32))


def test_opened_arrays_are_views_and_cannot_be_written() -> None:
    found = open_train(reply_of(TRAIN)).arrays["update"]["a"]
    assert found.base is not None
    assert not found.flags.writeable


@given(losses=st.dictionaries(st.text(max_size=9), st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_any_body_survives(losses: dict[str, float]) -> None:
    body = TrainReply(seconds={}, losses=losses, loss_sum=[0.0], monitors={})
    request = request_of(TRAIN)
    assert open_train(answer(TRAIN, request, open_request(request, TRAIN), body, {})).body == body


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_unknown_field(kind: Kind[Any, Any]) -> None:
    reply = with_body(reply_of(kind), patient_ids=["p1"])
    with refused("message-schema", "site north", "'patient_ids'", kind.name):
        open_reply(reply, kind, "north", run="run-1", round=3)
    request = with_body(request_of(kind), patient_ids=["p1"])
    with refused("message-schema", "the coordinator", "'patient_ids'"):
        open_request(request, kind)


def test_unknown_field_of_a_nested_record() -> None:
    cohort = json.loads(BODIES["evaluate"][1].model_dump_json())["cohort"]
    reply = with_body(reply_of(EVALUATE), cohort=cohort | {"patient_ids": ["p1"]})
    with refused("message-schema", "patient_ids"):
        open_reply(reply, EVALUATE, "north", run="run-1", round=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("losses", {"task": "0.4"}),
        ("losses", {"task": None}),
        ("losses", {"task": True}),
        ("losses", [0.4]),
        ("loss_sum", "34"),
        ("loss_sum", [[1.0]]),
        ("seconds", None),
        ("monitors", {"x": {}}),
    ],
)
def test_wrong_type(field: str, value: object) -> None:
    with refused("message-schema", "site north", f"'{field}"):
        open_train(with_body(reply_of(TRAIN), **{field: value}))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["losses", "loss_sum", "monitors", "seconds"])
def test_body_with_a_number_that_is_none(field: str, number: str) -> None:
    value = f"[{number}]" if field == "loss_sum" else f'{{"x": {number}}}'
    reply = with_body(reply_of(TRAIN), **{field: "PLACE"})
    body = reply.content["envelope"]["body"].replace('"PLACE"', value)
    with refused("message-schema", "site north", f"'{field}"):
        open_train(with_envelope(reply, body=body))


def test_missing_field() -> None:
    reply = reply_of(TRAIN)
    body = json.loads(reply.content["envelope"]["body"])
    del body["losses"]
    with refused("message-schema", "'losses'"):
        open_train(with_envelope(reply, body=json.dumps(body)))


def test_values_outside_the_vocabulary() -> None:
    with refused("message-schema", "'step'"):
        open_request(with_body(request_of(INITIALISE), step="labels"), INITIALISE)
    with refused("message-schema", "'role'"):
        open_reply(with_body(reply_of(HELLO), role="admin"), HELLO, "north", run="run-1", round=3)


@pytest.mark.parametrize("body", ["", "{", "[]", "null", "[" * 100_000, "\x00"])
def test_body_that_is_no_object(body: str) -> None:
    with refused("message-schema", "site north"):
        open_train(with_envelope(reply_of(TRAIN), body=body))


@pytest.mark.parametrize("protocol", [2, 0, "1", None])
def test_wrong_version(protocol: object) -> None:
    with refused("message-version", "site north", f"{protocol!r}", "same version"):
        open_train(with_envelope(reply_of(TRAIN), protocol=protocol))
    with refused("message-version", "the coordinator"):
        open_request(with_envelope(request_of(PLAN), protocol=protocol), PLAN)


@pytest.mark.parametrize(("run", "number"), [("run-1", 2), ("run-1", 4), ("run-2", 3), ("", 3)])
def test_replay(run: str, number: int) -> None:
    old = with_envelope(reply_of(TRAIN), run=run, round=number)
    with refused("message-replayed", "site north", "round 3"):
        open_train(old)


@pytest.mark.parametrize("field", ["run", "round", "body"])
@pytest.mark.parametrize("value", [None, 1.5, b"x"])
def test_envelope_without_its_parts(field: str, value: object) -> None:
    with refused("message-schema", "site north"):
        open_train(with_envelope(reply_of(TRAIN), **{field: value}))


@pytest.mark.parametrize(("field", "value"), [("protocol", True), ("round", True), ("round", False)])
def test_truth_is_no_number(field: str, value: object) -> None:
    with refused("message-version" if field == "protocol" else "message-schema"):
        open_train(with_envelope(reply_of(TRAIN), **{field: value}))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("where", ['{"seed":%s}', '{"losses":{"memory":%s}}', '{"a":[{"b":[1,%s]}]}'])
def test_a_setting_that_is_no_number(number: str, where: str) -> None:
    body = '{"federation":' + where % number + "}"
    with refused("message-schema", "the coordinator"):
        open_request(with_envelope(request_of(HELLO), body=body), HELLO)
    open_request(with_envelope(request_of(HELLO), body='{"federation":' + where % "1.5" + "}"), HELLO)


@pytest.mark.parametrize("run", ["", "../../x", "a\nb", "x" * 129])
def test_a_question_of_a_run_that_cannot_be(run: str) -> None:
    with refused("message-schema", "the coordinator"):
        open_request(with_envelope(request_of(TRAIN), run=run), TRAIN)


@pytest.mark.parametrize("other", [kind for kind in KINDS if kind is not TRAIN], ids=lambda kind: kind.name)
def test_reply_of_another_kind(other: Kind[Any, Any]) -> None:
    with refused("message-schema", "train", other.name):
        open_train(reply_of(other))


def test_message_without_an_envelope() -> None:
    request = request_of(TRAIN)
    for content in (RecordDict(), RecordDict({"envelope": ArrayRecord()}), RecordDict({"envelope": MetricRecord()})):
        with refused("message-schema", "site north", "envelope"):
            open_train(Message(content, reply_to=request))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_groups_that_a_kind_may_not_carry(kind: Kind[Any, Any]) -> None:
    everything = {"weights", "memory", "space", "update", "statistics", "scores", "labels"}
    for group in sorted(everything - kind.reply_groups):
        reply = reply_of(kind)
        reply.content[group] = ArrayRecord({"a": Array(SMALL["a"])})
        with refused("message-schema", "site north", f"'{group}'", kind.name):
            open_reply(reply, kind, "north", run="run-1", round=3)


@pytest.mark.parametrize("record", [ConfigRecord({"x": 1}), MetricRecord({"x": 1})])
def test_group_that_is_no_array_record(record: ConfigRecord | MetricRecord) -> None:
    reply = reply_of(TRAIN)
    reply.content["update"] = record
    with refused("message-schema", "'update'"):
        open_train(reply)


@pytest.mark.parametrize("filler", ["x", "é", "😀"])
def test_oversized_body(filler: str) -> None:
    sentence = filler * (messages.BODY_BYTES_MAX // len(filler.encode()))
    request = ask(FINISH, Finish(outcome="stopped", code="c", sentence=sentence), NODE, run="run-1", round=3, arrays={})
    with refused("message-schema", "the coordinator", str(messages.BODY_BYTES_MAX)):
        open_request(request, FINISH)


def test_oversized_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    one = len(Array(SMALL["a"]).data)
    reply = reply_of(TRAIN, groups={"update": {"a": SMALL["a"]}, "scores": {"a": SMALL["a"]}})
    monkeypatch.setattr(messages, "ARRAYS_BYTES_MAX", 2 * one)
    open_train(reply)
    monkeypatch.setattr(messages, "ARRAYS_BYTES_MAX", 2 * one - 1)
    with refused("message-schema", "site north", "exceed"):
        open_train(reply)


SIXTEEN = bytes(16)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((1 << 20, 1 << 20), npy("(1048576, 1048576)", SIXTEEN)),
        ((1 << 62, 4), npy(f"({1 << 62}, 4)", SIXTEEN)),
        ((10**30,), npy(f"({10**30},)", SIXTEEN)),
        ((0, 10**30), npy(f"(0, {10**30})")),
        ((0, 1 << 62), npy(f"(0, {1 << 62})")),
        ((-1, -4), npy("(-1, -4)", SIXTEEN)),
        ((0, -1), npy("(0, -1)")),
        ((-4,), npy("(-4,)", SIXTEEN)),
        ((1,) * 65 + (4,), npy(str((1,) * 65 + (4,)), SIXTEEN)),
        ((True, 4), npy("(True, 4)", SIXTEEN)),
        ((5,), npy("(4,)", SIXTEEN)),
        ((2, 2), npy("(4,)", SIXTEEN)),
        ((4,), npy("(4,)", SIXTEEN + b"x")),
        ((4,), npy("(4,)", SIXTEEN[:-1])),
        ((4,), npy("4", SIXTEEN)),
        ((2, 2), npy("(2, 2)", SIXTEEN, fortran=True)),
        ((4,), npy("(4,)", SIXTEEN, descr="'>f4'")),
        ((4,), npy("(4,)", SIXTEEN, descr="'<i4'")),
        ((2,), npy("(2,)", SIXTEEN, descr="'<f8'")),
        ((2,), npy("(2,)", SIXTEEN, descr="'|O'")),
        ((1,), npy("(1,)", SIXTEEN, descr="[('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('w', '<f4')]")),
        ((4,), npy("__import__('os')", SIXTEEN)),
        ((4,), npy("(" * 3000 + "4" + ")" * 3000, SIXTEEN)),
        ((4,), b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 0xFFFF),
        ((4,), b"\x93NUMPY\x01\x00"),
        ((4,), b"\x80\x04N."),
        ((4,), b""),
    ],
)
def test_arrays_that_are_not_what_they_say(shape: tuple[int, ...], data: bytes) -> None:
    reply = with_array(reply_of(TRAIN), Array("float32", shape, "numpy.ndarray", data))
    tracemalloc.start()
    try:
        with refused("message-schema", "site north", "update.histology"):
            open_train(reply)
        assert tracemalloc.get_traced_memory()[1] < 1 << 21, "a header must not make the receiver allocate"
    finally:
        tracemalloc.stop()


@given(data=st.binary(max_size=200), keep=st.integers(0, 128))
def test_mangled_files_never_raise_anything_else(data: bytes, keep: int) -> None:
    content = npy("(4,)", SIXTEEN)[:keep] + data
    reply = with_array(reply_of(TRAIN), Array("float32", (4,), "numpy.ndarray", content))
    with suppress(UserError):
        assert open_train(reply).arrays["update"]["histology"].shape == (4,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value: float) -> None:
    reply = reply_of(TRAIN, groups={"update": {"histology": np.float32([0.0, value])}})
    with refused("message-not-finite", "site north", "update.histology"):
        open_train(reply)


def test_refusal_carries_a_code_only() -> None:
    reply = refuse(request_of(TRAIN), "bag-empty")
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (SITE_ERROR, "bag-empty")
    assert reply.metadata.src_node_id == NODE
    assert len(refuse(request_of(TRAIN), "x" * 999).error.reason) == 64


def test_shapes() -> None:
    held = {"histology": np.zeros((2, 3), np.float32)}
    expect_shapes(held, {"histology": (2, 3)}, "site north: update")
    with refused("message-shape", "site north: update.histology", "(2, 3)", "(3, 2)"):
        expect_shapes(held, {"histology": (3, 2)}, "site north: update")
    for shapes in ({}, {"genomics": (2, 3)}, {"histology": (2, 3), "genomics": (1,)}):
        with refused("message-shape", "site north: update"):
            expect_shapes(held, shapes, "site north: update")
