"""The federation's ``aggregation`` section: how the sites' answers become one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from momkd_fl.config.base import Strict

TRIMMED_SITES_MIN = 5
"""Fewest sites of a trimmed mean: with one cut off at either end, three are left."""


class Aggregation(Strict):
    """How answers become one (docs/robust.md, docs/secure-aggregation.md); public, told to the sites.

    A bare word is the kind. Under 'plain' and 'robust' the coordinator sees each site's answer.
    """

    kind: Literal["plain", "robust", "secagg"] = Field(
        "plain",
        description="'plain': the mean of what the sites send, each no longer than clip_norm; 'robust': a middle that "
        "fewer than half of the sites cannot carry away, at the price of holding all their answers at once; 'secagg': "
        "the coordinator sees sums over at least three sites, and no site's part of them.",
    )
    clip_norm: float | None = Field(
        None,
        gt=0,
        description="Largest norm with which a site's weight difference counts; a longer one is scaled down to it. "
        "None: twice what honest training moves, by the learning rate, the steps of privacy.site_patients patients and "
        "the number of weights. influence.jsonl shows what norms there are.",
    )
    rule: Literal["geometric_median", "trimmed_mean"] = Field(
        "geometric_median",
        description="robust: the geometric median of the clipped differences, or their mean, number by number, "
        "without the fifth that is highest and the fifth that is lowest (from 5 sites).",
    )
    patients_max: float = Field(
        2000.0,
        ge=1,
        description="Patients with which one site counts at most in the memory's sums; more are scaled down to it.",
    )
    fraction_bits: int = Field(
        32, ge=8, le=40, description="secagg: a number is rounded to 2^-bits, or coarser where its range is wide."
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
