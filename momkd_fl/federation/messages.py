"""The messages of a run: versioned, schema-checked, size-capped (FEDERATION.md, "Messages of a run").

A message is an envelope (kind, protocol version, run, round, a JSON body that a strict model checks) and
named groups of float32 arrays. Both sides refuse whole messages; a refusal names the field.

Groups of arrays
----------------
``weights``  flat vectors by branch (``histology``, ``genomics``); the layout is fixed by the architecture hash.
``memory``   slots (C, K, S) and, where there are any, genomic anchors (C, K, A).
``space``    the fixed genomic space: mean, scale (G,), axes (A, G), sd (A,); with ``losses.soft_labels`` beside it
             class_sums (C, A) and class_counts (C,) of the genomes in it, and class_included (C,), whether the site's
             own are among them.
``update``   the weight difference, as ``weights``.
``statistics``  sums and counts per modality, class and slot; or the sums of one initialisation step,
             or those that a panel is learnt from.
``scores``   score histograms per class (C, bins) of validation or test patients.
``secagg``   one signed message of secure aggregation, its bytes as they are (docs/secure-aggregation.md).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from momkd_fl.errors import UserError
from momkd_fl.evaluation.results import Cohort

PROTOCOL = 1
"""Version of every message. A site and a coordinator of different versions refuse each other."""

SHARED_SECTIONS = (
    "name",
    "task",
    "classes",
    "encoder",
    "model",
    "memory",
    "losses",
    "training",
    "genes",
    "privacy",
    "aggregation",
    "seed",
)
"""The parts of the federation's configuration that the sites are told."""

BODY_BYTES_MAX = 1 << 20
ARRAYS_BYTES_MAX = 1 << 30
DIMENSIONS_MAX = 8
SITE_ERROR = 100
"""Flower error code of a site's refusal; its reason is a stable error code of ours and nothing else."""

ANCHOR = "anchor"
"""Record beside a message's own: heads of a site's books (anchor.py). It is no part of what the message says."""

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+){0,7}")
SECAGG = "secagg"
"""Group of bytes; all other groups hold float32."""
Arrays = dict[str, dict[str, NDArray[Any]]]


class Body(BaseModel):
    """The JSON part of a message: exact fields, exact types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Hello(Body):
    """Ask a site who it is, for a run described by the shared sections of the federation's configuration."""

    federation: dict[str, Any]

    @field_validator("federation")
    @classmethod
    def _finite(cls, value: dict[str, Any]) -> dict[str, Any]:
        """The model forbids NaN and infinity, but not inside a value of any type."""
        inside: list[Any] = [value]
        while inside:
            one = inside.pop()
            if isinstance(one, float) and not math.isfinite(one):
                raise ValueError("a setting is NaN or infinite")
            inside += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        return value


class HelloReply(Body):
    """What a site says of itself: never a count, a label or an id."""

    site: str
    role: Literal["train", "evaluate"]
    software: str
    genomics: bool
    genes: list[str] = Field(description="Gene symbols the site has; no values.")
    fingerprint: dict[str, str | float | int | None]
    clock_unix_s: float
    holds: list[str] = Field(
        default_factory=list,
        description="With secure aggregation: classes and splits of which the site has enough patients to take part "
        "in their sums, never how many.",
    )


class Plan(Body):
    """The panel and the architecture every site must build."""

    panel: list[str]
    architecture: str


class PlanReply(Body):
    """Accepted, with the architecture hash the site computed itself."""

    architecture: str


class Select(Body):
    """Ask a training site with genomics which of the candidate genes differ between its classes."""

    candidates: list[str]


class SelectReply(Body):
    """The site's sums over its training patients travel as arrays."""


class Initialise(Body):
    """One step of the initialisation by sums (scaling, moments, anchors, slots) or its fixed result."""

    step: Literal["scaling", "moments", "anchors", "slots", "fixed"]
    iteration: int


class InitialiseReply(Body):
    """The site's sums travel as arrays."""


class Train(Body):
    """Train from the weights and memory that travel with it."""

    proximal_mu: float = Field(description="FedProx's proximal term; 0: none.")
    learning_rate_share: float = Field(ge=0, le=1, description="This round's share of training.learning_rate.")


class TrainReply(Body):
    """What a round says besides arrays: seconds by phase and monitors, means over many patients."""

    seconds: dict[str, float]
    losses: dict[str, float]
    loss_sum: list[float]
    monitors: dict[str, float]


class Evaluate(Body):
    """Score patients with the weights and memory that travel with it."""

    split: Literal["validation", "test"]
    threshold: float | None
    calibration: list[float] | None
    final: bool


class EvaluateReply(Body):
    """One site's cohort as it may be published, and its loss by class; the score histogram travels as an array."""

    loss_sum: list[float]
    cohort: Cohort


Holding = Annotated[str, Field(pattern=r"^(genomics|validation|test|class\.\d{1,3}(\.genomics)?)$")]
"""What a site can contribute to a part of a sum (sum_parts.py)."""
Question = Literal["select", "initialise", "train", "evaluate"]


class Join(Body):
    """First step of a secure sum: a question whose answer is to be summed, and the manifest among the arrays."""

    question: Question
    body: str = Field(description="The question's own JSON body.")
    site_weights: dict[str, float] = Field(description="Public weights other than 1, the same for every site.")


class JoinReply(Body):
    """The answer is ready, and the site's keys travel as bytes; or the site takes no part, and says what it lacks."""

    withholds: list[Holding] = Field(
        default_factory=list,
        max_length=100,
        description="Of what the sum lists the site for, classes and splits that its gate withholds; then no keys "
        "come, and the coordinator writes another list.",
    )


class Deal(Body):
    """Second step: every site's keys."""


class DealReply(Body):
    """Sealed shares for the other sites."""


class Mask(Body):
    """Third step: the shares dealt to the site."""


class MaskReply(Body):
    """The masked answer; the one message of the five that holds something of patients."""

    question: Question


class Consent(Body):
    """Fourth step: whose masked answer arrived."""


class ConsentReply(Body):
    """A signature over that set."""


class Unmask(Body):
    """Fifth step: the sites' signatures."""


class UnmaskReply(Body):
    """Shares that take the masks off the sum."""


class Finish(Body):
    """The run is over at this site."""

    outcome: Literal["finished", "stopped", "refused"]
    code: str
    sentence: str
    threshold: float | None = None
    calibration: list[float] | None = None


class FinishReply(Body):
    """Farewell."""


RequestT = TypeVar("RequestT", bound=Body)
ReplyT = TypeVar("ReplyT", bound=Body)


@dataclass(frozen=True)
class Kind(Generic[RequestT, ReplyT]):
    """One type of message, its two bodies and the groups of arrays each may carry."""

    name: str
    message_type: str
    request: type[RequestT]
    reply: type[ReplyT]
    request_groups: frozenset[str] = frozenset()
    reply_groups: frozenset[str] = frozenset()


HELLO = Kind("hello", "query.hello", Hello, HelloReply)
PLAN = Kind("plan", "query.plan", Plan, PlanReply)
SELECT = Kind("select", "query.select", Select, SelectReply, reply_groups=frozenset({"statistics"}))
INITIALISE = Kind(
    "initialise",
    "query.initialise",
    Initialise,
    InitialiseReply,
    frozenset({"weights", "memory", "space"}),
    frozenset({"statistics"}),
)
TRAIN = Kind(
    "train",
    "train",
    Train,
    TrainReply,
    frozenset({"weights", "memory"}),
    frozenset({"update", "statistics", "scores"}),
)
EVALUATE = Kind(
    "evaluate", "evaluate", Evaluate, EvaluateReply, frozenset({"weights", "memory"}), frozenset({"scores"})
)
FINISH = Kind("finish", "query.finish", Finish, FinishReply, frozenset({"weights", "memory"}))
_BYTES = frozenset({SECAGG})
JOIN = Kind("join", "query.join", Join, JoinReply, _BYTES | {"weights", "memory", "space"}, _BYTES)
DEAL = Kind("deal", "query.deal", Deal, DealReply, _BYTES, _BYTES)
MASK = Kind("mask", "query.mask", Mask, MaskReply, _BYTES, _BYTES)
CONSENT = Kind("consent", "query.consent", Consent, ConsentReply, _BYTES, _BYTES)
UNMASK = Kind("unmask", "query.unmask", Unmask, UnmaskReply, _BYTES, _BYTES)
SUM_STEPS: tuple[Kind[Any, Any], ...] = (JOIN, DEAL, MASK, CONSENT, UNMASK)
INCOMING: Mapping[str, str] = {
    "join": "manifest", "deal": "roster", "mask": "delivery", "consent": "survivors", "unmask": "consents",
}  # fmt: skip
OUTGOING: Mapping[str, str] = {
    "join": "keys", "deal": "shares", "mask": "masked", "consent": "signature", "unmask": "opened",
}  # fmt: skip
"""What the bytes of each step are called, from the coordinator and from the site."""
KINDS: tuple[Kind[Any, Any], ...] = (HELLO, SELECT, PLAN, INITIALISE, TRAIN, EVALUATE, *SUM_STEPS, FINISH)


@dataclass(frozen=True)
class Parcel(Generic[ReplyT]):
    """An opened message."""

    kind: str
    run: str
    round: int
    body: ReplyT
    arrays: Arrays


def ask(kind: Kind[RequestT, ReplyT], body: RequestT, node: int, *, run: str, round: int, arrays: Arrays) -> Message:
    """A message of the coordinator to one node."""
    return ask_each(kind, body, [node], run=run, round=round, arrays=arrays)[0]


def ask_each(
    kind: Kind[RequestT, ReplyT], body: RequestT, nodes: Iterable[int], *, run: str, round: int, arrays: Arrays
) -> list[Message]:
    """The same message to several nodes; its content is built once and shared, not copied per site."""
    content = enveloped(kind.name, body, run, round, arrays)
    return [Message(content, dst_node_id=node, message_type=kind.message_type, group_id=str(round)) for node in nodes]


def refuse(request: Message, code: str) -> Message:
    """A site's refusal: a stable code, never the sentence, which may name a local file."""
    return Message(Error(code=SITE_ERROR, reason=code[:64]), reply_to=request)


def site_code(reply: Message) -> str:
    """The stable code of a site's refusal; what is no such code came from the transport or is not believed."""
    reason = reply.error.reason
    known = reply.error.code == SITE_ERROR and isinstance(reason, str) and _CODE.fullmatch(reason) is not None
    return str(reason) if known else "transport"


def open_request(message: Message, kind: Kind[RequestT, ReplyT]) -> Parcel[RequestT]:
    """Open and check what the coordinator sent (raises UserError ``message-schema`` or ``message-version``)."""
    parcel = _open(message, kind.name, kind.request, kind.request_groups, "the coordinator")
    if not _RUN.fullmatch(parcel.run):
        raise UserError("message-schema", f"the coordinator: {kind.name} names a run that cannot be; message dropped.")
    return parcel


def open_reply(message: Message, kind: Kind[RequestT, ReplyT], site: str, *, run: str, round: int) -> Parcel[ReplyT]:
    """Open and check a site's reply; another run's or round's reply is refused as a replay.

    Raises
    ------
    UserError
        ``message-schema``, ``message-version`` or ``message-replayed``, naming the site and the field.
    """
    parcel = _open(message, kind.name, kind.reply, kind.reply_groups, f"site {site}")
    if (parcel.run, parcel.round) != (run, round):
        raise UserError(
            "message-replayed",
            f"site {site}: its {kind.name} reply belongs to run {parcel.run}, round {parcel.round}; "
            f"expected run {run}, round {round}. The message was dropped.",
        )
    return parcel


def enveloped(kind: str, body: Body, run: str, round: int, arrays: Arrays) -> RecordDict:
    """The content of a message: its envelope and its groups of arrays."""
    envelope = ConfigRecord(
        {"kind": kind, "protocol": PROTOCOL, "run": run, "round": round, "body": body.model_dump_json()}
    )
    records: dict[str, Any] = {"envelope": envelope}
    for group, members in arrays.items():
        records[group] = ArrayRecord(
            {name: Array(np.asarray(value, dtype=_dtype(group), order="C")) for name, value in members.items()}
        )
    return RecordDict(records)


def _open(message: Message, kind: str, model: type[ReplyT], groups: frozenset[str], sender: str) -> Parcel[ReplyT]:
    envelope = message.content.get("envelope")
    if not isinstance(envelope, ConfigRecord):
        raise UserError("message-schema", f"{sender}: a message without an envelope arrived; it was dropped.")
    if type(envelope.get("protocol")) is not int or envelope.get("protocol") != PROTOCOL:
        raise UserError(
            "message-version",
            f"{sender}: speaks protocol {envelope.get('protocol')!r}, this software speaks {PROTOCOL}. "
            "Install the same version of momkd-fl everywhere.",
        )
    if envelope.get("kind") != kind:
        raise UserError("message-schema", f"{sender}: expected a {kind} message, got {envelope.get('kind')!r}.")
    run, number, text = envelope.get("run"), envelope.get("round"), envelope.get("body")
    if not (isinstance(run, str) and type(number) is int and isinstance(text, str)):  # True is no round
        raise UserError("message-schema", f"{sender}: envelope of {kind} lacks run, round or body.")
    if len(text.encode()) > BODY_BYTES_MAX:
        raise UserError("message-schema", f"{sender}: body of {kind} is larger than {BODY_BYTES_MAX} bytes.")
    try:
        body = model.model_validate_json(text)
    except ValidationError as errors:
        field = ".".join(str(part) for part in errors.errors()[0]["loc"]) or "body"
        raise UserError(
            "message-schema", f"{sender}: field '{field}' of {kind} is not as the schema says; message dropped."
        ) from None
    return Parcel(kind, run, number, body, _open_arrays(message, kind, groups, sender))


def _open_arrays(message: Message, kind: str, groups: frozenset[str], sender: str) -> Arrays:
    arrays: Arrays = {}
    total = 0
    for group, record in message.content.items():
        if group == "envelope" or (group == ANCHOR and isinstance(record, ConfigRecord)):
            continue
        if group not in groups or not isinstance(record, ArrayRecord):
            raise UserError("message-schema", f"{sender}: a {kind} message may not carry '{group}'; message dropped.")
        arrays[group] = {}
        for name, array in record.items():
            total += len(array.data)
            if total > ARRAYS_BYTES_MAX:
                raise UserError("message-schema", f"{sender}: arrays of {kind} exceed {ARRAYS_BYTES_MAX} bytes.")
            arrays[group][name] = _decode(array, _dtype(group), f"{sender}: {group}.{name}")
    return arrays


def _dtype(group: str) -> np.dtype[Any]:
    return np.dtype(np.uint8 if group == SECAGG else np.float32)


def _decode(array: Array, wanted: np.dtype[Any], where: str) -> NDArray[Any]:
    """A read-only view of the array's bytes; nothing is allocated before the header is checked."""
    stream = io.BytesIO(array.data)
    try:
        np.lib.format.read_magic(stream)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception:  # whatever a malformed header raises, it is the sender's fault
        raise UserError("message-schema", f"{where} cannot be decoded; message dropped.") from None
    offset = stream.tell()
    plain = all(type(size) is int and 0 <= size <= ARRAYS_BYTES_MAX for size in shape) and len(shape) <= DIMENSIONS_MAX
    count = math.prod(shape) if plain else -1
    whole = len(array.data) - offset == wanted.itemsize * count
    if dtype != wanted or fortran or tuple(array.shape) != shape or not whole:
        raise UserError("message-schema", f"{where} is not {wanted} of its declared shape; message dropped.")
    value = np.frombuffer(array.data, dtype=wanted, count=count, offset=offset).reshape(shape)
    if not np.isfinite(value).all():
        raise UserError("message-not-finite", f"{where} holds NaN or infinity; message dropped.")
    return value


def expect_shapes(arrays: Mapping[str, NDArray[np.float32]], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Exact names and shapes, or a UserError ``message-shape`` that names the first difference."""
    if set(arrays) != set(shapes):
        odd = sorted(set(arrays) ^ set(shapes))[0]
        raise UserError("message-shape", f"{where}: arrays are {sorted(arrays)}, expected {sorted(shapes)} ('{odd}').")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise UserError("message-shape", f"{where}.{name} has shape {arrays[name].shape}, expected {shape}.")
