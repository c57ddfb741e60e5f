"""``momkd privacy plan``: the same figures for people and programs, and a refusal with its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from momkd_fl.cli import main

USUAL = {"--epsilon": 8, "--patients": 200, "--releases": 10}


def plan(*more: str) -> int:
    given = [str(part) for pair in USUAL.items() for part in pair]
    return main.main(["privacy", "plan", *given, *more])


def figures(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert plan("--json", *more) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_the_usual_plan(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, "--no-weights")
    assert found["epsilon_memory"] == pytest.approx(8)
    assert found["epsilon_run"] == pytest.approx(8)
    assert found["sigma"] == pytest.approx(1.898, abs=5e-4)
    assert found["count_sd"] == pytest.approx(6.0, abs=0.01)
    assert found["cosine"] == pytest.approx(0.78, abs=0.01)
    assert found["share_of_slots_released"] > 0.99
    assert plan("--no-weights") == 0
    said = capsys.readouterr().out
    for text in ("ε = 8.000", "σ = 1.898", "0.78", "100%"):
        assert text in said


def test_weights_without_noise_make_it_infinite(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys)
    assert found["epsilon_run"] is None
    assert found["artefacts"]["weights"] == "without noise"
    assert plan() == 0
    assert "ε is ∞" in capsys.readouterr().out


def test_shares_of_noise_cost_the_same_and_say_what_they_hang_on(capsys: pytest.CaptureFixture[str]) -> None:
    local, shared = (figures(capsys, "--sites", "6", *more) for more in ((), ("--noise-sites", "3")))
    assert (shared["sigma"], shared["epsilon_memory"]) == (local["sigma"], local["epsilon_memory"])
    assert shared["noise_to_signal"] == pytest.approx(local["noise_to_signal"] / 3**0.5)
    assert shared["noise_to_signal_local"] == pytest.approx(local["noise_to_signal"])
    assert shared["epsilon_alone"] > 1.7 * shared["epsilon_memory"]
    assert plan("--sites", "6", "--noise-sites", "3") == 0
    said = capsys.readouterr().out
    for text in ("CONDITIONAL on at least 3 honest sites", f"{shared['epsilon_alone']:.1f}", "charged, conditionally"):
        assert text in said
    for sites, shares in (("3", "3"), ("6", "1")):
        assert plan("--sites", sites, "--noise-sites", shares) == 2
        assert "[plan-noise-sites]" in capsys.readouterr().err


def test_memory_and_private_weights_are_one_budget(capsys: pytest.CaptureFixture[str]) -> None:
    steps = ("--dpsgd-sigma", "1.8", "--dpsgd-rate", "0.1", "--dpsgd-steps", "500")
    found = figures(capsys, "--epsilon", "4", *steps)
    assert found["epsilon_run"] == pytest.approx(7.955, abs=2e-3)
    assert set(found["artefacts"].values()) == {"charged", "public"}
    assert plan(*steps[:4]) == 2
    assert "[plan-dpsgd]" in capsys.readouterr().err
    assert plan(*steps, "--no-weights") == 2


def test_a_rare_class_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, "--rare-share", "0.15", "--sites", "5")
    assert found["cosine_rare_class"] < 0.7 < found["cosine"]
    assert plan("--rare-share", "0.15") == 0
    assert "rarest class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "number"),
    [
        (("--patients", "50", "--releases", "6"), "expected cosine 0.37, under 0.4"),
        (("--patients", "70", "--releases", "3", "--memory-dim", "8"), "slots released"),
    ],
)
def test_a_useless_plan_is_refused_with_its_number(
    more: tuple[str, ...], number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(*more) == 2
    said = capsys.readouterr().err
    assert number in said
    assert "[privacy-plan-useless]" in said


@pytest.mark.parametrize(
    "more", [("--epsilon", "0"), ("--delta", "1"), ("--patients", "0"), ("--epsilon", "nan"), ("--slots", "x")]
)
def test_impossible_numbers_are_refused(more: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        plan(*more)
    assert ended.value.code == 2
    assert more[0] in capsys.readouterr().err


RUN = {
    "name": "run",
    "task": "PR",
    "encoder": {"name": "uni2-h", "dim": 1536},
    "output_dir": "out",
    "members": {**{f"site-{n}": {} for n in range(5)}, "held-out": {"role": "evaluate"}},
    "memory": {"slots": 2, "assignment": "hard", "anchor_iterations": 3},
    "training": {"standardise": "slide"},
    "privacy": {"memory": "local", "epsilon": 8, "releases": 5, "site_patients": 200, "share": "memory"},
}


def file_of(folder: Path, **changes: Any) -> str:
    path = folder / "federation.yaml"
    path.write_text(yaml.safe_dump(RUN | changes), "utf-8")
    return str(path)


def test_the_plan_of_a_run_lists_every_artefact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["privacy", "plan", "--federation", file_of(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["epsilon"] == {"train": pytest.approx(8.0), "evaluate": 0.0}
    assert found["releases"] == {"means": 1, "anchors": 3, "slots": 5}
    assert "weights" not in found["artefacts"]["train"]
    assert "without noise" not in found["artefacts"]["train"].values()
    assert found["worth"]["slots"]["cosine"] > 0.4


def test_one_artefact_without_noise_is_named_in_the_headline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = file_of(tmp_path, privacy={**RUN["privacy"], "metrics": "exact"})
    assert main.main(["privacy", "plan", "--federation", exact]) == 0
    said = capsys.readouterr().out
    assert "ε is ∞" in said
    assert "validation scores" in said


@pytest.mark.parametrize(
    ("privacy", "code"),
    [
        ({"site_patients": 20}, "privacy-plan-useless"),
        ({"releases": 30}, "privacy-rounds"),
        ({"epsilon": 0.1}, "privacy-plan-useless"),
    ],
)
def test_the_plan_of_a_useless_run_is_refused_with_its_number(
    privacy: dict[str, Any], code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = file_of(tmp_path, privacy={**RUN["privacy"], **privacy})
    assert main.main(["privacy", "plan", "--federation", file]) == 2
    assert f"[{code}]" in capsys.readouterr().err


def test_a_plan_needs_its_numbers_or_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["privacy", "plan", "--epsilon", "8"]) == 2
    assert "[plan-options]" in capsys.readouterr().err
