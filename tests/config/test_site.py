"""What a hospital may say of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.config.base import parse
from momkd_fl.config.site import SiteConfig, TaskLabels
from momkd_fl.errors import UserError

FILE = Path("/etc/momkd/site.yaml")


def site(**changes: Any) -> dict[str, Any]:
    return {
        "site": "north",
        "state_dir": "state",
        "data": {
            "features": ["features"],
            "labels": {"path": "labels.csv"},
            "tasks": {"PR": {"column": "PR", "positive": ["1"], "negative": ["0"]}},
        },
        **changes,
    }


def test_a_site_without_a_network_needs_no_keys() -> None:
    config = parse(site(), SiteConfig, FILE)
    assert config.connection is None
    assert config.tls is None
    assert config.role == "train"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"site": "../north"}, "site"),
        ({"site": ""}, "site"),
        ({"role": "observe"}, "role"),
        ({"device": "tpu"}, "device"),
        ({"threads": -1}, "threads"),
        ({"connection": {"url": "http://example.org:9443"}}, "connection.url"),
        ({"connection": {"url": "https://example.org:9443/path"}}, "connection.url"),
        ({"connection": {"url": "https://a:1", "poll_max_s": 0}}, "connection.poll_max_s"),
        ({"telemetry": {"metrics_port": 0}}, "telemetry.metrics_port"),
        ({"telemetry": {"metrics_port": 65536}}, "telemetry.metrics_port"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as problem:
        parse(site(**changes), SiteConfig, FILE)
    assert problem.value.code == "config-value"
    assert f"{FILE}: '{key}'" in problem.value.sentence


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"column": "PR", "positive": ["1"]}, "negative"),
        ({"column": "PR", "negative": ["0"]}, "positive"),
        ({"column": "PR"}, "positive"),
        ({"column": "PR", "positive": ["1"], "negative": ["0", "1"]}, "two classes"),
        ({"column": "PR", "positive": ["1"], "negative": ["0"], "class_names": ["PR negative"]}, "class_names"),
        ({"column": "T", "classes": [["a"], ["b"], ["a"]]}, "two classes"),
        ({"column": "T", "classes": [["a"], ["b"]], "positive": ["a"], "negative": ["b"]}, "not both"),
    ],
)
def test_a_task_names_both_sides_and_no_value_twice(labels: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse(labels, TaskLabels, FILE)


def test_values_are_text_whatever_yaml_made_of_them() -> None:
    labels = parse({"column": "PR", "positive": [1, "pos"], "negative": [0]}, TaskLabels, FILE)
    assert labels.values_by_class == [["0"], ["1", "pos"]]


def test_a_scale_is_declared() -> None:
    raw = site()
    raw["data"]["genomics"] = {"path": "rna.csv"}
    with pytest.raises(UserError, match=r"'data\.genomics\.scale' is missing"):
        parse(raw, SiteConfig, FILE)
    raw["data"]["genomics"] = {"path": "rna.csv", "scale": "counts"}
    with pytest.raises(UserError, match=r"'data\.genomics\.scale'"):
        parse(raw, SiteConfig, FILE)


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
words = st.text(min_size=1, max_size=8)


@given(
    name=names,
    role=st.sampled_from(["train", "evaluate"]),
    threads=st.integers(0, 64),
    poll=st.floats(0.01, 60, allow_nan=False),
    values=st.lists(words, min_size=2, max_size=6, unique=True),
    cut=st.integers(1, 5),
)
def test_a_site_survives_a_round_trip_through_json(
    name: str, role: str, threads: int, poll: float, values: list[str], cut: int
) -> None:
    cut = min(cut, len(values) - 1)
    raw = site(site=name, role=role, threads=threads, connection={"url": "https://a.org", "poll_max_s": poll})
    raw["data"]["tasks"] = {"T": {"column": "c", "positive": values[:cut], "negative": values[cut:]}}
    config = parse(raw, SiteConfig, FILE)
    assert parse(config.model_dump(mode="json"), SiteConfig, FILE) == config
    assert config.data.tasks["T"].values_by_class == [values[cut:], values[:cut]]
