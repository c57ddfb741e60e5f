"""The contract of one site: what may leave it, as its privacy officer wrote and signed it. What is not named may not
leave."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from momkd_fl.config.base import Strict, parse
from momkd_fl.errors import UserError

ANY: Final = "*"
MINIMUM_CELL: Final = 11
PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Run = Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9_.-]{0,54})$")]
Task = Annotated[str, Field(min_length=1)]
Dtype = Literal["float32", "uint64", "uint8"]


class TensorRule(Strict):
    """One tensor that a message may carry."""

    numbers_max: int = Field(ge=0, description="Most numbers in it.")
    shape: list[int | None] | None = Field(
        None, description="Exact shape; none in it: any length of that axis. None: any shape."
    )
    dtype: Dtype = Field("float32", description="Type of its numbers.")


class MessageRule(Strict):
    """One kind of message that may leave."""

    bytes_max: int = Field(ge=0, description="Most bytes of one message: text and tensors.")
    times_max: int | None = Field(
        None, ge=0, description="Most messages of this kind in one run, counted in the ledger; none: any number."
    )
    tensors: dict[str, TensorRule] = Field(
        default_factory=dict, description="Tensors by name (group.name); any other is refused."
    )


class PrivacyRequired(Strict):
    """Where nothing leaves without noise of differential privacy, added here."""

    memory: bool = Field(False, description="Sums and counts of the memory leave only with noise.")
    weights: bool = Field(False, description="Differences of weights leave only after private training (DP-SGD).")
    noise: Literal["local", "distributed"] = Field(
        "local",
        description="'local': noise is enough by itself, whatever others do. 'distributed': a share of it may do, in a "
        "secure sum; its ε holds only if enough of the other sites are honest.",
    )


class SmallNumbers(Strict):
    """What few patients are. A message with noise is not changed: what it holds is charged to the budget."""

    minimum_cell: int = Field(
        MINIMUM_CELL,
        ge=1,
        description="Smallest count that may be known outside, other than 0. Smaller ones are withheld from the "
        "cohort's description, with what would let one be derived, in this message or beside earlier ones.",
    )
    minimum_per_class: int = Field(
        MINIMUM_CELL,
        ge=1,
        description="Fewest patients of each class behind what leaves; below, sums of genes are refused, a class of "
        "the memory, scores and losses are withheld.",
    )
    minimum_per_slot: int = Field(
        MINIMUM_CELL,
        ge=1,
        description="Fewest patients in a slot of the memory; a class with a smaller slot is withheld for the round.",
    )
    scores: Literal["withheld", "cells", "exact"] = Field(
        "cells",
        description="Histograms of scores: 'withheld'; in 'cells' of at least minimum_cell patients; 'exact', where a "
        "bin may hold one patient.",
    )


class Summed(Strict):
    """What leaves as part of a secure sum only, whatever the coordinator asks for (docs/secure-aggregation.md)."""

    required: bool = Field(
        False, description="Weights, sums, scores and losses leave only masked, for a sum over at least three sites."
    )
    peers: dict[str, PublicKey] = Field(
        default_factory=dict,
        description="Ed25519 public keys (hexadecimal) of the sites that count towards the least number in a sum; "
        "none: every site on the consortium's allow-list.",
    )


class Witnesses(Strict):
    """Other sites that must sign, for each run anew, how far this site's books are before it works (docs/policy.md)."""

    must_answer: int = Field(
        0,
        ge=0,
        description="How many of 'peers' must have signed for the run, and keep signing while it trains; 0: none. More "
        "than half of them is what finds out books that were put back.",
    )
    peers: dict[str, PublicKey] = Field(
        default_factory=dict,
        description="Ed25519 public keys (hexadecimal) of the sites whose word counts; only those that train answer in "
        "each round.",
    )

    @model_validator(mode="after")
    def _enough(self) -> Witnesses:
        if self.must_answer > len(set(self.peers.values())):
            raise ValueError("must_answer is more than there are keys under peers")
        return self


class Budget(Strict):
    """The most that all messages together, of all runs, may tell about one patient."""

    epsilon: float = Field(8.0, gt=0, description="Largest ε over all runs.")
    delta: float = Field(1e-5, gt=0, lt=1, description="Largest δ; ε is reckoned at it.")


class Policy(Strict):
    """The contract. Signed with the site's Ed25519 key; a changed file is refused."""

    site: str = Field(description="The site it is for.")
    coordinator_sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the coordinator's TLS certificate; the site connects to no other.",
    )
    runs: list[Run] = Field(min_length=1, description="Names or ids of the runs; '*': any run of that coordinator.")
    tasks: list[Task] = Field(
        description="Tasks, as a run's settings name them, for which anything is sent; '*': any; []: none."
    )
    expires: date = Field(description="Last day on which anything may leave (UTC).")
    messages: dict[str, MessageRule] = Field(description="Kinds of messages that may leave; any other is refused.")
    dp_required: PrivacyRequired = Field(default_factory=lambda: PrivacyRequired())
    small_numbers: SmallNumbers = Field(default_factory=lambda: SmallNumbers())
    summed: Summed = Field(default_factory=lambda: Summed())
    witnesses: Witnesses = Field(default_factory=lambda: Witnesses())
    budget: Budget = Field(default_factory=lambda: Budget())

    @field_validator("expires", mode="before")
    @classmethod
    def _a_day(cls, value: object) -> object:
        if isinstance(value, int | float):
            raise ValueError("write the day as 2027-01-31")
        return value


def policy_from(content: bytes, path: Path) -> Policy:
    """The contract in ``content``, which was read from ``path``.

    Raises
    ------
    UserError
        ``policy-unreadable``, or as :func:`momkd_fl.config.base.parse`.
    """
    try:
        raw: Any = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError):
        raw = None
    if not isinstance(raw, dict):
        raise UserError(
            "policy-unreadable", f"{path}: is not a contract in YAML, so nothing leaves. Restore the signed file."
        )
    return parse(raw, Policy, path)


def policy_text(policy: Policy) -> str:
    """The contract as YAML, to be read, changed and signed."""
    return yaml.safe_dump(policy.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
