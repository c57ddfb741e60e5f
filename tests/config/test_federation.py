"""What a coordinator may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.config.base import parse
from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError

FILE = Path("/etc/momkd/federation.yaml")


def federation(**changes: Any) -> dict[str, Any]:
    return {
        "name": "run",
        "task": "PR",
        "encoder": {"name": "uni2-h", "dim": 1536},
        "output_dir": "out",
        "members": {"north": {}, "south": {}, "east": {"role": "evaluate"}},
        **changes,
    }


def test_a_short_file_has_working_defaults() -> None:
    config = parse(federation(), FederationConfig, FILE)
    assert config.memory.mode == "anchors"
    assert config.strategy.name == "fedavg"
    assert config.rounds.quorum <= 2
    assert config.output_dir == FILE.parent / "out"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rounds": {"quorum": 3}}, "only 2 members train"),
        ({"members": {"east": {"role": "evaluate"}}}, "no member has role 'train'"),
        ({"members": {}}, "'members'"),
        ({"members": {"a/b": {}}}, "members"),
        ({"model": {"hidden_dim": 33, "heads": 2}}, "multiple of model.heads"),
        ({"strategy": {"site_weights": {"east": 2.0}}}, "'east'"),
        ({"aggregation": {"kind": "robust", "rule": "trimmed_mean"}}, "trimmed_mean needs rounds.quorum of 5"),
        ({"aggregation": "krum"}, "aggregation"),
        ({"aggregation": {"clip_norm": 0}}, "clip_norm"),
        ({"strategy": {"site_weights": {"west": 2.0}}}, "'west'"),
        ({"strategy": {"name": "fedsgd"}}, "'strategy.name'"),
        ({"memory": {"mode": "learnt"}}, "'memory.mode'"),
        ({"memory": {"momentum": 1.5}}, "'memory.momentum'"),
        ({"model": {"dropout": 1}}, "'model.dropout'"),
        ({"training": {"validation_fraction": 0}}, "'training.validation_fraction'"),
        ({"encoder": {"name": "uni2-h", "dim": 0}}, "'encoder.dim'"),
        ({"classes": 1}, "'classes'"),
        ({"seed": -1}, "'seed'"),
        ({"listen": {"port": 70000}}, "'listen.port'"),
        ({"class_names": ["PR negative"]}, "class_names lists 1 classes, but classes is 2"),
        ({"fingerprint": {"scanner": "perhaps"}}, "'fingerprint.scanner'"),
        ({"genes": {"panel": "learnt", "count": 3}}, "fewer than genes.minimum"),
        ({"genes": {"panel": "shared", "candidates": "odx21"}}, "genes.candidates"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_it_starts(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as problem:
        parse(federation(**changes), FederationConfig, FILE)
    assert problem.value.code == "config-value"
    assert said in problem.value.sentence


PRIVATE: dict[str, Any] = {
    "memory": {"assignment": "hard"},
    "training": {"standardise": "slide", "local_steps": 5},
    "privacy": {"memory": "local", "epsilon": 8.0},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": {"assignment": "balanced"}}, "memory.assignment: hard"),
        ({"memory": {"assignment": "soft"}}, "memory.assignment: hard"),
        ({"memory": {"assignment": "hard", "slots": 5}}, "memory.slots is 5"),
        ({"memory": {"assignment": "hard", "mode": "gradient"}}, "memory.mode 'anchors' or 'momentum'"),
        ({"model": {"architecture": "gated_attention"}}, "model.architecture: momkd"),
        ({"model": {"memory_dim": 65}}, "at most 64"),
        ({"training": {"standardise": "site"}}, "standardise: site"),
        ({"genes": {"panel": "learnt"}}, "learnt"),
        ({"losses": {"soft_labels": 0.5}}, "losses.soft_labels"),
        ({"rounds": {"patience": 3}}, "rounds.patience"),
        ({"privacy": {"memory": "local"}}, "privacy.epsilon is missing"),
        ({"privacy": {"memory": "local", "epsilon": 8, "memory_epsilon": 4}}, "memory_epsilon"),
        ({"privacy": {"memory": "local", "epsilon": 8, "minimum_count": 5}}, "minimum_count"),
        ({"privacy": {"weights": "dpsgd", "epsilon": 8}}, "privacy.steps"),
        ({"privacy": {"weights": "dpsgd", "epsilon": 8, "share": "memory"}}, "of no use"),
        (
            {"privacy": {"weights": "dpsgd", "epsilon": 8, "steps": 9}, "training": {"standardise": "none"}},
            "training.local_steps",
        ),
        (
            {"privacy": {"weights": "dpsgd", "epsilon": 8, "steps": 9}, "strategy": {"name": "fedprox"}},
            "proximal",
        ),
        ({"privacy": {"weights": "dpsgd", "epsilon": 8, "steps": 9}, "losses": {"logits": 1.0}}, "losses.logits"),
        ({"privacy": {"share": "memory"}, "strategy": {"name": "fedadam"}}, "averages no weights"),
        ({"privacy": {"share": "memory"}, "encoder": {"name": "small", "dim": 32}}, "exceeds encoder.dim"),
    ],
)
def test_what_would_break_a_guarantee_is_refused_with_a_sentence(changes: dict[str, Any], said: str) -> None:
    parse(federation(**PRIVATE), FederationConfig, FILE)
    with pytest.raises(UserError) as problem:
        parse(federation(**{**PRIVATE, **changes}), FederationConfig, FILE)
    assert said in problem.value.sentence


def test_one_teacher_at_a_time() -> None:
    with pytest.raises(UserError, match="two teachers"):
        parse(federation(losses={"logits": 0.5, "soft_labels": 0.5}), FederationConfig, FILE)


def test_private_runs_measure_nothing_unless_they_are_told_to() -> None:
    assert parse(federation(), FederationConfig, FILE).privacy.measured
    assert not parse(federation(**PRIVATE), FederationConfig, FILE).privacy.measured
    exact = {**PRIVATE, "privacy": {**PRIVATE["privacy"], "metrics": "exact"}}
    assert parse(federation(**exact), FederationConfig, FILE).privacy.measured


@given(
    rounds=st.integers(1, 500),
    quorum=st.integers(1, 2),
    slots=st.integers(1, 64),
    momentum=st.floats(0, 1),
    mode=st.sampled_from(["anchors", "momentum", "gradient", "frozen"]),
    seed=st.integers(0, 2**31),
    weight=st.none() | st.floats(0.01, 100),
)
def test_a_federation_survives_a_round_trip_through_json(
    rounds: int, quorum: int, slots: int, momentum: float, mode: str, seed: int, weight: float | None
) -> None:
    config = parse(
        federation(
            rounds={"count": rounds, "quorum": quorum},
            memory={"slots": slots, "momentum": momentum, "mode": mode},
            strategy={"site_weights": {} if weight is None else {"north": weight}},
            seed=seed,
        ),
        FederationConfig,
        FILE,
    )
    assert parse(config.model_dump(mode="json"), FederationConfig, FILE) == config
