"""A site's sums for the memory: two classes or more, patients without genes, and classes that a site lacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from momkd_fl.data.cache import BagCache, PatientBag
from momkd_fl.data.cohort import Cohort, Patient
from momkd_fl.data.graph import neighbours
from momkd_fl.federation.memory_bank import move_slots
from momkd_fl.federation.site_statistics import memory_statistics
from momkd_fl.model.baselines import build
from momkd_fl.model.memory import GenomicSpace, Memory
from momkd_fl.model.momkd import StudentShape
from momkd_fl.privacy.statistics import MemoryStatistics
from momkd_fl.training.sampling import Packer

DIM, GENES, ANCHOR_DIM, SLOTS, S = 12, 8, 5, 3, 16
CPU = torch.device("cpu")
MakeSite = Callable[..., Cohort]


@pytest.fixture
def make_site() -> MakeSite:
    def make(labels: list[int], genomic: list[bool], classes: int, seed: int = 0) -> Cohort:
        """A site whose patients have these labels, some of them genes, and nine patches each."""
        rng = np.random.default_rng(seed)
        cache, people = BagCache(1 << 24), []
        coords = np.stack(np.meshgrid(np.arange(3), np.arange(3)), -1).reshape(-1, 2).astype(np.float32)
        for number, (label, has) in enumerate(zip(labels, genomic, strict=True)):
            slides = (Path(f"s{seed}-{number}.h5"),)
            cache.put(("", slides), PatientBag(rng.standard_normal((9, DIM)).astype(np.float32), neighbours(coords, 4)))
            genes = rng.standard_normal(GENES).astype(np.float32)
            people.append(Patient(f"p{number}", slides, label, genes if has else None, "train"))
        panel = tuple(f"G{gene}" for gene in range(GENES))
        return Cohort(
            site="a", role="train", task="T", classes=classes, patients=tuple(people), exclusions={}, dropped={},
            encoder="e", dim=DIM, patch_um=None, panel=panel, genes_available=panel, gene_scale="tpm", neighbours=4,
            standardise="none", scaling={}, cache=cache,
        )  # fmt: skip

    return make


def memory_of(classes: int, *, anchors: bool = True) -> Memory:
    draw = torch.Generator().manual_seed(0)

    def directions(dim: int) -> torch.Tensor:
        drawn = torch.randn(classes, SLOTS, dim, generator=draw)
        return drawn / drawn.norm(dim=-1, keepdim=True)

    axes = torch.linalg.qr(torch.randn(GENES, ANCHOR_DIM, generator=draw)).Q.T
    space = GenomicSpace(torch.zeros(GENES), torch.ones(GENES), axes, torch.ones(ANCHOR_DIM))
    return Memory(directions(S), directions(ANCHOR_DIM) if anchors else None, space)


def sums_of(cohort: Cohort, memory: Memory, *, genomics: bool = True) -> MemoryStatistics:
    anchor_dim = None if memory.anchors is None else ANCHOR_DIM
    mode = "momentum" if memory.anchors is None else "anchors"
    shape = StudentShape(
        DIM, 16, 2, S, 4, cohort.classes, SLOTS, GENES, anchor_dim, 0.2, memory_mode=mode
    )  # fmt: skip
    packer = Packer(cohort, np.zeros(GENES, np.float32), np.ones(GENES, np.float32))
    model = build(shape, 0)
    return memory_statistics(model, memory, packer, cohort.labelled("train"), CPU, "soft", genomics=genomics)


@pytest.mark.parametrize("anchors", [True, False])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_every_patient_counts_once_in_its_own_class(make_site: MakeSite, classes: int, anchors: bool) -> None:
    labels = [number % classes for number in range(4 * classes + 1)]
    genomic = [number % 3 != 0 for number in range(len(labels))]
    total = sums_of(make_site(labels, genomic, classes), memory_of(classes, anchors=anchors))
    by_class = np.bincount(labels, minlength=classes)
    with_genes = np.bincount([label for label, has in zip(labels, genomic, strict=True) if has], minlength=classes)
    for modality, want in (("histology", by_class), ("genomics", with_genes)):
        assert total.sums[modality].shape == (classes, SLOTS, S)
        np.testing.assert_allclose(total.counts[modality].sum(axis=1), want, rtol=1e-6)
        assert (np.linalg.norm(total.sums[modality], axis=-1).sum(axis=1) <= want + 1e-6).all()


def test_a_patient_without_genes_adds_histology_and_nothing_to_the_genomic_sums(make_site: MakeSite) -> None:
    """Its missing genes are not zeros: the genomic sums are those of the site without that patient."""
    labels, genomic = [0, 1, 2, 2], [True, True, True, False]
    whole = make_site(labels, genomic, 3)
    without = dataclasses.replace(whole, patients=whole.patients[:3])
    one, other = sums_of(whole, memory_of(3)), sums_of(without, memory_of(3))
    np.testing.assert_allclose(one.sums["genomics"], other.sums["genomics"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.counts["genomics"], other.counts["genomics"])
    assert one.counts["histology"][2].sum() == pytest.approx(other.counts["histology"][2].sum() + 1)


def test_a_site_without_genomics_sends_histology_alone(make_site: MakeSite) -> None:
    nobody = make_site([0, 1, 2], [False] * 3, 3)
    assert not sums_of(nobody, memory_of(3)).counts.get("genomics", np.zeros(1)).any()
    assert set(sums_of(nobody, memory_of(3), genomics=False).sums) == {"histology"}


def test_a_class_that_no_site_has_keeps_its_slots_and_the_others_move(make_site: MakeSite) -> None:
    memory = memory_of(3)
    assert memory.slots is not None
    parts = [sums_of(make_site([0, 1] * 6, [True] * 12, 3, seed=seed), memory) for seed in (1, 2)]
    total = parts[0] + parts[1]
    assert not total.sums["histology"][2].any()
    slots = memory.slots.numpy()
    new, movement = move_slots(slots, total.sums, total.counts, momentum=0.5, genomic_weight=0.5, min_count=0.5)
    np.testing.assert_array_equal(new[2], slots[2])
    assert movement.moved_share == pytest.approx(2 / 3)
    assert all((new[label] != slots[label]).any() for label in (0, 1))
