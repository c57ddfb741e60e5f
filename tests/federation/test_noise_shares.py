"""Noise in shares: sums carry the whole of it to the last bit, or stay closed, and the run says what that hangs on."""

from __future__ import annotations

import dataclasses
import io
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from benchmarks.secagg_round import Consortium, Rehearsal, rehearse
from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.federation import sum_site, sums
from momkd_fl.federation.artefacts import account, sentences
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.noise_shares import EXCESS_LOG10, carries_exactly
from momkd_fl.federation.outcome import Circumstances, results_of
from momkd_fl.federation.private_plan import (
    expected_worth,
    least_counts,
    must_be_useful,
    private_plan,
    slots_release,
)
from momkd_fl.federation.private_release import PrivateSite
from momkd_fl.federation.simulate import COORDINATOR
from momkd_fl.federation.sum_parts import encoding, sites_min, start_parts, train_parts
from momkd_fl.federation.watch import unwatched
from momkd_fl.privacy.accountant import GaussianReleases, joint_epsilon
from momkd_fl.privacy.mechanism import GRID_BITS, Release, noisy_sum
from momkd_fl.privacy.noise import log10_sum_excess
from momkd_fl.secagg.aggregator import Step
from momkd_fl.secagg.encoding import Encoding, decode, encode
from momkd_fl.secagg.manifest import Segment
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.unmasking import Sum
from tests.federation.test_artefacts import PRIVACY, config

SHARES: dict[str, Any] = {**PRIVACY, "memory": "distributed", "noise_sites": 3}
SIX: dict[str, Any] = {"members": {name: {} for name in "abcdef"}, "aggregation": "secagg"}
RELEASE = Release({"histology": (2, 2, 512)}, 1.9, noise_sites=3, joint_parts=2)
LEVEL = 1e-6
"""Chance of a chi-square bound to fail though the variance is right."""


def shared(**changes: Any) -> FederationConfig:
    privacy = {**SHARES, **changes.pop("privacy", {})}
    return config(privacy, **{**SIX, **changes})


def code_of(action: Any) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert caught.value.sentence
    return caught.value.code


def flat(release: Release) -> np.ndarray:
    """The noise of one site without patients, counts weighted as in a patient's vector."""
    found = noisy_sum([], release)
    counts = release.count_weight * release.clip * found.counts["histology"]
    return np.concatenate([found.sums["histology"].ravel(), counts.ravel()])


def has_variance(noise: np.ndarray, variance: float) -> bool:
    """Whether the mean square is as of Gaussians of that variance, both ways."""
    low, high = chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], noise.size)
    return bool(low <= float(noise @ noise) / variance <= high)


def has_at_least(noise: np.ndarray, variance: float) -> bool:
    return bool(float(noise @ noise) / variance >= chi2.ppf(LEVEL, noise.size))


class Round:
    """A sum over six sites' noise alone, of which no more than the least number need stay."""

    def __init__(self, least: int, release: Release = RELEASE, holders: tuple[str, ...] | None = None) -> None:
        self.consortium = Consortium.of(6)
        self.noise = {site: flat(release) for site in self.consortium.sites}
        segment = Segment("sums", release.size, encoding(shared(), 2.0**20), holders)
        values = {site: {"sums": value} for site, value in self.noise.items() if holders is None or site in holders}
        nothing = {site: {} for site in self.noise}
        manifest = self.consortium.manifest((segment,))
        made = rehearse(self.consortium, manifest, {**nothing, **values})
        policies = {site: dataclasses.replace(each, sites_min=least) for site, each in made.policies.items()}
        self.rehearsal = Rehearsal(self.consortium, manifest, made.values, policies)

    def total(self, *gone: str, step: Step = Step.VECTORS) -> Sum:
        return self.rehearsal.run(dict.fromkeys(gone, step))


def test_a_sum_over_the_fewest_honest_sites_has_the_whole_noise_and_over_all_more_of_it() -> None:
    whole = (RELEASE.sigma * RELEASE.sensitivity) ** 2
    made = Round(least=5)
    total = made.total("S05").values["sums"]  # five of six stay: threshold
    assert np.array_equal(total, sum(made.noise[site] for site in list(made.noise)[:5])), "exact, to the last bit"
    assert has_variance(total, whole * 5 / 3)
    honest = total - made.noise["S00"] - made.noise["S01"]  # two of the five join and take their shares off
    assert has_at_least(honest, whole)
    assert has_variance(honest, whole)
    assert has_variance(Round(least=5).total().values["sums"], whole * 6 / 3)


def test_shares_of_half_that_size_are_found_out() -> None:
    """Control: each site adds variance / (2 h)."""
    half = dataclasses.replace(RELEASE, noise_sites=2 * RELEASE.noise_sites)
    made = Round(least=5, release=half)
    honest = made.total("S05").values["sums"] - made.noise["S00"] - made.noise["S01"]
    assert not has_at_least(honest, (RELEASE.sigma * RELEASE.sensitivity) ** 2)


def test_many_releases_of_three_honest_sites() -> None:
    small = dataclasses.replace(RELEASE, parts={"histology": (1, 1, 3)})
    noise = np.concatenate([sum(flat(small) for _ in range(3)) for _ in range(400)])
    assert has_variance(noise, (small.sigma * small.sensitivity) ** 2)


@pytest.mark.parametrize("step", [Step.SHARES, Step.VECTORS])
def test_a_dropout_below_the_least_number_opens_nothing(step: Step) -> None:
    """The threshold of six sites is five; sites that want six of them in a sum give no share away."""
    with pytest.raises(SecAggError) as caught:
        Round(least=6).total("S05", step=step)
    assert caught.value.code == "pinned-too-few"
    Round(least=5).total("S05", step=step)  # the control


def test_who_goes_after_masking_has_given_its_noise() -> None:
    made = Round(least=6)
    total = made.total("S05", step=Step.CONSENTS).values["sums"]
    assert np.array_equal(total, sum(made.noise.values()))


def test_a_segment_of_too_few_holders_stays_masked_and_the_others_come_out() -> None:
    holders = ("S00", "S01", "S02", "S03")
    assert Round(least=4, holders=holders).total().withheld == ()
    closed = Round(least=4, holders=holders).total("S03")
    assert closed.withheld == ("sums",)
    control = Round(least=3, holders=holders).total("S03")
    assert control.withheld == (), "three holders are enough where each adds all of the noise"


@given(
    st.lists(st.integers(-(2**50), 2**50), min_size=1, max_size=8),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.integers(2, 50),
)
@settings(max_examples=200, deadline=None)
def test_a_share_comes_through_the_sum_to_the_last_bit(steps: list[int], per_patient: float, sites: int) -> None:
    width = Encoding(32, 2.0**31)
    values = np.array(steps, np.int64) / 2.0**GRID_BITS / per_patient
    values = np.clip(values, -(2.0**20), 2.0**20)
    total = np.zeros(len(values), np.uint64)
    for _ in range(sites):
        one = np.zeros(len(values), np.uint64)
        encode(values, width, one)
        total += one
    assert [int(x) for x in total.view(np.int64)] == [round(x * 2**32) * sites for x in values.tolist()]
    assert np.array_equal(decode(total, width), sites * values)


def test_single_precision_would_not_carry_a_share() -> None:
    """Control: why shares leave the site's arithmetic in double precision."""
    noise = flat(RELEASE)
    steps = noise * 2.0**GRID_BITS
    assert np.array_equal(steps, np.rint(steps))
    crowded = noise + 300  # sums over patients are of this size
    assert not np.array_equal(crowded.astype(np.float32), crowded)
    assert PrivateSite(shared()).dtype is np.float64
    assert PrivateSite(config(PRIVACY)).dtype is np.float32


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"aggregation": {"kind": "secagg", "fraction_bits": 19}}, "noise-shares-inexact"),
        ({"privacy": {"count_weight": 0.3}}, "noise-shares-inexact"),
        ({"privacy": {"embedding_clip": 8.0}}, "noise-shares-inexact"),
        ({"aggregation": {"kind": "secagg", "sums_limit": 2010.0}}, "noise-shares-range"),
        ({"privacy": {"embedding_clip": 2.0**-20, "gene_reference": "r.csv"}}, "noise-shares-small"),
    ],
)
def test_a_run_whose_shares_do_not_add_up_is_refused(changes: dict[str, Any], code: str) -> None:
    assert private_plan(shared()).noise_sites == 3, "the control"
    assert code_of(lambda: private_plan(shared(**changes))) == code
    assert code_of(lambda: PrivateSite(shared(**changes))) == code, "the site refuses by itself"


def test_what_is_exact() -> None:
    assert carries_exactly(RELEASE, Encoding(20, 2.0**20))
    assert not carries_exactly(RELEASE, Encoding(19, 2.0**20))
    finer = dataclasses.replace(RELEASE, count_weight=4.0)
    assert not carries_exactly(finer, Encoding(21, 2.0**20))
    assert carries_exactly(finer, Encoding(22, 2.0**20))


def test_a_sum_of_discrete_gaussians_differs_from_one_by_nothing_on_this_grid() -> None:
    assert RELEASE.variance_steps > 1e12
    assert log10_sum_excess(RELEASE.variance_steps, 49) < -1e12 < EXCESS_LOG10
    assert log10_sum_excess(2, 3) > EXCESS_LOG10, "on a coarse grid it would"


def test_shares_need_secure_sums_and_one_site_more_than_they_count_on() -> None:
    with pytest.raises(ValueError, match="needs aggregation: secagg"):
        config(SHARES, members=SIX["members"])
    three = {"members": {name: {} for name in "abc"}}
    assert code_of(lambda: must_be_useful(shared(**three))) == "noise-shares-sites"
    must_be_useful(shared(**three, privacy={"noise_sites": 2, "site_patients": 500}))


def test_only_sums_with_noise_need_more_sites() -> None:
    asked, slots = shared(), {"sums.histology": (2, 2, 64), "counts.histology": (2, 2)}
    parts = start_parts(asked, "anchors", {"sums.genomics": (2, 2, 16), "counts.genomics": (2, 2)})
    assert sites_min(asked, parts) == 4
    shapes = {"update": {"histology": (7,)}, "statistics": slots}
    assert sites_min(asked, train_parts(asked, shapes, released=True)) == 4
    assert sites_min(asked, train_parts(asked, shapes, released=False)) == 3
    assert sites_min(config(PRIVACY, **SIX), parts) == 3


def test_sites_without_genomics_hide_patients_of_sites_with_it() -> None:
    """A genomic site's patient is in two modalities; the shares on the histology's sums must be of that noise."""
    one, both = slots_release(shared(), 2.0, genomic=False), slots_release(shared(), 2.0, genomic=True)
    assert one.names == ("histology",)
    assert one.variance_steps == both.variance_steps
    local = config(PRIVACY)
    assert slots_release(local, 2.0, genomic=False).noise_sd < slots_release(local, 2.0, genomic=True).noise_sd


def test_the_same_budget_buys_a_better_memory_and_says_on_what_condition() -> None:
    asked, local = shared(), config(PRIVACY, **SIX)
    plan = private_plan(asked)
    assert plan.sigma == private_plan(local).sigma
    assert joint_epsilon(plan.charges, 1e-5) == pytest.approx(8.0)
    ours, theirs = (expected_worth(each, private_plan(each))["slots"] for each in (asked, local))
    assert ours.noise_to_signal == pytest.approx(theirs.noise_to_signal / 3**0.5)
    least = [least_counts(each, [slots_release(each, 2.0, genomic=True)] * 6)["histology"] for each in (asked, local)]
    assert least[0] - 20 == pytest.approx((least[1] - 20) / 3**0.5)
    found = account(asked)
    assert (found.noise_sites, account(local).noise_sites) == (3, None)
    assert found.alone_epsilon == pytest.approx(joint_epsilon([each.alone for each in plan.charges], 1e-5))  # type: ignore[union-attr]
    assert found.alone_epsilon is not None
    assert found.alone_epsilon > 1.7 * 8
    said = "\n".join(sentences(asked))
    for part in ("CONDITIONAL on at least 3 honest sites", f"ε = {found.alone_epsilon:.1f}", "with a share of noise"):
        assert part in said
    assert "CONDITIONAL" not in "\n".join(sentences(local))


def test_weights_keep_their_own_noise() -> None:
    plan = private_plan(shared(privacy={"weights": "dpsgd", "steps": 200}))
    shares = [each.noise_sites for each in plan.charges if isinstance(each, GaussianReleases)]
    assert set(shares) == {3}
    assert plan.steps is not None
    alone = private_plan(config({**PRIVACY, "weights": "dpsgd", "steps": 200}, **SIX))
    assert alone.steps == plan.steps


FIVE = ("ash", "birch", "cedar", "fir", "oak")


def run_of(
    in_process: Any, hospitals: Any, answers: Any = lambda kind, number, site: True, told: Any = None
) -> tuple[Any, Any, str]:
    """A run, its outcome and what was said; ``told``: what of ``privacy`` one site was told otherwise."""
    made = in_process(
        dict.fromkeys(FIVE, "train"),
        hospitals=hospitals,
        aggregation="secagg",
        rounds={"count": 1, "quorum": 3, "deadline_s": 5.0},
        memory={"slots": 1, "assignment": "hard", "anchor_iterations": 1, "anchor_dim": 4},
        training={"patients_per_step": 8, "precision": "fp32", "standardise": "none"},
        privacy={**SHARES, "releases": 1, "site_patients": 500},
    )
    if told is not None:
        oak = made.participants["oak"]
        inner_config = oak.config_of
        oak.config_of = lambda run: inner_config(run).model_copy(
            update={"privacy": inner_config(run).privacy.model_copy(update=told)}
        )
    charges: list[Any] = []
    for participant in made.participants.values():
        inner = participant.take_charges
        participant.take_charges = lambda inner=inner: charges.extend(taken := inner()) or taken
    grid, heard = made.grid(), io.StringIO()
    grid.answers = answers
    watch = unwatched(made.config, heard)
    outcome = Coordinator(made.config, grid, watch, threading.Event(), lambda: {}, keys=made.keys[COORDINATOR]).run()
    assert {each.noise_sites for each in charges} == {3}
    return made, outcome, heard.getvalue()


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from momkd_fl.synth.cohort import SynthSite, write_consortium

    folder = tmp_path_factory.mktemp("five")
    sites = tuple(SynthSite(name, 14, genomics=name != "oak") for name in FIVE)
    write_consortium(folder, sites, seed=11, dim=16, mean_patches=24, tasks=("PR",))
    return folder


def test_a_run_in_shares_ends_and_its_card_has_both_numbers(in_process: Any, five: Any, task: None) -> None:
    made, outcome, _ = run_of(in_process, five)
    given = results_of(made.config, outcome, Circumstances("simulation", 1.0, 1.0)).protection
    assert outcome.state.history[0].states == dict.fromkeys(FIVE, "trained")
    assert given.noise_sites == 3
    assert given.memory_epsilon == pytest.approx(8.0)
    assert given.alone_epsilon is not None
    assert given.alone_epsilon > given.memory_epsilon


def test_genomic_sums_stay_closed_where_too_few_holders_stay(in_process: Any, five: Any, task: None) -> None:
    """Four of the five have genomics, as many as are needed; one of them is gone in the only round."""
    _, outcome, said = run_of(in_process, five, lambda kind, number, site: (kind, number, site) != ("mask", 1, "fir"))
    assert outcome.state.history[0].states["fir"] == "missing"
    assert "'statistics.sums.genomics' was withheld: fewer than 4" in said
    assert "'statistics.sums.histology' was withheld" not in said


def test_a_site_that_was_told_of_other_shares_is_in_no_sum(
    in_process: Any, five: Any, task: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that tells each site another number would have them add too little between them."""
    _, outcome, _ = run_of(in_process, five, told={"noise_sites": 4})
    assert outcome.state.history[0].states["oak"] == "refused:sum-refused"
    for module in (sums, sum_site):
        monkeypatch.setattr(module, "agreed_noise", lambda config: "")
    _, outcome, _ = run_of(in_process, five, told={"noise_sites": 4})
    assert outcome.state.history[0].states["oak"] == "trained", "the control: unbound, nobody would notice"
