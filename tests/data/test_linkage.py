from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from momkd_fl.config.site import Genomics
from momkd_fl.data.genomics import Expression, read_expression
from momkd_fl.data.linkage import agreement, check_linkage


def _cohort(auroc, positives, negatives, gene="ESR1", seed=0):
    """Expression of one gene whose true AUROC for the label is ``auroc``, and the labels."""
    draw = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [positives, negatives])
    values = draw.normal(size=len(labels)) + labels * np.sqrt(2) * norm.ppf(auroc)
    patients = tuple(f"p{number}" for number in range(len(labels)))
    table = Expression(patients, ("ACTB", gene), np.stack([values * 0, values], 1).astype(np.float32), "zscore")
    return table, dict(zip(patients, labels.tolist(), strict=True))


def _check(auroc, positives, negatives, task="ER", **settings):
    table, labels = _cohort(auroc, positives, negatives, **settings)
    (finding,) = check_linkage(table, table.patients, {task: labels})
    return finding


@pytest.mark.parametrize(
    ("auroc", "positives", "negatives", "status"),
    [
        (0.95, 200, 50, "pass"),
        (0.9999999, 60, 16, "pass"),  # a perfect separation is not an empty finding
        (0.5, 200, 60, "fail"),
        (0.05, 40, 40, "fail"),
        (0.66, 300, 300, "warn"),
        (0.5, 15, 12, "warn"),  # too few to tell 0.7 from 0.5
        (0.95, 200, 9, "unknown"),
    ],
)
def test_status(auroc, positives, negatives, status):
    finding = _check(auroc, positives, negatives)
    assert finding.status == status
    assert (finding.positives, finding.negatives) == (positives, negatives)
    assert (finding.auroc is None) == (status == "unknown")


@given(
    st.lists(st.integers(0, 20), min_size=10, max_size=40),
    st.lists(st.integers(0, 20), min_size=10, max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_auroc_counts_pairs_and_lies_in_its_interval(positive, negative):
    values = np.array([*positive, *negative], dtype=np.float32)[:, None]
    patients = tuple(f"p{number}" for number in range(len(values)))
    labels = {who: int(number < len(positive)) for number, who in enumerate(patients)}
    (finding,) = check_linkage(Expression(patients, ("PGR",), values, "zscore"), patients, {"PR": labels})
    higher = np.mean([(a > b) + 0.5 * (a == b) for a in positive for b in negative])
    assert finding.auroc == pytest.approx(higher)
    assert 0 <= finding.low <= finding.auroc <= finding.high <= 1


def test_interval_covers_the_truth():
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        finding = _check(0.85, 60, 25, seed=int(draw.integers(2**31)))
        covered += finding.low <= 0.85 <= finding.high
    assert 0.91 <= covered / 400 <= 0.99


@pytest.mark.parametrize(
    ("task", "gene"),
    [
        ("ER", "ESR1"), ("ER_IHC", "ESR1"), ("er status", "ESR1"), ("erStatus", "ESR1"), ("PR", "PGR"),
        ("pgr-10pct", "PGR"), ("HER2", "ERBB2"), ("HER2_ISH", "ERBB2"), ("ODX", None), ("grade", None),
        ("PROGNOSIS", None), ("CANCER", None),
    ],
)  # fmt: skip
def test_tasks_by_name(task, gene):
    table, labels = _cohort(0.9, 20, 20)
    table = replace(table, genes=("ESR1", "PGR", "ERBB2"), values=np.repeat(table.values[:, 1:], 3, axis=1))
    assert [found.gene for found in check_linkage(table, table.patients, {task: labels})] == ([gene] if gene else [])


def test_only_patients_with_gene_and_label_count():
    table, labels = _cohort(0.9, 30, 30)
    labels["p0"], labels["p59"] = 2, -1
    labels["stranger"] = 1
    (finding,) = check_linkage(table, [*table.patients[:50], "stranger"], {"ER": labels})
    assert (finding.positives, finding.negatives) == (29, 20)
    assert not any(who in finding.sentence for who in labels)


def _two_tables(people=60, genes=20, noise=0.7, seed=0):
    draw = np.random.default_rng(seed)
    truth = draw.normal(size=(people, genes))
    names = tuple(f"p{number}" for number in range(people))
    symbols = tuple(f"G{number}" for number in range(genes))
    one = Expression(names, symbols, truth.astype(np.float32), "zscore")
    seen = (9 + 2 * truth + noise * draw.normal(size=truth.shape)).astype(np.float32)
    order = draw.permutation(people)
    other = Expression(tuple(names[n] for n in order), symbols[::-1], seen[order][:, ::-1], "log2tpm")
    return one, other


def _scrambled(table, seed=0):
    return replace(table, patients=tuple(np.random.default_rng(seed).permutation(table.patients).tolist()))


def test_two_tables_of_the_same_patients():
    one, other = _two_tables()
    found = agreement(one, other)
    assert (found.status, found.patients, found.genes) == ("pass", 60, 20)
    assert found.first > 0.9
    assert found.median > 0.8
    assert agreement(one, _scrambled(other)).status == "fail"


def test_some_patients_swapped():
    one, other = _two_tables()
    names = list(other.patients)
    names[:20] = names[1:20] + names[:1]
    assert agreement(one, replace(other, patients=tuple(names))).status == "warn"


def test_too_little_in_common():
    one, other = _two_tables()
    assert agreement(one, replace(other, patients=tuple(f"q{name}" for name in other.patients))).status == "unknown"
    few = replace(other, genes=(*other.genes[:4], *(f"X{number}" for number in range(16))))
    assert agreement(one, few).status == "unknown"


@pytest.fixture(scope="module")
def breast(real_data):
    folder = real_data / "tcga-brca"
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    statuses = {
        task: {row["patient"]: int(float(row[task])) for row in rows if row[task]} for task in ("ER", "PR", "HER2")
    }
    pam50 = read_expression(Genomics(path=folder / "pam50_log2rsem.csv.gz", scale="log2tpm"))
    signed = read_expression(Genomics(path=folder / "rna_signedlog.csv.gz", scale="signedlog"))
    return [row["patient"] for row in rows], statuses, pam50, signed


@pytest.mark.real
def test_real_receptors(breast):
    patients, statuses, pam50, signed = breast
    found = check_linkage(pam50, patients, statuses)
    assert [(finding.gene, finding.status) for finding in found] == [
        ("ESR1", "pass"), ("PGR", "pass"), ("ERBB2", "pass"),
    ]  # fmt: skip
    assert [finding.status for finding in check_linkage(signed, patients, statuses)] == ["pass"]


@pytest.mark.real
@pytest.mark.parametrize("seed", range(5))
def test_real_receptors_with_scrambled_ids(breast, seed):
    patients, statuses, pam50, _ = breast
    assert [finding.status for finding in check_linkage(_scrambled(pam50, seed), patients, statuses)] == ["fail"] * 3


@pytest.mark.real
def test_real_receptors_at_each_hospital(breast):
    patients, statuses, pam50, _ = breast
    for hospital in {who[5:7] for who in patients}:
        here = [who for who in patients if who[5:7] == hospital]
        assert {finding.status for finding in check_linkage(pam50, here, statuses)} <= {"pass", "unknown"}


@pytest.mark.real
def test_real_tables_agree_until_scrambled(breast):
    _, _, pam50, signed = breast
    found = agreement(pam50, signed)
    assert (found.status, found.genes) == ("pass", 7)
    assert agreement(pam50, _scrambled(signed)).status == "fail"
