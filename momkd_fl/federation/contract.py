"""The gate's first step: is this message one that the site's contract names?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from re import fullmatch
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from momkd_fl.config.policy import ANY, Budget, MessageRule, Policy, SmallNumbers, TensorRule, policy_from
from momkd_fl.errors import UserError
from momkd_fl.federation.messages import (
    ARRAYS_BYTES_MAX,
    FINISH,
    MASK,
    SUM_STEPS,
    Arrays,
    Body,
    EvaluateReply,
    TrainReply,
)
from momkd_fl.privacy.accountant import Charge, GaussianReleases, PoissonSteps
from momkd_fl.security.detached import signed_content

_STATISTICS = ("statistics.sums.histology", "statistics.counts.histology")
_GENOMIC = ("statistics.sums.genomics", "statistics.counts.genomics")
TENSORS: Final[Mapping[str, tuple[str, ...]]] = {
    "hello": (),
    "select": ("statistics.sum", "statistics.sum_sq", "statistics.balance"),
    "plan": (),
    "initialise": (
        *_STATISTICS, *_GENOMIC, "statistics.n", "statistics.sum", "statistics.sum_sq", "statistics.outer",
        "statistics.sums.means", "statistics.counts.means",
    ),
    "train": ("update.histology", "update.genomics", *_STATISTICS, *_GENOMIC, "scores.counts"),
    "evaluate": ("scores.counts",),
    "join": ("secagg.keys",),
    "deal": ("secagg.shares",),
    "mask": ("secagg.masked",),
    "consent": ("secagg.signature",),
    "unmask": ("secagg.opened",),
    "finish": (),
}  # fmt: skip
"""Every tensor that a reply of this version can carry, by kind of message."""
TO_EVALUATORS: Final = ("hello", "plan", "evaluate", *(kind.name for kind in SUM_STEPS), "finish")
MASKED_BYTES: Final = 8
"""A masked number's; the plain one has 4."""
PROTOCOL_BYTES: Final = 1 << 20
"""Room for keys, shares and signatures of as many sites as a sum can have."""
RUN_SUFFIX: Final = r"-[0-9a-f]{8}"
"""What the coordinator puts after a run's name to make its id."""


@dataclass(frozen=True)
class Outgoing:
    """A reply before anything is decided about it.

    Attributes
    ----------
    task : for which the patients' labels are read; empty while no task is known
    charges : what the private releases in it cost; () where there is none
    """

    run: str
    round: int
    kind: str
    task: str
    body: Body
    arrays: Arrays
    charges: tuple[Charge, ...]


def load_contract(path: Path, signer: Ed25519PublicKey, site: str, today: date) -> Policy:
    """The contract of ``site`` in ``path``, if ``signer`` signed it and it has not expired.

    Raises
    ------
    UserError
        ``contract-site``, ``contract-expired``, or as :func:`~momkd_fl.security.detached.signed_content` and
        :func:`~momkd_fl.config.policy.policy_from`.
    """
    policy = policy_from(signed_content(path, signer), path)
    if policy.site != site:
        raise UserError(
            "contract-site",
            f"{path}: is the contract of site '{policy.site}', but this is '{site}'. Name this site's own contract.",
        )
    refuse_expired(policy, today)
    return policy


def refuse_expired(policy: Policy, today: date) -> None:
    """Raise UserError ``contract-expired`` after the contract's last day."""
    if today > policy.expires:
        raise UserError(
            "contract-expired",
            f"The contract of site '{policy.site}' ended on {policy.expires.isoformat()}, so nothing leaves. Set "
            "'expires' anew, and sign it.",
        )


def refuse_task(policy: Policy, kind: str, task: str) -> None:
    """Refuse what is asked for a task that the contract does not name; a farewell may be for none.

    Raises
    ------
    UserError
        ``contract-task``.
    """
    if ANY in policy.tasks or task in policy.tasks or (kind == FINISH.name and not task):
        return
    raise UserError(
        "contract-task",
        f"Task {task!r} is none of those in the contract ({', '.join(policy.tasks) or 'there is none'}). Nothing was "
        "sent. Add it to 'tasks' and sign the contract if the site wants to take part.",
    )


def refuse_question(policy: Policy, kind: str, run: str, sent: int, today: date) -> MessageRule:
    """Refuse what the contract would not let be answered, whatever the answer; else its rule for that kind.

    Parameters
    ----------
    sent : int
        Messages of this kind that left in this run already, or answers to it that went into a sum.

    Raises
    ------
    UserError
        ``contract-expired``, ``contract-run``, ``contract-message``, ``contract-times``.
    """
    refuse_expired(policy, today)
    rule = policy.messages.get(kind)
    if not any(name == ANY or fullmatch(f"{run_pattern(name)}", run) for name in policy.runs):
        raise UserError(
            "contract-run",
            f"Run {run!r} is none of those in the contract ({', '.join(policy.runs)}). Nothing was sent. Add "
            "it to 'runs' and sign the contract if the site wants to take part.",
        )
    if rule is None:
        raise UserError(
            "contract-message", f"The contract names no message '{kind}' under 'messages'. Nothing was sent."
        )
    if rule.times_max is not None and sent >= rule.times_max:
        raise UserError(
            "contract-times",
            f"Run {run} has had {sent} '{kind}' messages; the contract allows {rule.times_max} "
            f"(messages.{kind}.times_max). Nothing was sent.",
        )
    return rule


def refuse_outside(policy: Policy, outgoing: Outgoing, sent: int, today: date, *, summed: bool = False) -> None:
    """Refuse a message that the contract does not name, line by line (``sent`` as :func:`refuse_question`).

    ``summed``: it does not leave as it is, but goes into a secure sum.

    Raises
    ------
    UserError
        As :func:`refuse_question` and :func:`refuse_task`; ``contract-bytes``, ``contract-tensor``,
        ``contract-numbers``, ``contract-shape``, ``contract-dtype``, ``contract-dp-memory``,
        ``contract-dp-weights``, ``contract-summed``.
    """
    kind = outgoing.kind
    rule = refuse_question(policy, kind, outgoing.run, sent, today)
    refuse_task(policy, kind, outgoing.task)
    _refuse_tensors(kind, rule, outgoing.arrays)
    _refuse_size(kind, rule, outgoing)
    _refuse_without_noise(policy, outgoing)
    if policy.summed.required and not summed and _of_patients(outgoing):
        raise UserError(
            "contract-summed",
            f"A '{kind}' message holds what depends on patients, in the clear, and the contract wants it to leave in "
            "sums only (summed.required). Nothing was sent. The federation's 'aggregation' must be 'secagg'.",
        )


def run_pattern(run: str) -> str:
    """Which run ids a name stands for: the name itself, and the ids that the coordinator makes of it."""
    return run.replace(".", r"\.") + f"({RUN_SUFFIX})?"


def _refuse_size(kind: str, rule: MessageRule, outgoing: Outgoing) -> None:
    arrays = sum(value.nbytes for members in outgoing.arrays.values() for value in members.values())
    size = arrays + len(outgoing.body.model_dump_json().encode())
    if size > rule.bytes_max:
        raise UserError(
            "contract-bytes",
            f"A '{kind}' message has {size:,} bytes; the contract allows {rule.bytes_max:,} "
            f"(messages.{kind}.bytes_max). Nothing was sent.",
        )


def _refuse_tensors(kind: str, rule: MessageRule, arrays: Arrays) -> None:
    for group, members in arrays.items():
        for member, value in members.items():
            name = f"{group}.{member}"
            allowed = rule.tensors.get(name)
            where = f"messages.{kind}.tensors.{name}"
            if allowed is None:
                raise UserError(
                    "contract-tensor",
                    f"A '{kind}' message holds the tensor '{name}', which the contract does not name ({where}). "
                    "Nothing was sent.",
                )
            if str(value.dtype) != allowed.dtype:
                raise UserError(
                    "contract-dtype", f"{where}: is {value.dtype}, the contract says {allowed.dtype}. Nothing was sent."
                )
            if value.size > allowed.numbers_max:
                raise UserError(
                    "contract-numbers",
                    f"{where}: has {value.size:,} numbers, the contract allows {allowed.numbers_max:,} (numbers_max). "
                    "Nothing was sent.",
                )
            if allowed.shape is not None and not _fits(value.shape, allowed.shape):
                raise UserError(
                    "contract-shape",
                    f"{where}: has the shape {list(value.shape)}, the contract says {allowed.shape}. Nothing was sent.",
                )


def _fits(shape: tuple[int, ...], asked: list[int | None]) -> bool:
    return len(shape) == len(asked) and all(want in (None, size) for size, want in zip(shape, asked, strict=True))


def _of_patients(outgoing: Outgoing) -> bool:
    """Whether a message has numbers from patients in it that no mask hides."""
    if outgoing.kind in {kind.name for kind in SUM_STEPS}:
        return False
    body = outgoing.body
    told = isinstance(body, TrainReply) and bool(body.losses or body.loss_sum or body.monitors or body.seconds)
    if isinstance(body, EvaluateReply):
        told = bool(body.loss_sum) or body.cohort.patients is not None or bool(body.cohort.tasks)
    return told or any(outgoing.arrays.values())


def _refuse_without_noise(policy: Policy, outgoing: Outgoing) -> None:
    required = policy.dp_required
    noisy = any(isinstance(charge, GaussianReleases) for charge in outgoing.charges)
    if required.memory and outgoing.arrays.get("statistics") and not noisy:
        raise UserError(
            "contract-dp-memory",
            f"A '{outgoing.kind}' message holds sums of the memory without noise, and the contract asks for noise "
            "(dp_required.memory). Nothing was sent. The federation's 'privacy.memory' must be 'local'.",
        )
    private = any(isinstance(charge, PoissonSteps) for charge in outgoing.charges)
    if required.weights and outgoing.arrays.get("update") and not private:
        raise UserError(
            "contract-dp-weights",
            f"A '{outgoing.kind}' message holds weights trained without DP-SGD, and the contract asks for it "
            "(dp_required.weights). Nothing was sent. The federation's 'privacy.weights' must be 'dpsgd'.",
        )


def contract_for(
    site: str,
    role: str,
    *,
    coordinator_sha256: str,
    runs: list[str],
    tasks: list[str],
    expires: date,
    numbers_max: int = 5_000_000,
    small_numbers: SmallNumbers | None = None,
    budget: Budget | None = None,
) -> Policy:
    """A contract to start from: what a site of that role sends in this version, small numbers withheld."""
    kinds = TENSORS if role == "train" else {kind: TENSORS[kind] for kind in TO_EVALUATORS}
    bytes_max = min(8 * numbers_max + (1 << 20), ARRAYS_BYTES_MAX)
    tensor = TensorRule(numbers_max=numbers_max)
    rules = {
        kind: MessageRule(bytes_max=bytes_max if names else 1 << 20, tensors=dict.fromkeys(names, tensor))
        for kind, names in kinds.items()
    }
    for kind in SUM_STEPS:
        masked = min(2 * MASKED_BYTES * numbers_max, ARRAYS_BYTES_MAX) if kind is MASK else PROTOCOL_BYTES
        protocol = TensorRule(numbers_max=masked, dtype="uint8")
        tensors = dict.fromkeys(TENSORS[kind.name], protocol)
        rules[kind.name] = MessageRule(bytes_max=masked + (1 << 16), tensors=tensors)
    return Policy(
        site=site,
        coordinator_sha256=coordinator_sha256,
        runs=runs,
        tasks=tasks,
        expires=expires,
        messages=rules,
        small_numbers=small_numbers or SmallNumbers(),
        budget=budget or Budget(),
    )
