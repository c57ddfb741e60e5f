"""Runs of secure sums in one process: they reach what plain runs reach, and no site is seen alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from momkd_fl.federation.simulate import simulate
from momkd_fl.federation.watch import unwatched
from momkd_fl.synth.cohort import SynthSite, write_consortium

SITES = (
    SynthSite("ash", 26),
    SynthSite("birch", 24),
    SynthSite("cedar", 24),
    SynthSite("fir", 24, genomics=False),
    SynthSite("holly", 24, genomics=False, role="evaluate"),
)
MEMBERS = {site.name: site.role for site in SITES}
ROUNDS = {"count": 2, "quorum": 3, "deadline_s": 5.0}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    write_consortium(folder, SITES, seed=11, dim=16, mean_patches=24, tasks=("PR",))
    return folder


def run(made: Any) -> Any:
    return simulate(made.config, made.participants, unwatched(made.config), threading.Event())


def test_secure(in_process, four) -> None:
    plain = run(in_process(MEMBERS, hospitals=four, rounds=ROUNDS))
    made = in_process(MEMBERS, hospitals=four, rounds=ROUNDS, aggregation="secagg")
    secure = run(made)
    for group in ("weights", "memory", "space"):
        for name, value in getattr(plain.state, group).items():
            np.testing.assert_allclose(getattr(secure.state, group)[name], value, atol=1e-5)
    print(secure.state.history, plain.state.history)
    assert 0
