"""One right message of every kind, for whoever changes them: the fuzzing, and the tests of what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from momkd_fl.evaluation.results import Cohort, TaskCohort
from momkd_fl.federation.messages import (
    SECAGG,
    Body,
    Consent,
    ConsentReply,
    Deal,
    DealReply,
    Evaluate,
    EvaluateReply,
    Finish,
    FinishReply,
    Hello,
    HelloReply,
    Initialise,
    InitialiseReply,
    Join,
    JoinReply,
    Mask,
    MaskReply,
    Plan,
    PlanReply,
    Select,
    SelectReply,
    Train,
    TrainReply,
    Unmask,
    UnmaskReply,
)

SITE = "north"
COHORT = Cohort(
    site=SITE,
    role="train",
    patients=120,
    slides=130,
    with_genomics=None,
    tasks={"PR": TaskCohort(labelled=118, prevalence=0.4, excluded={"equivocal": "<11"})},
)
BODIES: dict[str, tuple[Body, Body]] = {
    "hello": (
        Hello(federation={"name": "trial", "seed": 3, "classes": 2, "losses": {"memory": 0.5}, "genes": None}),
        HelloReply(
            site=SITE,
            role="train",
            software="0.1.0",
            genomics=True,
            genes=["ESR1", "PGR"],
            fingerprint={"encoder": "uni2-h", "tile_um": 112.5, "width": 1536, "stain": None},
            clock_unix_s=1.7e9,
        ),
    ),
    "select": (Select(candidates=["ESR1", "PGR"]), SelectReply()),
    "plan": (Plan(panel=["ESR1", "PGR"], architecture="a" * 64), PlanReply(architecture="a" * 64)),
    "initialise": (Initialise(step="slots", iteration=2), InitialiseReply()),
    "train": (
        Train(proximal_mu=0.01, learning_rate_share=1.0),
        TrainReply(seconds={"fit": 1.5}, losses={"task": 0.4}, loss_sum=[3.0, 4.5], monitors={"effective_patches": 9}),
    ),
    "evaluate": (
        Evaluate(split="test", threshold=0.5, calibration=[1.0, -0.1], final=True),
        EvaluateReply(loss_sum=[1.0, 2.0], cohort=COHORT),
    ),
    "join": (Join(question="train", body="{}", site_weights={SITE: 2.0}), JoinReply()),
    "deal": (Deal(), DealReply()),
    "mask": (Mask(), MaskReply(question="train")),
    "consent": (Consent(), ConsentReply()),
    "unmask": (Unmask(), UnmaskReply()),
    "finish": (Finish(outcome="stopped", code="interrupted", sentence="The run was stopped."), FinishReply()),
}
SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "empty": np.zeros((0, 4), np.float32)}
BYTES = {"a": np.arange(250, 256, dtype=np.uint8)}


def contents(groups: Iterable[str]) -> dict[str, Any]:
    """Something small in each group: bytes of a message of secure aggregation, float32 elsewhere."""
    return {group: BYTES if group == SECAGG else SMALL for group in sorted(groups)}
