"""Changed messages between coordinator and site, on the path that each takes from the wire to the schema.

Half are changed inside and packed anew (types, shapes, lengths and names that lie, JSON that is deep), so that what
stands behind the parsers is reached too; the others are changed as protobuf's or Flower's bytes.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from google.protobuf.message_factory import GetMessageClass

from benchmarks.fuzz_secagg import mutated
from benchmarks.right_messages import BODIES, SITE, contents
from momkd_fl.errors import UserError
from momkd_fl.federation import flower
from momkd_fl.federation.answering import answer
from momkd_fl.federation.messages import KINDS, SECAGG, Kind, Parcel, ask, open_reply, open_request
from momkd_fl.federation.packing import pack, unpack
from momkd_fl.federation.session import Gone, Unusable

PullMessagesResponse: Any = GetMessageClass(
    flower.PullMessagesRequest.DESCRIPTOR.file.message_types_by_name["PullMessagesResponse"]
)
RUN, ROUND = "trial-0123abcd", 3
Direction = Literal["site", "coordinator"]
WORDS: tuple[Any, ...] = (
    True, 0, -1, 2**62, 1.5, float("inf"), "", "x", "1", "../../etc/passwd", "\0", "é" * 70, b"", b"\x80\x04K\x01.",
    "9" * 400, "[" * 900, '{"a":' * 300 + "1" + "}" * 300, [1, 2], ["x"], [1.5], [True],
)  # fmt: skip
"""Values of the types that Flower's records hold."""
HEADERS = (
    "(2, 3)", "(6,)", "()", "(-1,)", "(2,)", "(1099511627776,)", "(0, 99999999999)", "2", "(True,)", "(1.0,)",
    "(" * 200, "(" + "1, " * 40 + ")", "('a',)", "None",
)  # fmt: skip
_WRONG = "wrong: "
DTYPES = ("<f4", "|O", "<f8", ">f4", "<i4", "<c8", "|V4", "f4,f4", "x", "|S4")


@dataclass(frozen=True)
class Fuzzed:
    """How many messages were read, how many refused with which code; ``wrong``: neither, by what happened.

    ``slowest_s`` is the most CPU-seconds that one message took. One that is slower than all before is made again, the
    same: what the machine did beside it (memory collected, a cache filled) does not come a second time.
    """

    read: int
    refused: Mapping[str, int]
    wrong: Mapping[str, int]
    slowest_s: float


@dataclass(frozen=True)
class Packed:
    """A message as it travels: its header and tree, and the objects by id."""

    header: Message
    root: str
    tree: Any
    objects: Mapping[str, bytes]

    @staticmethod
    def of(message: Message) -> Packed:
        """As flower.py packs it."""
        packed = Message(content=pack(message.content, salted=True), metadata=message.metadata)
        objects = flower.get_all_nested_objects(packed)
        contents = {name: found.deflate() for name, found in objects.items()}
        return Packed(
            flower.remove_content_from_message(packed), packed.object_id, flower.get_object_tree(packed), contents
        )


class _Line:
    """Instead of the fleet client: answers with bytes that are parsed as the real one parses them."""

    def __init__(self, messages: bytes, objects: Mapping[str, bytes]) -> None:
        self._messages, self._objects = messages, objects

    def PullMessages(self, request: Any) -> Any:  # noqa: N802 - Flower's name
        return _parsed(PullMessagesResponse, self._messages)

    def PullObject(self, request: Any) -> Any:  # noqa: N802 - Flower's name
        return _parsed(flower.PullObjectResponse, self._objects.get(request.object_id, b""))

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802 - Flower's name
        return None


def _parsed(kind: Any, content: bytes) -> Any:
    found = kind()
    try:
        found.ParseFromString(content)
    except Exception as problem:
        raise ValueError("Invalid protobuf response payload") from problem
    return found


class Bench:
    """Everything that messages are made of and read with. It stands in for a process that speaks Flower."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        key = generate_private_key(SECP384R1()).public_key()
        self._links = flower._Links(flower._Store())
        flower._start_run(self._links)
        (self._node,) = flower._register(self._links, {SITE: key})
        self._links.activate_node(self._node, 1e6)
        self._fleet = flower._Fleet(self._links, 1 << 24)
        self._requests = {kind.name: self.request(kind) for kind in KINDS}

    def request(self, kind: Kind[Any, Any]) -> Message:
        """A right question of the coordinator's."""
        arrays = contents(kind.request_groups)
        message = ask(kind, BODIES[kind.name][0], self._node, run=RUN, round=ROUND, arrays=arrays)
        message.metadata.__dict__["_message_id"] = secrets.token_hex(32)
        return message

    def reply(self, kind: Kind[Any, Any]) -> Message:
        """A right reply of the site's."""
        request = self._requests[kind.name]
        body, arrays = BODIES[kind.name][1], contents(kind.reply_groups)
        return answer(kind, request, open_request(request, kind), body, arrays)

    def at_site(self, kind: Kind[Any, Any]) -> None:
        """One changed question, read as a client reads it; AssertionError if what was read is no right question."""
        message = self.request(kind)
        inside = self._rng.random() < 0.5
        if inside:
            message.content = self._changed_inside(message.content)
        packed = Packed.of(message)
        header = PullMessagesResponse(messages_list=[flower.message_to_proto(packed.header)])
        header.messages_list[0].metadata.message_id = packed.root
        header.message_object_trees.append(packed.tree)
        wire = header.SerializeToString()
        objects = {
            name: flower.PullObjectResponse(object_found=True, object_available=True, object_content=content)
            .SerializeToString()
            for name, content in packed.objects.items()
        }  # fmt: skip
        if not inside:
            wire, objects = self._changed_outside(wire, objects)
        calls = object.__new__(flower._FleetCalls)
        calls._client, calls._node = _Line(wire, objects), flower.Node(node_id=self._node)  # type: ignore[assignment]
        found = calls.receive()
        if found is None:
            return
        served = next((each for each in KINDS if each.message_type == found.metadata.message_type), None)
        if served is None:
            raise Unusable("message-not-served")
        parcel = open_request(found, served)
        again = ask(served, parcel.body, self._node, run=parcel.run, round=parcel.round, arrays=parcel.arrays)
        _same(parcel, open_request(again, served))

    def at_coordinator(self, kind: Kind[Any, Any]) -> None:
        """One changed reply, read as the server reads it."""
        message = self.reply(kind)
        if self._rng.random() < 0.3:
            self._announced(message)
            return
        inside = self._rng.random() < 0.6
        if inside:
            message.content = self._changed_inside(message.content)
        packed = Packed.of(message)
        contents = dict(packed.objects)
        if not inside:
            name = self._rng.choice(list(contents))
            contents[name] = self._bytes(contents[name])
        try:  # as _Links.take does
            content = unpack(flower.inflate_object_from_contents(packed.root, contents).content)
        except Exception:
            raise Unusable("message-schema") from None
        found = Message(content=content, metadata=message.metadata)
        parcel = open_reply(found, kind, SITE, run=RUN, round=ROUND)
        again = answer(kind, self._requests[kind.name], parcel, parcel.body, parcel.arrays)
        _same(parcel, open_reply(again, kind, SITE, run=RUN, round=ROUND))

    def _announced(self, message: Message) -> None:
        """A changed announcement of a reply: refused, or for a question that this site was really asked."""
        packed = Packed.of(message)
        proto = flower.message_to_proto(packed.header)
        proto.metadata.message_id = packed.root
        right = flower.PushMessagesRequest(
            node=flower.Node(node_id=self._node), messages_list=[proto], message_object_trees=[packed.tree],
            clientapp_runtime_list=[1.0],
        ).SerializeToString()  # fmt: skip
        request = flower.PushMessagesRequest()
        try:
            request.ParseFromString(self._bytes(right))
        except Exception:
            raise Unusable("not-protobuf") from None
        verdict = self._fleet._verdict(request)
        if verdict is not None:
            raise Unusable(verdict[1])
        raise AssertionError("a reply was let in that nobody had asked for")

    def _changed_outside(self, wire: bytes, objects: dict[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
        if self._rng.random() < 0.4:
            return self._bytes(wire), objects
        name = self._rng.choice(list(objects))
        return wire, {**objects, name: self._bytes(objects[name])}

    def _bytes(self, content: bytes) -> bytes:
        return mutated(content, self._rng)

    def _changed_inside(self, content: RecordDict) -> RecordDict:
        """The same records with one to three things that are not as they were."""
        records: dict[str, Any] = dict(content.items())
        for _ in range(self._rng.randint(1, 3)):
            change = self._rng.choice((self._envelope, self._body, self._array, self._group))
            change(records)
        return RecordDict(records)

    def _envelope(self, records: dict[str, Any]) -> None:
        kept = _config(records)
        name = self._rng.choice(["kind", "protocol", "run", "round", "body", "more"])
        if self._rng.random() < 0.2:
            kept.pop(name, None)
        else:
            kept[name] = self._rng.choice((*WORDS, "train", "hello", 1, 2))
        records["envelope"] = ConfigRecord(kept)

    def _body(self, records: dict[str, Any]) -> None:
        kept = _config(records)
        text = kept.get("body")
        if not isinstance(text, str):
            return
        if self._rng.random() < 0.5:
            kept["body"] = self._bytes(text.encode()).decode("utf-8", "replace")
        else:
            value = self._rng.choice(("NaN", "null", "1e999", "[]", '{"a":1}', "true", '"1"', "-0", "[" * 500))
            places = [at for at, letter in enumerate(text) if letter in ":,["]
            at = self._rng.choice(places or [0])
            kept["body"] = text[: at + 1] + value + text[at + 1 + self._rng.randrange(6) :]
        records["envelope"] = ConfigRecord(kept)

    def _array(self, records: dict[str, Any]) -> None:
        groups = [name for name, record in records.items() if isinstance(record, ArrayRecord)]
        group = self._rng.choice(groups or ["weights"])
        shape, dtype = self._rng.choice(HEADERS), self._rng.choice(DTYPES)
        text = f"{{'descr': '{dtype}', 'fortran_order': {self._rng.random() < 0.1}, 'shape': {shape}, }}".encode()
        data = self._rng.choice((b"", b"\0" * 24, b"\0" * 23, b"\xff" * 24, b"\0\0\xc0\x7f" * 6))
        whole = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data
        if self._rng.random() < 0.3:
            whole = self._bytes(whole)
        said = self._rng.choice(((2, 3), (6,), (), (-1,), (1 << 40,)))
        array = Array(
            self._rng.choice(("float32", "object", "")), said, self._rng.choice(("numpy.ndarray", "x")), whole
        )
        records[group] = ArrayRecord({self._rng.choice(("a", "", "histology", "../x")): array})

    def _group(self, records: dict[str, Any]) -> None:
        name = self._rng.choice(list(records) or ["envelope"])
        other = self._rng.choice(("weights", "update", "statistics", "anchor", "fab", "", "envelope"))
        record = records.pop(name, None)
        if record is not None and self._rng.random() < 0.7:
            records[other] = record


def _config(records: Mapping[str, Any]) -> dict[str, Any]:
    """The envelope's fields, if a change before this one has left it an envelope."""
    found = records.get("envelope")
    return dict(found) if isinstance(found, ConfigRecord) else {}


def _same(one: Parcel[Any], two: Parcel[Any]) -> None:
    """Whether a message is what it is when it is written again: only right messages are."""
    assert (one.kind, one.run, one.round, type(one.round)) == (two.kind, two.run, two.round, int)
    assert one.body == two.body
    assert {g: set(members) for g, members in one.arrays.items()} == {g: set(m) for g, m in two.arrays.items()}
    for group, members in one.arrays.items():
        for name, value in members.items():
            assert value.dtype == (np.uint8 if group == SECAGG else np.float32)
            assert value.shape == two.arrays[group][name].shape
            assert value.tobytes() == two.arrays[group][name].tobytes()


@contextmanager
def speaking_flower() -> Iterator[None]:
    """A process that says which task it runs, and what it said before afterwards."""
    before = vars(flower.TaskIdentity).copy()
    try:
        yield
    finally:
        for name in ("_task_id", "_run_id", "_node_id"):
            setattr(flower.TaskIdentity, name, before[name])


def fuzz(where: Direction, count: int, seed: int, progress: Callable[[int], object] = lambda done: None) -> Fuzzed:
    """So many changed messages, of every kind in turn; the same seed makes the same changes."""
    rng = random.Random(seed)
    read, refused, wrong, slowest = 0, Counter[str](), Counter[str](), 0.0
    with speaking_flower():
        bench = Bench(rng)
        step = bench.at_site if where == "site" else bench.at_coordinator
        for number in range(count):
            kind, drawn = KINDS[number % len(KINDS)], rng.getstate()
            what, spent = _timed(step, kind)
            if spent > slowest:
                rng.setstate(drawn)
                slowest = max(slowest, min(spent, _timed(step, kind)[1]))
            if what is None:
                read += 1
            elif what.startswith(_WRONG):
                wrong[what.removeprefix(_WRONG)] += 1
            else:
                refused[what] += 1
            if (number + 1) % 20_000 == 0:
                progress(number + 1)
    return Fuzzed(read, refused, wrong, slowest)


def _timed(step: Callable[[Kind[Any, Any]], None], kind: Kind[Any, Any]) -> tuple[str | None, float]:
    """One message: None where it was read, the code of the refusal, or what went wrong; and its CPU-seconds."""
    what, began = None, time.process_time()
    try:
        step(kind)
    except UserError as problem:
        what = problem.code
    except (Unusable, Gone) as problem:
        what = str(problem)
    except flower.httpx.RemoteProtocolError:
        what = "no-answer"
    except Exception as problem:
        what = f"{_WRONG}{kind.name} {type(problem).__name__}: {str(problem)[:80]}"
    return what, time.process_time() - began
