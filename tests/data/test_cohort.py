from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from momkd_fl.data.bags import find_bags, read_bag
from momkd_fl.data.cohort import merge
from momkd_fl.data.ingest import ingest
from momkd_fl.data.load import load_cohort
from momkd_fl.data.store import morton_order
from momkd_fl.errors import UserError


def _load(site, **options):
    return load_cohort(site, **{"task": "PR", "classes": 2, "neighbours": 4, **options})


def _refused(code, call):
    with pytest.raises(UserError) as error:
        call()
    assert error.value.code == code
    return error.value.sentence


@pytest.fixture
def two_slides(tmp_path, hospital, write_trident):
    """A hospital whose first patient has a second slide, smaller than k + 1 patches."""
    site = hospital()
    write_trident(tmp_path / "alpha" / "features" / "alpha00-DX2.h5", 3, seed=99)
    return site


def test_a_patients_slides_are_one_bag_without_edges_between(two_slides):
    cohort = _load(two_slides, standardise="none")
    patient = cohort.patients[0]
    assert [path.stem for path in patient.slides] == ["alpha00-DX1", "alpha00-DX2"]
    bag = cohort.bag(patient)
    raw = [(slide := read_bag(path)).features[morton_order(slide.coords)] for path in patient.slides]
    np.testing.assert_array_equal(bag.features, np.concatenate(raw))
    assert bag.neighbours.shape == (13, 5)
    assert bag.neighbours[:10].max() < 10
    np.testing.assert_array_equal(np.sort(bag.neighbours[10:]), [[-1, -1, 10, 11, 12]] * 3)


def test_site_scaling_is_over_all_slides(two_slides):
    cohort = _load(two_slides)
    features = np.concatenate([cohort.bag(patient).features for patient in cohort.patients])
    assert abs(features.mean()) < 0.05
    assert abs(features.std() - 1) < 0.05
    plain = _load(two_slides, standardise="none").bag(cohort.patients[3]).features
    scaling = cohort.scaling["alpha"]
    np.testing.assert_allclose(cohort.bag(cohort.patients[3]).features, (plain - scaling.mean) / scaling.sd, rtol=1e-5)


def test_slide_scaling_is_within_each_slide(two_slides):
    cohort = _load(two_slides, standardise="slide")
    features = cohort.bag(cohort.patients[0]).features
    for part in (features[:10], features[10:]):
        np.testing.assert_allclose(part.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(part.std(axis=0), 1, atol=1e-3)
    assert cohort.scaling == {}


def test_a_slide_of_one_patch_has_no_scaling_of_its_own(tmp_path, hospital, write_trident):
    site = hospital()
    write_trident(tmp_path / "alpha" / "features" / "alpha01-DX2.h5", 1)
    cohort = _load(site, standardise="slide")
    sentence = _refused("bag-too-few", lambda: cohort.bag(cohort.patients[1]))
    assert "alpha01-DX2.h5" in sentence
    assert len(_load(site).bag(cohort.patients[1]).features) == 12


def test_bags_are_kept_up_to_the_cap(hospital):
    cohort = _load(hospital())
    first = cohort.bag(cohort.patients[0])
    assert cohort.bag(cohort.patients[0]) is first
    uncached = _load(hospital("beta", cache_mb=0))
    again = uncached.bag(uncached.patients[0])
    assert uncached.bag(uncached.patients[0]) is not again
    np.testing.assert_array_equal(uncached.bag(uncached.patients[0]).features, again.features)


def test_the_number_of_patches_is_known_without_reading_them(two_slides):
    cohort = _load(two_slides)
    before = [cohort.patches(patient) for patient in cohort.patients]
    assert cohort.cache.used_bytes == 0
    assert before == [len(cohort.bag(patient).features) for patient in cohort.patients]
    assert before == [cohort.patches(patient) for patient in cohort.patients]


@pytest.mark.parametrize("standardise", ["none", "site", "slide"])
def test_a_large_bag_of_a_store_is_held_once(tmp_path, hospital, write_trident, standardise):
    path = tmp_path / "alpha" / "features" / "alpha01-DX1.h5"
    files = hospital(cache_mb=0)
    for one in find_bags(files.data.features).values():
        rows = 20_000 if one == path else 12
        write_trident(one, features=np.random.default_rng(0).standard_normal((rows, 128)).astype(np.float32))
    ingest(find_bags(files.data.features), tmp_path / "store", k=4, format=None, progress=lambda *_: None)
    site = files.model_copy(update={"data": files.data.model_copy(update={"store": tmp_path / "store"})})
    plain, stored = (_load(one, standardise=standardise) for one in (files, site))
    large = next(patient for patient in stored.patients if path in patient.slides)
    tracemalloc.start()
    bag = stored.bag(large)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(bag.features) >= 20_000
    assert peak < 1.2 * bag.nbytes
    np.testing.assert_array_equal(bag.features, plain.bag(large).features)


def test_damaged_slide_is_named_when_it_is_read(tmp_path, hospital, write_trident):
    site = hospital()
    bad = tmp_path / "alpha" / "features" / "alpha02-DX1.h5"
    write_trident(bad, features=np.full((5, 8), np.nan))
    assert str(bad) in _refused("bag-nan", lambda: _load(site))
    cohort = _load(site, standardise="none")
    assert str(bad) in _refused("bag-nan", lambda: cohort.bag(cohort.patients[2]))


def test_agreed_panel_orders_the_genes(hospital):
    cohort = _load(hospital(genomic=9))
    assert cohort.genes_available == tuple(f"G{number}" for number in range(6))
    assert cohort.panel == ()
    agreed = cohort.with_panel(("g4", "G0", "G2"), 2)
    assert agreed.panel == agreed.genes_available == ("G4", "G0", "G2")
    for before, after in zip(cohort.patients, agreed.patients, strict=True):
        if before.genes is None:
            assert after.genes is None
        else:
            np.testing.assert_array_equal(after.genes, before.genes[[4, 0, 2]])
    assert sum(patient.genes is not None for patient in agreed.patients) == 9


def test_panels_a_site_cannot_serve(hospital):
    cohort = _load(hospital(genomic=9))
    assert "ESR1" in _refused("genes-missing", lambda: cohort.with_panel(("G0", "ESR1"), 1))
    assert "alpha" in _refused("genes-too-few", lambda: cohort.with_panel(("G0", "G1"), 3))
    _refused("genes-no-overlap", lambda: cohort.with_panel(("ESR1", "PGR"), 1))
    histology_only = _load(hospital("beta")).with_panel(("ESR1", "PGR"), 5)
    assert (histology_only.panel, histology_only.genes_available) == (("ESR1", "PGR"), ())


def test_pooled_patients_keep_their_sites_scaling_and_split(hospital):
    one, two = _load(hospital("alpha", genomic=9)), _load(hospital("beta", patients=6))
    panel = ("G1", "G3")
    one, two = one.with_panel(panel, 1), two.with_panel(panel, 1)
    pooled = merge([one, two])
    assert (pooled.site, pooled.role, pooled.panel, pooled.genes_available) == ("pooled", "train", panel, panel)
    assert len(pooled.patients) == len(one.patients) + len(two.patients)
    for split in ("train", "validation"):
        assert len(pooled.labelled(split)) == len(one.labelled(split)) + len(two.labelled(split))
    for cohort in (one, two):
        for patient in cohort.patients:
            other = next(each for each in pooled.patients if each.id == patient.id)
            np.testing.assert_array_equal(pooled.bag(other).features, cohort.bag(patient).features)
    assert pooled.exclusions == {"(missing)": 2, "equivocal": 2}


def test_pooled_ids_that_collide_get_their_site(tmp_path, hospital, make_site):
    one = _load(hospital("alpha"))
    root = tmp_path / "alpha"
    two = _load(make_site("beta", features=[root / "features"], labels={"path": root / "labels.csv"}))
    pooled = merge([one, two])
    assert len({patient.id for patient in pooled.patients}) == len(one.patients) * 2
    assert pooled.patients[0].id == "alpha/alpha00"


def test_cohorts_that_cannot_be_pooled(hospital):
    one = _load(hospital("alpha", genomic=9))
    assert "'dim' is 8" in _refused("merge-mismatch", lambda: merge([one, _load(hospital("beta", dim=9))]))
    other = _load(hospital("gamma", genomic=9)).with_panel(("G1",), 1)
    _refused("merge-mismatch", lambda: merge([one, other]))
