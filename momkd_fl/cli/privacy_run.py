"""``momkd privacy plan --federation FILE``: what a run lets out, with which noise, and what that bounds."""

from __future__ import annotations

import json
import math
from pathlib import Path

from momkd_fl.cli.frame import OK
from momkd_fl.config.base import load
from momkd_fl.config.federation import FederationConfig
from momkd_fl.federation.artefacts import account, sentences, spoken
from momkd_fl.federation.private_plan import expected_worth, must_be_useful, private_plan


def finite(value: float | None) -> float | None:
    """JSON has no infinity: None."""
    return None if value is None or math.isinf(value) else value


def plan_of_run(file: Path, *, as_json: bool) -> int:
    """Print the account of a run as its file describes it.

    Raises
    ------
    UserError
        What the file gives rise to, and as :func:`momkd_fl.federation.private_plan.must_be_useful`.
    """
    config = load(file, FederationConfig)
    plan, worths = private_plan(config), expected_worth(config, private_plan(config))
    if as_json:
        accounts = {role: account(config, role) for role in ("train", "evaluate")}
        found = {
            "epsilon": {role: finite(one.epsilon) for role, one in accounts.items()},
            "memory_epsilon": accounts["train"].memory_epsilon,
            "conditional": accounts["train"].conditional,
            "noise_sites": accounts["train"].noise_sites,
            "alone_epsilon": finite(accounts["train"].alone_epsilon),
            "sigma": plan.sigma,
            "dpsgd_sigma": plan.steps.sigma if plan.steps else None,
            "releases": dict(plan.releases),
            "worth": {part: vars(one) for part, one in worths.items()},
            "artefacts": {
                role: {each.name: spoken(each, config) for each in one.artefacts} for role, one in accounts.items()
            },
        }
        print(json.dumps(found))
    else:
        lines = sentences(config)
        if plan.sigma is not None:
            parts = ", ".join(f"{part} {count}" for part, count in plan.releases.items())
            lines.append(f"Noise multiplier of the memory's releases ({parts}): σ = {plan.sigma:.3f}.")
        if plan.steps is not None:
            lines.append(f"Noise multiplier of {plan.steps_count} steps of DP-SGD: σ = {plan.steps.sigma:.3f}.")
        lines += [
            f"Expected of the memory's {part}: cosine {one.cosine:.2f} to the true direction, {one.released:.0%} of "
            "them released."
            for part, one in worths.items()
        ]
        print("\n".join(lines))
    must_be_useful(config)
    return OK
