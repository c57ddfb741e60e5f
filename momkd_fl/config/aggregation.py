"""The federation's ``aggregation`` section: how the sites' answers become one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from momkd_fl.config.base import Strict

TRIMMED_SITES_MIN = 5
"""Fewest sites of a trimmed mean: with one cut off at either end, three are left."""


class Aggregation(Strict):
    """How answers become one (docs/robust.md); public, told to the sites. A bare word is the kind.

    Under both kinds the coordinator sees each site's answer.
    """

    kind: Literal["plain", "robust"] = Field(
        "plain",
        description="'plain': the mean of what the sites send, each no longer than clip_norm; 'robust': a middle that "
        "fewer than half of the sites cannot carry away, at the price of holding all their answers at once.",
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

    @model_validator(mode="before")
    @classmethod
    def _bare_word(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value
