"""The contract as a file and as sentences."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest

from momkd_fl.config.policy import MessageRule, Policy, TensorRule, policy_from, policy_text
from momkd_fl.config.policy_sentences import sentences
from momkd_fl.errors import UserError

PATH = Path("policy.yaml")
BASE = Policy(
    site="ash",
    coordinator_sha256="ab" * 32,
    runs=["trial"],
    tasks=["PR"],
    expires=date(2027, 3, 4),
    messages={"train": MessageRule(bytes_max=123_456, tensors={"update.histology": TensorRule(numbers_max=7_890)})},
)


def said(policy: Policy) -> str:
    return "\n".join(sentences(policy))


def test_what_is_written_is_read_again() -> None:
    assert policy_from(policy_text(BASE).encode(), PATH) == BASE


CHANGES = {
    "site": {"site": "birch"},
    "coordinator_sha256": {"coordinator_sha256": "cd" * 32},
    "runs": {"runs": ["*"]},
    "tasks": {"tasks": ["PR", "HER2"]},
    "any task": {"tasks": ["*"]},
    "no task": {"tasks": []},
    "expires": {"expires": "2028-01-01"},
    "messages": {"messages": {}},
    "bytes": {"messages": {"train": {"bytes_max": 9, "tensors": {"update.histology": {"numbers_max": 7_890}}}}},
    "times": {
        "messages": {
            "train": {"bytes_max": 123_456, "times_max": 3, "tensors": {"update.histology": {"numbers_max": 7_890}}}
        }
    },
    "numbers": {"messages": {"train": {"bytes_max": 123_456, "tensors": {"update.histology": {"numbers_max": 1}}}}},
    "shape": {
        "messages": {
            "train": {"bytes_max": 123_456, "tensors": {"update.histology": {"numbers_max": 7_890, "shape": [None, 4]}}}
        }
    },
    "dtype": {
        "messages": {
            "train": {
                "bytes_max": 123_456,
                "tensors": {"update.histology": {"numbers_max": 7_890, "dtype": "uint64"}},
            }
        }
    },
    "memory": {"dp_required": {"memory": True}},
    "weights": {"dp_required": {"weights": True}},
    "noise": {"dp_required": {"noise": "distributed"}},
    "cell": {"small_numbers": {"minimum_cell": 12}},
    "class": {"small_numbers": {"minimum_per_class": 12}},
    "slot": {"small_numbers": {"minimum_per_slot": 12}},
    "scores": {"small_numbers": {"scores": "exact"}},
    "witnesses": {"witnesses": {"must_answer": 1, "peers": {"birch": "ab" * 32}}},
    "epsilon": {"budget": {"epsilon": 3.5}},
    "delta": {"budget": {"delta": 1e-7}},
}


@pytest.mark.parametrize("line", CHANGES)
def test_every_line_changes_the_sentences(line: str) -> None:
    changed = Policy.model_validate({**BASE.model_dump(mode="json"), **CHANGES[line]})
    assert said(changed) != said(BASE)


def test_the_sentences_name_what_matters() -> None:
    text = said(BASE)
    for part in ("ash", "ab" * 32, "trial", "2027-03-04", "123,456", "7,890", "ε = 8", "WITHOUT noise", "1 to 10"):
        assert part in text
    exact = said(Policy.model_validate({**BASE.model_dump(mode="json"), "small_numbers": {"scores": "exact"}}))
    assert "ONE patient" in exact


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"[1, 2]", "policy-unreadable"),
        (b"a: [", "policy-unreadable"),
        (b"\xff\xfe\x00", "policy-unreadable"),
        (policy_text(BASE).encode() + b"mesages: {}\n", "config-unknown-key"),
        (re.sub(rb"expires: .*", b"expires: 7", policy_text(BASE).encode()), "config-value"),
        (policy_text(BASE).replace("must_answer: 0", "must_answer: 1").encode(), "config-value"),
        (policy_text(BASE).replace("ab" * 32, "ab").encode(), "config-value"),
        (policy_text(BASE).replace("- trial", "- 'tri.*|x'").encode(), "config-value"),
    ],
)
def test_what_is_no_contract_is_a_sentence(text: bytes, code: str) -> None:
    with pytest.raises(UserError) as caught:
        policy_from(text, PATH)
    assert caught.value.code == code
    assert "policy.yaml" in caught.value.sentence
