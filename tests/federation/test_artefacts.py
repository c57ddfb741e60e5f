"""Nothing leaves uncharged: the list of artefacts against the messages' schemas, and what one forgotten one does."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from momkd_fl.config.federation import FederationConfig
from momkd_fl.federation.artefacts import HOLDERS, SOURCES, account, sentences, spoken
from momkd_fl.federation.messages import KINDS
from momkd_fl.privacy.accountant import Artefact, epsilon_of_run, uncharged

PRIVACY: dict[str, Any] = {"memory": "local", "epsilon": 8.0, "releases": 5, "site_patients": 200}
DPSGD: dict[str, Any] = {**PRIVACY, "weights": "dpsgd", "steps": 200}


def config(privacy: dict[str, Any], **sections: Any) -> FederationConfig:
    raw = {
        "name": "run",
        "task": "PR",
        "encoder": {"name": "uni2-h", "dim": 1536},
        "output_dir": "out",
        "members": {"north": {}, "south": {}, "east": {"role": "evaluate"}},
        "memory": {"slots": 2, "assignment": "hard"},
        "training": {"standardise": "slide", "local_steps": 10},
        "privacy": privacy,
    }
    return FederationConfig.model_validate(raw | sections)


def test_every_field_of_every_reply_is_accounted_for() -> None:
    """A new kind, group or field of a reply that nobody lists here makes this fail."""
    fields = set()
    for kind in KINDS:
        several = set(kind.reply_groups) | set(kind.reply.model_fields)
        whole = kind.name in SOURCES
        fields |= {kind.name} if whole else {f"{kind.name}.{name}" for name in several}
    assert fields == set(SOURCES)


def test_every_source_stands_in_the_account_of_a_plain_run() -> None:
    names = {each.name for each in account(config({})).artefacts}
    start = {"slots at the start", "genomic anchors", "scale of the genes and second moments"}
    assert start <= names
    secure = SOURCES["mask"]
    assert set(SOURCES.values()) - {"start of the memory and genomic space", "farewell", secure} <= names
    assert "farewell" in names
    assert secure not in names


def test_a_secure_run_says_of_each_artefact_whether_it_is_summed() -> None:
    plain, secure = config({}), config({}, aggregation="secagg")
    said = {each.name: spoken(each, secure) for each in account(secure).artefacts}
    assert {spoken(each, plain) for each in account(plain).artefacts} == {"public", "without noise"}
    assert [name for name, how in said.items() if how.endswith("in the clear")] == [HOLDERS]
    assert (
        said["weights"]
        == said["validation scores"]
        == said["losses and monitors"]
        == "without noise, summed over sites"
    )
    assert said[SOURCES["mask"]] == said["description of the cohort"] == "public"
    noisy = config(DPSGD, aggregation="secagg")
    assert spoken(next(e for e in account(noisy).artefacts if e.name == "weights"), noisy) == (
        "with noise, charged, summed over sites"
    )
    assert not math.isinf(account(noisy).epsilon), "who holds what is not told in a run with noise"


def test_a_plain_run_has_no_bound_and_says_what_breaks_it() -> None:
    found = account(config({}))
    assert math.isinf(found.epsilon)
    assert {"weights", "validation scores", "genomic anchors"} <= {each.name for each in found.uncharged}


@pytest.mark.parametrize("privacy", [DPSGD, {**PRIVACY, "share": "memory"}])
def test_an_unconditional_run_is_bounded_by_its_budget(privacy: dict[str, Any]) -> None:
    found = account(config(privacy))
    assert found.uncharged == []
    assert 0.985 * 8 < found.epsilon <= 8.0
    assert not found.conditional
    assert account(config(privacy), "evaluate").epsilon == 0


@pytest.mark.parametrize("privacy", [DPSGD, {**PRIVACY, "share": "memory"}])
def test_one_more_artefact_without_noise_makes_it_infinite(privacy: dict[str, Any]) -> None:
    found = account(config(privacy))
    with_one = [*found.artefacts, Artefact("mean age of the patients", True)]
    assert math.isinf(epsilon_of_run(with_one, 1e-5))
    assert [each.name for each in uncharged(with_one)] == ["mean age of the patients"]
    assert math.isinf(account(config({**privacy, "metrics": "exact"})).epsilon)


def test_a_public_artefact_costs_nothing() -> None:
    found = account(config({**PRIVACY, "share": "memory"}))
    assert epsilon_of_run([*found.artefacts, Artefact("a seed", False)], 1e-5) == pytest.approx(found.epsilon)


def test_memory_alone_is_conditional_and_its_anchors_are_not() -> None:
    found = account(config(PRIVACY))
    assert math.isinf(found.epsilon)
    assert found.conditional
    assert found.memory_epsilon == pytest.approx(8.0)
    assert found.anchors_epsilon is not None
    assert found.anchors_epsilon < 8.0
    said = " ".join(sentences(config(PRIVACY)))
    assert "conditional on the weights" in said
    assert "weights" in said.split("carry no noise:")[1]


def test_a_learnt_panel_and_site_scaling_are_charged_to_nobody() -> None:
    plain = account(config({}, genes={"panel": "learnt", "count": 8}))
    assert "gene panel" in {each.name for each in plain.uncharged}


def test_the_account_is_of_the_configuration_and_not_of_a_default() -> None:
    for epsilon in (1.0, 4.0):
        found = account(config({**PRIVACY, "share": "memory", "epsilon": epsilon}))
        assert found.epsilon == pytest.approx(epsilon)
        charged = [each.charge for each in found.artefacts if each.charge is not None]
        assert sum(getattr(charge, "releases", 0) for charge in charged) == 1 + 5 + 5
        assert dataclasses.asdict(charged[0])["sigma"] > 1
