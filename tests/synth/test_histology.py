from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.synth.histology import (
    ARTEFACT,
    FAT,
    LYMPHOID,
    PROGRAMMES,
    STROMA,
    TUMOUR,
    VISIBILITY,
    SyntheticBag,
    generator,
    site_shift,
    slide_bag,
    tissue_model,
    visible_morphology,
)

MODEL = tissue_model(0, 64)
SHIFT = site_shift(MODEL, "oak", stain=0.6, seed=0)


def bags(count: int, **options: object) -> list[SyntheticBag]:
    return [slide_bag(MODEL, np.ones(PROGRAMMES), SHIFT, generator(5, str(n)), **options) for n in range(count)]


def test_signal_directions_are_orthogonal_with_the_stated_norm() -> None:
    np.testing.assert_allclose(MODEL.signal @ MODEL.signal.T, 64 * 0.11**2 * np.eye(PROGRAMMES), atol=1e-12)


def test_morphology_follows_the_programmes_as_far_as_they_are_visible() -> None:
    programmes = np.random.default_rng(0).standard_normal((4000, PROGRAMMES))
    seen = np.stack([visible_morphology(z, generator(0, str(n))) for n, z in enumerate(programmes)])
    correlations = [np.corrcoef(programmes[:, k], seen[:, k])[0, 1] for k in range(PROGRAMMES)]
    np.testing.assert_allclose(correlations, VISIBILITY, atol=0.05)
    assert np.abs(seen).max() <= 1.5


def test_tissue_shares_follow_the_benchmark() -> None:
    tissues = [bag.tissues for bag in bags(400)]
    artefact = np.mean([np.mean(t == ARTEFACT) for t in tissues])
    tumour = np.mean([np.mean(t[t != ARTEFACT] == TUMOUR) for t in tissues])
    rest = [t[(t != ARTEFACT) & (t != TUMOUR)] for t in tissues]
    shares = [np.mean(np.concatenate(rest) == kind) for kind in (STROMA, FAT, LYMPHOID)]
    assert artefact == pytest.approx(0.06, abs=0.01)
    assert tumour == pytest.approx(0.40, abs=0.04)
    np.testing.assert_allclose(shares, [0.60, 0.25, 0.15], atol=0.02)


def test_signal_lies_in_tumour_and_is_partial_in_about_a_third() -> None:
    partial = 0
    for bag in bags(400):
        assert (bag.tissues[bag.signal] == TUMOUR).all()
        partial += bag.signal.sum() < (bag.tissues == TUMOUR).sum()
    assert 0.22 < partial / 400 < 0.40


def test_tumour_patches_lie_together() -> None:
    coherent, scattered = [], []
    rng = np.random.default_rng(0)
    for bag in bags(60):
        cells = {tuple(cell): row for row, cell in enumerate((bag.coords // 512).tolist())}
        pairs = [(a, cells[n]) for (x, y), a in cells.items() for n in ((x + 1, y), (x, y + 1)) if n in cells]
        left, right = np.array(pairs).T
        for tumour, out in ((bag.tissues == TUMOUR, coherent), (rng.permutation(bag.tissues == TUMOUR), scattered)):
            out.append(np.mean(tumour[left] == tumour[right]))
    assert np.mean(coherent) > np.mean(scattered) + 0.15


def test_gain_reaches_the_tumour_with_signal_and_nothing_else() -> None:
    for plain, tinted in zip(bags(10, gain=0.0), bags(10, gain=2.0), strict=True):
        changed = (plain.features != tinted.features).any(axis=1)
        np.testing.assert_array_equal(changed, plain.signal)


def test_the_stain_moves_a_site_and_none_leaves_its_gains_alone() -> None:
    plain, stained = (site_shift(MODEL, "oak", stain=stain, seed=0) for stain in (0.0, 1.2))
    assert not plain.offset.any()
    np.testing.assert_array_equal(plain.scale, stained.scale)
    np.testing.assert_allclose(stained.offset, 2 * SHIFT.offset)
    assert not np.allclose(SHIFT.offset, site_shift(MODEL, "pine", stain=0.6, seed=0).offset)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), mean_patches=st.integers(16, 400))
def test_every_bag_is_sound(seed: int, mean_patches: int) -> None:
    bag = slide_bag(MODEL, np.zeros(PROGRAMMES), SHIFT, generator(seed, "slide"), mean_patches=mean_patches)
    patches = len(bag.features)
    assert 0.375 * mean_patches - 1 <= patches <= 3 * mean_patches
    assert bag.features.dtype == np.float16
    assert np.isfinite(bag.features).all()
    assert len(np.unique(bag.coords, axis=0)) == patches == len(bag.coords)
    assert (bag.coords >= 0).all()


def test_a_warp_leaves_stain_and_gains_alone_and_none_leaves_every_byte() -> None:
    warped = site_shift(MODEL, "oak", stain=0.6, seed=0, warp=1.0)
    assert SHIFT.warp is None
    np.testing.assert_array_equal(warped.scale, SHIFT.scale)
    np.testing.assert_array_equal(warped.offset, SHIFT.offset)
    plain, bent = (slide_bag(MODEL, np.ones(PROGRAMMES), s, generator(5, "x")) for s in (SHIFT, warped))
    np.testing.assert_array_equal(plain.coords, bent.coords)
    np.testing.assert_array_equal(plain.tissues, bent.tissues)
    assert not np.array_equal(plain.features, bent.features)


def test_no_scaling_and_shift_of_features_undoes_a_warp() -> None:
    """The best affine fit of each feature leaves a rest that grows with the warp; of a stain it leaves nothing."""
    values = np.random.default_rng(0).standard_normal((2000, 64)) * 0.8
    rest = []
    for strength in (0.3, 1.0):
        warp = site_shift(MODEL, "oak", stain=0.0, seed=0, warp=strength).warp
        assert warp is not None
        bent = warp(values)
        slope = ((values - values.mean(0)) * (bent - bent.mean(0))).mean(0) / values.var(0)
        rest.append(float(np.sqrt((bent - bent.mean(0) - slope * (values - values.mean(0))).var(0).mean())))
    assert rest[0] > 0.05
    assert rest[1] == pytest.approx(rest[0] / 0.3, rel=0.2)
    other = site_shift(MODEL, "ash", stain=0.0, seed=0, warp=1.0).warp
    assert other is not None
    assert not np.allclose(other(values), warp(values)), "every hospital has its own"
