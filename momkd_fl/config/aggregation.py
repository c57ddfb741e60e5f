"""The federation's ``aggregation`` section: what the coordinator sees of the sites' answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from momkd_fl.config.base import Strict


class Aggregation(Strict):
    """How answers become one (docs/secure-aggregation.md); public, told to the sites. A bare word is the kind."""

    kind: Literal["plain", "robust", "secagg"] = Field(
        "plain",
        description="'plain': the coordinator adds up what each site sends; 'secagg': it sees sums over at least three "
        "sites, and no site's part of them.",
    )
    fraction_bits: int = Field(
        32, ge=8, le=40, description="secagg: a number is rounded to 2^-bits, or coarser where its range is wide."
    )
    update_limit: float = Field(
        1024.0, gt=0, le=1e6, description="secagg: largest norm of a site's weight difference; it scales a longer one."
    )
    sums_limit: float = Field(
        2.0**20, gt=1, le=2.0**30, description="secagg: range of the memory's sums and counts, scores and losses."
    )
    threshold: int | None = Field(
        None, ge=3, le=50, description="secagg: sites that must stay to the end; none: two thirds of n, and one."
    )
    step_deadline_s: float = Field(
        60.0,
        gt=0,
        description="secagg: how long each of the four steps after the training waits for its sites, in seconds.",
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_word(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _built(self) -> Aggregation:
        if self.kind == "robust":
            raise ValueError("aggregation.kind: robust is not built in this version; use plain or secagg")
        return self
