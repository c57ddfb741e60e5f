"""A site does to its own answer what a coordinator of plain sums would do to it, and the ranges hold what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.federation.aggregation import RunningMean, clip_bound
from momkd_fl.federation.private_plan import private_plan, slots_release
from momkd_fl.federation.site_sums import combined, gene_sums
from momkd_fl.federation.sum_bounds import bounded, must_be_summable
from momkd_fl.federation.sum_parts import encoding, train_parts, update_encoding
from momkd_fl.privacy.mechanism import noisy_sum

UPDATE = {"histology": (40,), "genomics": (9,)}
PARAMETERS = 49
SUMS = {"sums.histology": (2, 3, 4), "counts.histology": (2, 3)}
PRIVACY: dict[str, Any] = {"memory": "local", "epsilon": 8.0, "releases": 2, "metrics": "none", "site_patients": 500}


def config(aggregation: dict[str, Any] | None = None, **sections: Any) -> FederationConfig:
    raw: dict[str, Any] = {"name": "r", "task": "PR", "encoder": {"name": "e", "dim": 8}, "output_dir": "o"}
    raw |= {"members": {name: {} for name in ("ash", "birch", "cedar")}, "rounds": {"quorum": 3}}
    return FederationConfig.model_validate(raw | {"aggregation": {"kind": "secagg", **(aggregation or {})}, **sections})


def parts_of(run: FederationConfig) -> Any:
    return train_parts(run, {"update": UPDATE, "statistics": SUMS}, released=True)


def code_of(run: FederationConfig) -> str:
    with pytest.raises(UserError) as caught:
        must_be_summable(run)
    assert caught.value.sentence
    return caught.value.code


@given(
    scale=st.floats(1e-6, 1e3), norm=st.none() | st.floats(1e-3, 10.0), genomic=st.booleans(), seed=st.integers(0, 99)
)
def test_a_difference_is_clipped_as_a_plain_sum_clips_it_and_fits_its_encoding(
    scale: float, norm: float | None, genomic: bool, seed: int
) -> None:
    run, rng = config({"clip_norm": norm}), np.random.default_rng(seed)
    branches = [branch for branch in UPDATE if branch == "histology" or genomic]
    update = {branch: (scale * rng.normal(size=UPDATE[branch])).astype(np.float32) for branch in branches}
    ours = bounded({f"update.{name}": value for name, value in update.items()}, run, parts_of(run))
    plain = RunningMean({name: size for name, (size,) in UPDATE.items()}, clip_bound(run, PARAMETERS))
    plain.add("ash", update, 1.0)
    for name in branches:
        np.testing.assert_allclose(ours[f"update.{name}"], plain.steps()[name], rtol=1e-6)
        assert np.abs(ours[f"update.{name}"]).max() <= update_encoding(run, PARAMETERS).limit


@given(most=st.floats(1.0, 100.0), seed=st.integers(0, 99))
def test_sums_count_for_no_more_patients_than_in_a_plain_sum(most: float, seed: int) -> None:
    run, rng = config({"patients_max": most}), np.random.default_rng(seed)
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SUMS.items()}
    made["counts.histology"] = 20 * rng.random(SUMS["counts.histology"]).astype(np.float32)
    ours = bounded({f"statistics.{name}": value for name, value in made.items()}, run, parts_of(run))
    for name, value in combined({"ash": made}, most, robust=False).items():
        np.testing.assert_allclose(ours[f"statistics.{name}"], value, rtol=1e-6)
    genes = {"n": np.array([60.0], np.float32), "sum": rng.normal(size=5).astype(np.float32)}
    ours = bounded({f"statistics.{name}": value for name, value in genes.items()}, run, [])
    for name, value in gene_sums({"ash": genes}, most).items():
        np.testing.assert_allclose(ours[f"statistics.{name}"], value, rtol=1e-6)


def test_ranges_that_a_site_could_leave_are_refused_before_the_run() -> None:
    must_be_summable(config())
    assert code_of(config({"clip_norm": 1e9})) == "sum-range"
    assert code_of(config({"sums_limit": 1999.0})) == "sum-range"
    must_be_summable(config({"sums_limit": 2000.0}))
    private = {"privacy": PRIVACY, "memory": {"slots": 1, "assignment": "hard"}, "training": {"standardise": "none"}}
    assert code_of(config({"sums_limit": 2000.0}, **private)) == "sum-range", "the noise needs room as well"
    must_be_summable(config({"sums_limit": 2300.0}, **private))


def test_a_release_without_patients_stays_within_eight_deviations() -> None:
    """The control: at half a deviation's room it would not."""
    run = config(privacy=PRIVACY, memory={"slots": 1, "assignment": "hard"}, training={"standardise": "none"})
    release = slots_release(run, private_plan(run).sigma, genomic=True)
    found = noisy_sum([], release)
    most = max(float(np.abs(value).max()) for value in found.counts.values())
    assert 0.0 < most < 8 * release.count_sd
    most = max(float(np.abs(value).max()) for value in found.sums.values())
    assert release.noise_sd / 2 < most < 8 * release.noise_sd
    assert encoding(run, run.aggregation.sums_limit).fraction_bits == 32
