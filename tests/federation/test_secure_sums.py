"""Runs of secure sums in one process: they reach what plain runs reach, whoever drops out; no site is seen alone."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from momkd_fl.errors import UserError
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.messages import SUM_STEPS
from momkd_fl.federation.outcome import Circumstances, results_of
from momkd_fl.federation.simulate import COORDINATOR
from momkd_fl.federation.sum_parts import update_encoding
from momkd_fl.federation.sums import FILE
from momkd_fl.federation.watch import unwatched
from momkd_fl.synth.cohort import SynthSite, write_consortium

SITES = (
    SynthSite("ash", 26),
    SynthSite("birch", 24),
    SynthSite("cedar", 24),
    SynthSite("fir", 24, genomics=False),
    *(SynthSite(name, 24, genomics=False, role="evaluate") for name in ("holly", "oak", "yew")),
)
FOUR = {site.name: "train" for site in SITES[:4]}
THREE = dict.fromkeys(("ash", "birch", "cedar"), "train")
BARE: dict[str, Any] = {"memory": {"source": "random", "slots": 2, "genomics": False}}
"""Nothing is summed before round 1, so that both runs begin from the same bits."""

SLOTS_ONLY: dict[str, Any] = {"memory": {"source": "labels", "mode": "momentum", "slots": 1, "genomics": False}}


def rounds(count: int = 1) -> dict[str, Any]:
    return {"count": count, "quorum": 3, "deadline_s": 5.0}


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hospitals that train, three of them with genomics, and three that evaluate."""
    folder = tmp_path_factory.mktemp("seven")
    write_consortium(folder, SITES, seed=11, dim=16, mean_patches=24, tasks=("PR",))
    return folder


class Run:
    """A run that has ended; ``answers`` as in UnreliableGrid."""

    def __init__(self, made: Any, answers: Any = lambda kind, number, site: True, present: Any = None) -> None:
        self.made, self.grid, self.heard = made, made.grid(), io.StringIO()
        self.grid.answers = answers
        if present is not None:
            self.grid.present = present
        watch = unwatched(made.config, self.heard)
        coordinator = Coordinator(
            made.config, self.grid, watch, threading.Event(), lambda: {}, keys=made.keys[COORDINATOR]
        )
        self.outcome = coordinator.run()

    @property
    def state(self) -> Any:
        return self.outcome.state

    @property
    def said(self) -> str:
        return self.heard.getvalue()


def close(one: Any, other: Any, atol: float) -> None:
    for group in ("weights", "memory", "space"):
        found, wanted = getattr(one, group), getattr(other, group)
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=f"{group}.{name}")


@pytest.fixture(scope="module")
def both(in_process: Any, seven: Path, task: None) -> tuple[Run, Run]:
    """A plain and a secure run with one seed: start, two rounds with genomics, and held-out sites."""
    members = {site.name: site.role for site in SITES}
    plain, secure = (
        Run(in_process(members, hospitals=seven, rounds=rounds(2), aggregation=how)) for how in ("plain", "secagg")
    )
    return plain, secure


def test_a_secure_run_reaches_what_a_plain_one_reaches(both: tuple[Run, Run]) -> None:
    plain, secure = both
    close(secure.state, plain.state, 1e-5)
    for ours, theirs in zip(secure.state.history, plain.state.history, strict=True):
        assert ours.states == theirs.states == dict.fromkeys(FOUR, "trained")
        assert ours.auroc == pytest.approx(theirs.auroc, abs=1e-9), "the histograms are summed exactly"
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-6)
        assert set(ours.losses) == set(theirs.losses)
        for name, value in theirs.losses.items():
            assert ours.losses[name] == pytest.approx(value, abs=1e-5), name
        assert ours.effective_patches == pytest.approx(theirs.effective_patches, abs=1e-3)
    assert secure.outcome.chosen.best.round == plain.outcome.chosen.best.round
    assert secure.outcome.chosen.threshold == plain.outcome.chosen.threshold


def test_held_out_histograms_are_seen_as_one_sum(both: tuple[Run, Run]) -> None:
    plain, secure = both
    by_site = [parcel.arrays["scores"]["counts"] for parcel in plain.outcome.evaluations["test"].values()]
    assert len(by_site) == 3
    np.testing.assert_array_equal(secure.outcome.held_out["counts"], np.sum(by_site, axis=0))
    assert sorted(secure.outcome.evaluations["test"]) == ["holly", "oak", "yew"]
    assert all(not parcel.arrays for parcel in secure.outcome.evaluations["test"].values())
    assert secure.outcome.failures == []


def test_the_report_has_sums_only_and_says_so(both: tuple[Run, Run]) -> None:
    plain, secure = (results_of(run.made.config, run.outcome, Circumstances("simulation", 1.0, 1.0)) for run in both)
    assert (plain.protection.aggregation, secure.protection.aggregation) == ("plain", "secagg")
    assert all(cohort.patients is not None for cohort in plain.cohorts)
    assert all(cohort.patients is None and not cohort.tasks for cohort in secure.cohorts)
    (one,), (other,) = ([r.held_out["federated"]["PR"].pooled] for r in (plain, secure))
    assert other.value == pytest.approx(one.value)
    assert secure.protection.artefacts["train"]["weights"].endswith("summed over sites")


def test_no_site_s_numbers_reach_the_coordinator(in_process: Any, seven: Path, task: None) -> None:
    """What a site would have sent is looked for in every reply and in the coordinator's files; plain ones hold it."""
    found = {}
    for how in ("plain", "secagg"):
        made, planted = in_process(FOUR, hospitals=seven, rounds=rounds(), aggregation=how), []
        for participant in made.participants.values():
            plant(participant, planted)
        run = Run(made)
        wire = b"".join(wire_bytes(reply) for _, _, reply in run.grid.replies)
        files = b"".join(path.read_bytes() for path in made.config.output_dir.rglob("*") if path.is_file())
        assert len(planted) > 20
        found[how] = sum(each in wire or each in files for each in planted)
        if how == "secagg":
            bodies = {kind: str(reply.content["envelope"]["body"]) for kind, _, reply in run.grid.replies}
            assert bodies["join"] == '{"withholds":[]}'
            assert bodies["deal"] == bodies["consent"] == bodies["unmask"] == "{}"
            assert set(json.loads(bodies["mask"])) == {"question"}
            assert "train" not in bodies
    assert found["plain"] > 20, "the search can find them"
    assert found["secagg"] == 0


def plant(participant: Any, planted: list[bytes]) -> None:
    """Keep the bytes of everything a site works out for ``train`` and ``initialise``."""
    for name in ("train", "initialise"):
        work = getattr(participant, name)

        def kept(request: Any, work: Any = work) -> Any:
            body, arrays = work(request)
            for members in arrays.values():
                for value in members.values():
                    part = np.ascontiguousarray(value, np.float32).reshape(-1)
                    told = part[part != np.rint(part)][:4]  # few whole numbers tell no site from another
                    if len(told) == 4 and told.tobytes() in part.tobytes():
                        planted.extend((told.tobytes(), told.astype(np.float64).tobytes()))
            for loss in getattr(body, "loss_sum", []):
                planted.append(json.dumps(loss).encode())
            return body, arrays

        setattr(participant, name, kept)


def wire_bytes(reply: Any) -> bytes:
    parts = [str(dict(record)).encode() for record in reply.content.config_records.values()]
    arrays = [array.data for record in reply.content.array_records.values() for array in record.values()]
    return b"".join([*parts, *arrays])


@pytest.fixture(scope="module")
def plain_rounds(in_process: Any, seven: Path, task: None) -> dict[bool, Run]:
    """One plain round from the same start with (True) and without (False) fir's answer."""
    return {
        there: Run(
            in_process(FOUR, hospitals=seven, rounds=rounds(), **BARE),
            lambda kind, number, site, there=there: there or (kind, site) != ("train", "fir"),
        )
        for there in (True, False)
    }


@pytest.mark.parametrize("step", [kind.name for kind in SUM_STEPS])
def test_a_site_that_drops_out_at_a_step(
    step: str, in_process: Any, seven: Path, plain_rounds: dict[bool, Run]
) -> None:
    """Until its masked answer has arrived it is not in the sum, afterwards it is; the error is the encoding's."""
    made = in_process(FOUR, hospitals=seven, rounds=rounds(), aggregation="secagg", **BARE)
    run = Run(made, lambda kind, number, site: number != 1 or (kind, site) != (step, "fir"))
    inside = step in ("consent", "unmask")
    (record,) = run.state.history
    assert record.states == {**dict.fromkeys(FOUR, "trained"), "fir": "trained" if inside else "missing"}
    assert f"fir dropped out at step '{step}'" in run.said
    sites = 4 if inside else 3
    numbers = sum(value.size for value in run.state.weights.values())
    bound = update_encoding(made.config, numbers).error_max(4) / sites
    plain = plain_rounds[inside].state.weights["histology"]
    found = run.state.weights["histology"]
    rounding = np.spacing(np.abs(plain))
    assert (np.abs(found.astype(np.float64) - plain) <= bound + 2 * rounding).all()
    assert (plain_rounds[True].state.weights["histology"] != plain_rounds[False].state.weights["histology"]).any()


def test_a_run_clips_as_a_plain_one_does(in_process: Any, seven: Path, plain_rounds: dict[bool, Run]) -> None:
    limits = {"clip_norm": 0.005, "patients_max": 5.0}
    plain, secure = (
        Run(in_process(FOUR, hospitals=seven, rounds=rounds(), aggregation={"kind": how, **limits}, **BARE))
        for how in ("plain", "secagg")
    )
    close(secure.state, plain.state, 1e-6)
    unclipped = plain_rounds[True].state.weights["histology"]
    assert np.abs(plain.state.weights["histology"] - unclipped).max() > 1e-4, "the bound is felt"


def test_below_the_threshold_the_round_is_begun_again_with_a_new_number(
    in_process: Any, seven: Path, task: None
) -> None:
    """Of three sites none may go: the first sum fails at its third step, the second is another one."""
    lost: list[str] = []

    def answers(kind: str, number: int, site: str) -> bool:
        if (kind, number, site) == ("mask", 1, "cedar") and not lost:
            lost.append(site)
            return False
        return True

    memory = {**BARE["memory"], "slots": 1}  # no slot is small, so that no list of holders is written twice
    run = Run(in_process(THREE, hospitals=seven, rounds=rounds(), aggregation="secagg", memory=memory), answers)
    assert "Round 1: too few sites stayed to the end of the secure sum." in run.said
    assert [record.states for record in run.state.history] == [dict.fromkeys(THREE, "trained")]
    numbers = json.loads((run.made.config.output_dir / FILE).read_text())
    assert numbers == {run.state.run: 2}, "two of the round, and one for the choice of the last state"
    sites = [json.loads((p.state_dir / FILE).read_text())[run.state.run] for p in run.made.participants.values()]
    assert sites == [2, 2, 2]
    manifests = {bytes(content["secagg"]["manifest"].numpy().tobytes())
                 for content in run.grid.contents if content["envelope"]["kind"] == "join"}  # fmt: skip
    assert len(manifests) == 3


def test_a_learnt_panel_is_the_same(in_process: Any, seven: Path, task: None) -> None:
    sections: dict[str, Any] = {"genes": {"panel": "learnt", "count": 8}, "rounds": rounds()}
    plain, secure = (
        Run(in_process(THREE, hospitals=seven, aggregation=how, **sections)).state.panel for how in ("plain", "secagg")
    )
    assert len(secure) == 8
    assert secure == plain


def test_the_start_needs_every_site_and_is_never_unmasked_over_fewer(in_process: Any, seven: Path, task: None) -> None:
    """Four could do without one in a round. Whoever is back for the second sum of a step is in the start."""
    lost: list[str] = []

    def once(kind: str, number: int, site: str) -> bool:
        if (kind, number, site) == ("mask", 0, "ash") and not lost:
            lost.append(site)
            return False
        return True

    run = Run(in_process(FOUR, hospitals=seven, rounds=rounds(), aggregation="secagg"), once)
    assert lost
    protection = results_of(run.made.config, run.outcome, Circumstances("simulation", 1.0, 1.0)).protection
    genomic = ["ash", "birch", "cedar"]
    assert protection.started == {**dict.fromkeys(("scaling", "moments", "anchors"), genomic), "slots": sorted(FOUR)}

    made = in_process(FOUR, hospitals=seven, rounds=rounds(), aggregation="secagg", **SLOTS_ONLY)
    seen: list[str] = []

    def never(kind: str, number: int, site: str) -> bool:
        seen.append(kind)
        return (kind, number, site) != ("mask", 0, "fir")

    with pytest.raises(UserError, match="fir at step 'mask'") as caught:
        Run(made, never)
    assert caught.value.code == "sum-failed"
    assert seen.count("mask") == 3 * len(FOUR)
    assert "unmask" not in seen
    assert "consent" not in seen


def test_genomics_of_fewer_than_three_sites_is_refused(in_process: Any, seven: Path, task: None) -> None:
    members = dict.fromkeys(("ash", "birch", "fir"), "train")
    with pytest.raises(UserError, match=r"memory\.genomics: false") as caught:
        Run(in_process(members, hospitals=seven, rounds=rounds(), aggregation="secagg"))
    assert caught.value.code == "sum-failed"


def test_a_genomic_site_that_is_gone_leaves_two_whose_sums_stay_masked(
    in_process: Any, seven: Path, task: None
) -> None:
    made = in_process(FOUR, hospitals=seven, rounds=rounds(), aggregation="secagg")
    run = Run(made, lambda kind, number, site: number != 1 or (kind, site) != ("mask", "ash"))
    assert "'update.genomics' was withheld" in run.said
    (record,) = run.state.history
    assert record.states == {"ash": "missing", "birch": "trained", "cedar": "trained", "fir": "trained"}
    assert "reconstruction" not in record.losses
    assert "classification" in record.losses
    from momkd_fl.federation.student import initial_weights, shape_of

    start = initial_weights(made.config, shape_of(made.config, run.state.panel))
    np.testing.assert_array_equal(run.state.weights["genomics"], start["genomics"])
    assert (run.state.weights["histology"] != start["histology"]).any()


def test_two_training_members_are_too_few(in_process: Any, seven: Path, task: None) -> None:
    members = dict.fromkeys(("ash", "birch"), "train")
    with pytest.raises(UserError) as caught:
        Run(in_process(members, hospitals=seven, rounds={"quorum": 2}, aggregation="secagg"))
    assert caught.value.code == "sum-too-few-sites"


def test_a_private_run_is_charged_as_ever(in_process: Any, seven: Path, task: None) -> None:
    sections: dict[str, Any] = {
        "rounds": rounds(),
        "memory": {"slots": 2, "assignment": "hard", "anchor_iterations": 1},
        "training": {"patients_per_step": 8, "standardise": "slide", "precision": "fp32"},
        "privacy": {"memory": "local", "epsilon": 8.0, "releases": 1, "metrics": "none"},
    }
    run = Run(in_process(FOUR, hospitals=seven, aggregation="secagg", **sections))
    assert run.state.history[0].states == dict.fromkeys(FOUR, "trained")
    assert all(hello["holds"] in ([], ["genomics"]) for hello in run.state.members.values()), "no class is told"
    plain = Run(in_process(FOUR, hospitals=seven, aggregation="plain", **sections))
    assert plain.state.history[0].auroc is run.state.history[0].auroc is None
