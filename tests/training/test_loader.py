"""Packs ahead of the step are the packs of a plain loop, bit for bit, and hold no more memory than they may."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest
import torch

from momkd_fl.data.cache import BagCache, PatientBag
from momkd_fl.data.cohort import Cohort, Patient
from momkd_fl.errors import UserError
from momkd_fl.model.batch import PackedBags
from momkd_fl.training import loader
from momkd_fl.training.loader import scoring_packs, training_packs
from momkd_fl.training.resident import DeviceCache
from momkd_fl.training.sampling import Packer, balanced_batches

MakeCohort = Callable[..., Cohort]
MakePacker = Callable[[Cohort], Packer]
CPU = torch.device("cpu")


def plain(packer: Packer, steps: int, per_step: int, max_patches: int | None) -> Iterator[tuple[PackedBags, int]]:
    """One step after the other, without a thread: the order in which a round draws."""
    rng = np.random.default_rng(7)
    for chosen in balanced_batches(packer.cohort.labelled("train"), steps, per_step, rng):
        yield packer.pack(chosen, rng, max_patches), int(rng.integers(2**63))


def assert_same(one: PackedBags, other: PackedBags, dtype: torch.dtype = torch.float32) -> None:
    for name, value in vars(other).items():
        wanted = value.to(dtype) if name == "features" else value
        got = getattr(one, name)
        assert (torch.equal if isinstance(value, torch.Tensor) else np.array_equal)(got, wanted), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_patches", [None, 20])
@pytest.mark.parametrize("per_step", [1, 4])
@pytest.mark.parametrize("resident_bytes", [None, 0, 20_000, 1 << 30])
def test_training_packs_are_those_of_a_plain_loop(
    make_cohort: MakeCohort,
    make_packer: MakePacker,
    dtype: torch.dtype,
    max_patches: int | None,
    per_step: int,
    resident_bytes: int | None,
) -> None:
    packer = make_packer(make_cohort())
    expected = plain(packer, 12, per_step, max_patches)
    patients, rng = packer.cohort.labelled("train"), np.random.default_rng(7)
    packer.resident = None if resident_bytes is None else DeviceCache(resident_bytes)
    packs = training_packs(packer, patients, 12, per_step, rng, max_patches, CPU, dtype, ahead_bytes=30_000)
    for (batch, seed), (wanted, wanted_seed) in zip(packs, expected, strict=True):
        assert seed == wanted_seed
        assert_same(batch, wanted, dtype)
    if packer.resident is not None:
        assert 0 < packer.resident.used_bytes <= resident_bytes or resident_bytes == 0


def test_scoring_packs_are_whole_bags_in_order(
    make_cohort: MakeCohort, make_packer: MakePacker, monkeypatch: pytest.MonkeyPatch
) -> None:
    packer = make_packer(make_cohort())
    patients = packer.cohort.labelled("train")
    monkeypatch.setitem(loader.SCORE_PATCHES, "cpu", 100)
    found = []
    for chosen, batch in scoring_packs(packer, patients, CPU, torch.float32):
        assert_same(batch, packer.pack(chosen))
        assert len(batch.features) <= 100
        found.extend(chosen)
    assert found == patients
    assert list(scoring_packs(packer, [], CPU, torch.float32)) == []


def test_a_bag_is_read_once_for_a_pack(
    make_cohort: MakeCohort, make_packer: MakePacker, monkeypatch: pytest.MonkeyPatch
) -> None:
    packer = make_packer(make_cohort(patients=12))
    reads: Counter[str] = Counter()
    read = Cohort.bag

    def counted(cohort: Cohort, patient: Patient) -> PatientBag:
        reads[patient.id] += 1
        return read(cohort, patient)

    monkeypatch.setattr(Cohort, "bag", counted)
    list(scoring_packs(packer, packer.cohort.patients, CPU, torch.float32))
    assert reads == Counter(patient.id for patient in packer.cohort.patients)


def test_a_bag_alone_in_float32_is_handed_out_as_it_is(make_cohort: MakeCohort, make_packer: MakePacker) -> None:
    packer = make_packer(make_cohort())
    patients = packer.cohort.labelled("train")
    cached = {packer.cohort.bag(patient).features.ctypes.data for patient in patients}
    packs = training_packs(packer, patients, 6, 1, np.random.default_rng(0), None, CPU, torch.float32)
    assert {batch.features.data_ptr() for batch, _ in packs} <= cached


def test_a_bag_alone_is_scored_as_it_was_read_and_trained_in_the_step_s_precision(
    make_cohort: MakeCohort, make_packer: MakePacker, monkeypatch: pytest.MonkeyPatch
) -> None:
    packer = make_packer(make_cohort())
    patients = packer.cohort.labelled("train")[:3]
    monkeypatch.setitem(loader.SCORE_PATCHES, "cpu", 1)
    for (patient,), batch in scoring_packs(packer, patients, CPU, torch.bfloat16):
        assert batch.features.data_ptr() == packer.cohort.bag(patient).features.ctypes.data
    rng = np.random.default_rng(0)
    for batch, _ in training_packs(packer, patients, 3, 1, rng, None, CPU, torch.bfloat16):
        assert batch.features.dtype == torch.bfloat16


def test_features_lie_in_three_buffers_at_most(make_cohort: MakeCohort, make_packer: MakePacker) -> None:
    packer = make_packer(make_cohort())
    rng = np.random.default_rng(0)
    packs = training_packs(packer, packer.cohort.labelled("train"), 40, 4, rng, 16, CPU, torch.bfloat16)
    assert len({batch.features.data_ptr() for batch, _ in packs}) <= 3


def test_a_patient_that_cannot_be_read_is_named_at_its_step(make_cohort: MakeCohort, make_packer: MakePacker) -> None:
    packer = make_packer(make_cohort())
    some = packer.cohort.labelled("validation")[:3]
    kept = BagCache[PatientBag](1 << 20)
    for patient in some[:2]:
        kept.put(patient.key, packer.cohort.bag(patient))
    packer.cohort = dataclasses.replace(packer.cohort, cache=kept)
    before = threading.active_count()
    with pytest.raises(UserError) as problem:
        list(scoring_packs(packer, some, CPU, torch.float32))
    assert (problem.value.code, str(some[2].slides[0]) in problem.value.sentence) == ("bag-missing", True)
    assert threading.active_count() == before


def test_a_loop_that_breaks_leaves_no_thread(make_cohort: MakeCohort, make_packer: MakePacker) -> None:
    packer = make_packer(make_cohort())
    before = threading.active_count()
    rng, patients = np.random.default_rng(0), packer.cohort.labelled("train")
    with closing(training_packs(packer, patients, 1000, 4, rng, None, CPU, torch.float32)) as packs:
        for _ in packs:
            break
    assert threading.active_count() == before
