"""A message's records as few transport objects: one head, and the arrays' bytes in parts of a few megabytes.

Flower sends every record, array and chunk as an object of its own, each with a signed request; a model of thirty
tensors costs a hundred requests a round. Packed, it costs three and one a part.

Objects are known by the hash of their content. Replies are packed with a random salt in every object: two sites
never share one, and nobody can ask whether another site has sent something by naming its hash.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

PART_BYTES = 4 * 2**20
SALT_BYTES = 16
HEAD = "head"
_SMALL: dict[str, type[ConfigRecord] | type[MetricRecord]] = {"config": ConfigRecord, "metrics": MetricRecord}

Parts = list[ConfigRecord]


def pack(content: RecordDict, *, salted: bool, known: dict[tuple[int, ...], Parts] | None = None) -> RecordDict:
    """The packed form of ``content``; names, order and bytes of the records are kept.

    Parameters
    ----------
    content : RecordDict
    salted : bool
        Put a random salt in every object (replies).
    known : dict, optional
        Parts made so far, by identity of the array records: what several messages share is packed once. It is
        only valid while those records live.
    """
    index: list[list[object]] = []
    small: list[bytes] = []
    arrays: list[ArrayRecord] = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays.append(record)
            index.append(
                [name, "arrays", [[k, a.dtype, list(a.shape), a.stype, len(a.data)] for k, a in record.items()]]
            )
        else:
            small.append(record.deflate())
            index.append([name, "config" if isinstance(record, ConfigRecord) else "metrics", len(small[-1])])
    key = tuple(id(record) for record in arrays)
    parts = None if known is None else known.get(key)
    if parts is None:
        views = (memoryview(array.data) for record in arrays for array in record.values())
        parts = [_record({"bytes": part}, salted) for part in _cut(views, PART_BYTES)]
        if known is not None:
            known[key] = parts
    head: dict[str, str | bytes | int] = {"index": json.dumps(index), "small": b"".join(small), "parts": len(parts)}
    return RecordDict({HEAD: _record(head, salted), **{str(number): part for number, part in enumerate(parts)}})


def unpack(packed: RecordDict) -> RecordDict:
    """The records that :func:`pack` was given (raises ValueError, KeyError or TypeError for anything else)."""
    head = packed[HEAD]
    small = _Reader([head["small"]])
    data = _Reader([packed[str(number)]["bytes"] for number in range(head["parts"])])
    content = RecordDict()
    for name, kind, described in json.loads(head["index"]):
        if kind == "arrays":
            content[name] = ArrayRecord(
                {
                    key: Array(dtype, tuple(shape), stype, data.take(size))
                    for key, dtype, shape, stype, size in described
                }
            )
        else:
            content[name] = _SMALL[kind].inflate(small.take(described))
    small.expect_end()
    data.expect_end()
    return content


def _record(values: dict[str, str | bytes | int], salted: bool) -> ConfigRecord:
    return ConfigRecord({**values, "salt": secrets.token_bytes(SALT_BYTES)} if salted else values)


def _cut(views: Iterable[memoryview], size: int) -> Iterator[bytes]:
    """The views' bytes, one after the other, in pieces of ``size`` bytes, the last one shorter."""
    gathered: list[memoryview] = []
    room = size
    for view in views:
        while view:
            gathered.append(view[:room])
            view = view[room:]
            room -= len(gathered[-1])
            if not room:
                yield b"".join(gathered)
                gathered, room = [], size
    if gathered:
        yield b"".join(gathered)


class _Reader:
    """Bytes taken one after the other from several pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [memoryview(piece) for piece in pieces]
        self._pieces.reverse()

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        taken: list[memoryview] = []
        while size > 0:
            if not self._pieces:
                raise ValueError("a packed message is shorter than its index says")
            piece = self._pieces.pop()
            taken.append(piece[:size])
            if len(piece) > size:
                self._pieces.append(piece[size:])
            size -= len(taken[-1])
        return b"".join(taken)

    def expect_end(self) -> None:
        """Nothing may be left."""
        if any(len(piece) for piece in self._pieces):
            raise ValueError("a packed message is longer than its index says")
