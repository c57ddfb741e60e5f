"""A site's reply as a message. Only the gate may import this module (pyproject.toml, import contracts)."""

from __future__ import annotations

from flwr.app import Message

from momkd_fl.federation.messages import Arrays, Kind, Parcel, ReplyT, RequestT, enveloped


def answer(
    kind: Kind[RequestT, ReplyT], request: Message, parcel: Parcel[RequestT], body: ReplyT, arrays: Arrays
) -> Message:
    """A site's reply to ``request``."""
    return Message(enveloped(kind.name, body, parcel.run, parcel.round, arrays), reply_to=request)
