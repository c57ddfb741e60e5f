from __future__ import annotations

from dataclasses import fields, replace

import pytest

from momkd_fl.config.federation import Compared
from momkd_fl.data.fingerprint import SET_IN, Fingerprint, data_digest, fingerprint, joined, mismatches
from momkd_fl.data.load import load_cohort
from momkd_fl.errors import UserError

FULL = Fingerprint(
    encoder="uni2-h",
    dim=1536,
    task="PR",
    classes=2,
    patch_um=128.0,
    preparation="ffpe",
    scanner="GT450",
    definition="IHC, >= 1%",
    gene_scale="log2tpm",
    genes="abc",
    software="0.1.0",
    magnification=20.0,
    preprocessing="224 px, ImageNet",
    class_names="negative | positive",
)
WARNED = {"scanner", "definition", "software", "preprocessing"}
CHOOSABLE = sorted(Compared.model_fields)


@pytest.fixture
def loaded(hospital):
    task = {"column": "PR", "positive": ["pos"], "negative": ["neg"], "definition": "IHC"}
    site = hospital(genomic=9, tasks={"PR": task}, scanner="GT450", preparation="ffpe")
    return site, load_cohort(site, task="PR", classes=2)


def test_of_a_site(loaded):
    site, cohort = loaded
    found = fingerprint(site, cohort)
    assert found == Fingerprint(
        encoder="house-8",
        dim=8,
        task="PR",
        classes=2,
        patch_um=128.0,
        preparation="ffpe",
        scanner="GT450",
        definition="IHC",
        gene_scale="zscore",
        genes=None,
        software=found.software,
    )
    agreed = fingerprint(site, cohort.with_panel(("G0", "G1"), 1))
    assert agreed.genes != fingerprint(site, cohort.with_panel(("G1", "G0"), 1)).genes is not None
    assert not any(patient.id in str(found) for patient in cohort.patients)


def test_survives_its_dictionary():
    assert Fingerprint.from_dict(FULL.to_dict()) == FULL
    bare = Fingerprint("house", 8, "PR", 2)
    assert Fingerprint.from_dict(bare.to_dict()) == bare


def test_an_encoders_alias_is_the_same_encoder():
    assert Fingerprint.from_dict({**FULL.to_dict(), "encoder": "UNI_v2"}) == FULL


@pytest.mark.parametrize(
    "change", [{"labels": "x"}, {"dim": "many"}, {"dim": None}, {"task": 3}, {"patch_um": "wide"}, {"encoder": []}]
)
def test_a_malformed_dictionary_names_the_field(change):
    with pytest.raises(UserError, match=next(iter(change))) as error:
        Fingerprint.from_dict({**FULL.to_dict(), **change})
    assert error.value.code == "fingerprint-malformed"
    with pytest.raises(UserError, match="task"):
        Fingerprint.from_dict({"encoder": "uni", "dim": 1024, "classes": 2})


@pytest.mark.parametrize("name", [field.name for field in fields(Fingerprint)])
def test_each_field_is_compared(name):
    value = getattr(FULL, name)
    other = replace(FULL, **{name: f"{value}x" if isinstance(value, str) else value * 2})
    (found,) = mismatches(other, FULL)
    assert (found.field, found.ours, found.reference) == (name, getattr(other, name), value)
    assert found.must_match == (name not in WARNED)
    assert mismatches(FULL, FULL) == []


def test_what_is_not_stated_is_not_compared():
    assert mismatches(replace(FULL, gene_scale=None, genes=None, patch_um=None), FULL) == []
    assert mismatches(FULL, replace(FULL, scanner=None)) == []


def test_what_follows_is_the_federation_s_choice_for_each_field_it_may_choose():
    for name in CHOOSABLE:
        value = getattr(FULL, name)
        other = replace(FULL, **{name: f"{value}x" if isinstance(value, str) else value * 2})
        found = {level: mismatches(other, FULL, Compared(**{name: level})) for level in ("must", "required", "warn")}
        assert [one.must_match for level in found for one in found[level]] == [True, True, False]
        assert mismatches(other, FULL, Compared(**{name: "ignore"})) == []
        silent = replace(FULL, **{name: None})
        assert mismatches(silent, FULL, Compared(**{name: "must"})) == []
        (unstated,) = mismatches(silent, FULL, Compared(**{name: "required"}))
        assert (unstated.field, unstated.ours, unstated.must_match) == (name, None, True)


def test_every_field_that_a_person_states_has_its_place_in_the_site_s_file():
    assert {field.name for field in fields(Fingerprint)} - set(SET_IN) == {"genes", "software"}


def test_free_words_are_compared_without_case_and_blanks_and_names_of_classes_in_their_order():
    assert mismatches(replace(FULL, scanner=" gt450 ", preprocessing="224 PX,  imagenet"), FULL) == []
    assert joined(["PR  Negative", "PR positive "]) == joined(["pr negative", "PR positive"])
    swapped = replace(FULL, class_names=joined(["positive", "negative"]))
    assert [one.must_match for one in mismatches(swapped, FULL)] == [True]


def test_the_site_s_file_states_the_new_fields(hospital):
    task = {"column": "PR", "positive": ["pos"], "negative": ["neg"], "class_names": ["PR negative", "PR Positive"]}
    site = hospital(tasks={"PR": task}, magnification=20, preprocessing="224 px")
    found = fingerprint(site, load_cohort(site, task="PR", classes=2))
    assert (found.magnification, found.preprocessing) == (20.0, "224 px")
    assert found.class_names == "pr negative | pr positive"


def test_nominal_patch_edges():
    assert mismatches(replace(FULL, magnification=20.5), FULL) == []
    assert mismatches(replace(FULL, patch_um=119.0), FULL) == []
    assert [found.field for found in mismatches(replace(FULL, patch_um=112.0), FULL)] == ["patch_um"]


def test_data_digest_follows_the_data(loaded, tmp_path, write_trident):
    site, cohort = loaded
    digest = data_digest(cohort)
    assert digest == data_digest(load_cohort(site, task="PR", classes=2, standardise="none"))
    changed = {
        "label": replace(cohort.patients[0], label=1 - cohort.patients[0].label),
        "split": replace(cohort.patients[0], split="test"),
        "genes": replace(cohort.patients[0], genes=cohort.patients[0].genes + 1),
        "slides": replace(cohort.patients[0], slides=cohort.patients[1].slides),
    }
    others = {data_digest(replace(cohort, patients=(first, *cohort.patients[1:]))) for first in changed.values()}
    assert len(others | {digest}) == 5
    write_trident(cohort.patients[0].slides[0], 200)
    assert data_digest(cohort) != digest
