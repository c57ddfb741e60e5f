"""Whether expression and labels belong to the same patients.

Ids get swapped or scrambled in published tables and in hospitals alike, and nothing in a table's form shows it. A
gene's expression follows the protein that the pathologist stained, so each receptor's gene is held against its own
label; and two tables of the same patients are held against each other. The numbers are for the site's own screen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import binomtest, rankdata

from momkd_fl.data.genomics import Expression, rows_by_patient

Status = Literal["pass", "warn", "fail", "unknown"]

PROTEINS = {
    "ESR1": ("ER", "ESR1", "ESTROGEN", "OESTROGEN"),
    "PGR": ("PR", "PGR", "PROGESTERONE"),
    "ERBB2": ("HER2", "HER-2", "ERBB2"),
}
"""Words in a task's name that say that it is the label of a gene's own protein."""

_FEWEST = 10
"""Patients of each class under which an AUROC says nothing."""
_EXPECTED = 0.7
"""AUROC under which a gene and its own protein are not credibly linked; published ones are about 0.85 to 0.95."""
_CEILING = 0.6
_Z95 = 1.96
_Z_POWER = 0.84
"""Normal quantile of 80 % power."""

_SHARED_PATIENTS = 10
_SHARED_GENES = 5
_CLOSE = 0.95


@dataclass(frozen=True)
class LinkageFinding:
    """A gene against its own protein's label.

    Attributes
    ----------
    positives, negatives : int
        Patients with the gene and the label.
    auroc, low, high : float or None
        AUROC of the gene for the label and its 95 % interval; None where a class is too small.
    sentence : str
        What was found and what to do, without ids.
    """

    gene: str
    task: str
    positives: int
    negatives: int
    auroc: float | None
    low: float | None
    high: float | None
    status: Status
    sentence: str


@dataclass(frozen=True)
class Agreement:
    """Two expression tables of the same patients against each other.

    Attributes
    ----------
    first : float or None
        Share of patients who of all patients in the other table resemble themselves most.
    rank : float or None
        Share of the other patients whom they resemble less than themselves, on average; 0.5 is chance.
    median : float or None
        Median correlation of a patient with themselves.
    """

    patients: int
    genes: int
    first: float | None
    rank: float | None
    median: float | None
    status: Status
    sentence: str


def check_linkage(
    expression: Expression, patients: Sequence[str], statuses: Mapping[str, Mapping[str, int]]
) -> tuple[LinkageFinding, ...]:
    """Hold ESR1, PGR and ERBB2 against every task named after ER, PR or HER2.

    - unknown: fewer than 10 patients of a class have the gene.
    - fail: the interval ends under 0.6; or it contains 0.5 although the numbers would show an AUROC of
      0.7 with 80 % power (its distance from 0.5 is 1.96 + 0.84 standard errors): so no link where even a
      weak one would be seen. A link the wrong way round (labels reversed) fails too.
    - pass: the AUROC is at least 0.7 and the interval lies above 0.5.
    - warn: anything between.

    Ids of some patients only may be swapped without failing: a mixture of linked and unlinked patients
    weakens the AUROC in proportion.

    Parameters
    ----------
    patients : sequence of str
        The label table's patients; expression is found for them as for the cohort.
    statuses : mapping
        Task name → patient → class; only classes 0 and 1 are taken.

    Raises
    ------
    UserError
        As :func:`momkd_fl.data.genomics.rows_by_patient`.
    """
    rows = rows_by_patient(expression, patients)
    findings = []
    for gene, words in PROTEINS.items():
        for task, classes in statuses.items():
            if gene not in expression.genes or not _named_after(task, words):
                continue
            column = expression.values[:, expression.genes.index(gene)]
            pairs = [(column[row], classes[who]) for who, row in rows.items() if classes.get(who) in (0, 1)]
            scores = np.array([score for score, _ in pairs], dtype=np.float64)
            labels = np.array([label for _, label in pairs], dtype=bool)
            findings.append(_finding(gene, task, scores[labels], scores[~labels]))
    return tuple(findings)


def agreement(one: Expression, other: Expression) -> Agreement:
    """Hold two tables of the same patients against each other.

    Every gene is standardised over the shared patients within its table, so that the two may be on
    different scales; then each patient of the one is correlated with each of the other.

    - unknown: fewer than 10 shared patients or 5 shared genes that vary.
    - fail: no more patients resemble themselves most than chance gives (one-sided binomial test against
      1/n, p > 0.01).
    - pass: on average a patient resembles 95 % of the others less than themselves; few genes tell
      patients apart badly, but still leave each near their own.
    - warn: anything between, as when the ids of every tenth patient or more are swapped.
    """
    mine, theirs = (_rows_by_person(table) for table in (one, other))
    people = sorted(set(mine) & set(theirs))
    shared = set(one.genes) & set(other.genes)
    genes = [gene for gene in one.genes if gene in shared]
    left = _standardised(one, [mine[who] for who in people], genes)
    right = _standardised(other, [theirs[who] for who in people], genes)
    varying = np.isfinite(left).all(axis=0) & np.isfinite(right).all(axis=0)
    count = int(varying.sum())
    if len(people) < _SHARED_PATIENTS or count < _SHARED_GENES:
        return Agreement(
            len(people), count, None, None, None, "unknown",
            f"The two tables share {len(people)} patients and {count} genes that vary: too few to compare them "
            f"({_SHARED_PATIENTS} and {_SHARED_GENES} are needed).",
        )  # fmt: skip
    likeness = _unit_rows(left[:, varying]) @ _unit_rows(right[:, varying]).T
    own = np.diagonal(likeness)
    winners = int((likeness.argmax(axis=1) == np.arange(len(people))).sum())
    first, median = winners / len(people), float(np.median(own))
    rank = float((likeness < own[:, None]).sum() / (len(people) * (len(people) - 1)))
    status: Status = "pass" if rank >= _CLOSE else "warn"
    if binomtest(winners, len(people), 1 / len(people), alternative="greater").pvalue > 0.01:
        status = "fail"
    meaning = {
        "pass": "The two tables are of the same patients.",
        "warn": "Some ids may be swapped: compare the tables with their sources.",
        "fail": "That is chance: the ids of one of the tables are scrambled. Do not train with it.",
    }[status]
    sentence = (
        f"{winners} of {len(people)} patients resemble themselves most in the other table ({count} genes, median "
        f"correlation {median:.2f}). {meaning}"
    )
    return Agreement(len(people), count, first, rank, median, status, sentence)


def _named_after(task: str, words: Sequence[str]) -> bool:
    return any(re.search(rf"(?<![A-Z0-9]){re.escape(word)}(?![A-Z0-9])", _spaced(task)) for word in words)


def _spaced(task: str) -> str:
    """'HER2_status' and 'erStatus' as words: a word's end is any sign that is no letter or digit, or a capital."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", " ", task).replace("_", " ").upper()


def _finding(
    gene: str, task: str, positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]
) -> LinkageFinding:
    counts = len(positive), len(negative)
    if min(counts) < _FEWEST:
        return LinkageFinding(
            gene, task, *counts, None, None, None, "unknown",
            f"{gene} against {task}: {counts[0]} positive and {counts[1]} negative patients have it; "
            f"{_FEWEST} of each are needed to judge.",
        )  # fmt: skip
    auroc = _auroc(positive, negative)
    low, high = _interval(auroc, *counts)
    seen = (_EXPECTED - 0.5) / _standard_error(_EXPECTED, *counts) >= _Z95 + _Z_POWER
    status: Status = "warn"
    if high < _CEILING or (low <= 0.5 <= high and seen):
        status = "fail"
    elif auroc >= _EXPECTED and low > 0.5:
        status = "pass"
    meaning = {
        "pass": "Expression and labels belong together.",
        "warn": "That is less than this gene usually shows: compare some patients with their sources.",
        "fail": "They do not belong to the same patients, or the label's values are reversed: compare the ids of the "
        "expression table and of the label table with their sources. Do not train with them.",
    }[status]
    sentence = f"{gene} against {task}: AUROC {auroc:.2f} (95 % interval {low:.2f} to {high:.2f}). {meaning}"
    return LinkageFinding(gene, task, *counts, auroc, low, high, status, sentence)


def _auroc(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> float:
    """Mann–Whitney: the share of pairs in which the positive is higher; ties count half."""
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))


def _standard_error(auroc: float, positives: int, negatives: int) -> float:
    """Hanley and McNeil, Radiology 1982, equation 1."""
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (positives - 1) * (q1 - auroc**2) + (negatives - 1) * (q2 - auroc**2)
    return math.sqrt(max(variance, 0.0) / (positives * negatives))


def _interval(auroc: float, positives: int, negatives: int) -> tuple[float, float]:
    """95 % interval: the AUROCs whose own standard error puts the found one within 1.96 of it.

    Newcombe, Statistics in Medicine 2006; unlike AUROC ± 1.96 standard errors it says something at 0 and 1.
    """

    def outside(true: float) -> float:
        return abs(auroc - true) - _Z95 * _standard_error(true, positives, negatives)

    edge = 1e-9  # at 0 and 1 the standard error is 0, and the equation has a second, idle root
    low = brentq(outside, 0.0, min(auroc, 1 - edge)) if auroc > edge else 0.0
    high = brentq(outside, max(auroc, edge), 1.0) if auroc < 1 - edge else 1.0
    return float(low), float(high)


def _rows_by_person(table: Expression) -> dict[str, int]:
    """Rows by id, a TCGA barcode by its participant; a person with several samples is left out."""
    found: dict[str, list[int]] = {}
    for row, name in enumerate(table.patients):
        barcode = re.match(r"TCGA-\w{2}-\w{4}(?=-0\d|$)", name)
        found.setdefault(barcode.group(0) if barcode else name, []).append(row)
    return {who: rows[0] for who, rows in found.items() if len(rows) == 1}


def _standardised(table: Expression, rows: list[int], genes: Sequence[str]) -> npt.NDArray[np.float64]:
    """Genes with mean 0 and deviation 1 over the rows; a gene that does not vary becomes NaN."""
    place = {gene: number for number, gene in enumerate(table.genes)}
    values = table.values[np.ix_(rows, [place[gene] for gene in genes])].astype(np.float64)
    if not rows:
        return values
    spread = values.std(axis=0)
    spread[spread == 0] = np.nan
    standard: npt.NDArray[np.float64] = (values - values.mean(axis=0)) / spread
    return standard


def _unit_rows(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    centred = values - values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: npt.NDArray[np.float64] = centred / np.where(length == 0, 1, length)
    return unit
