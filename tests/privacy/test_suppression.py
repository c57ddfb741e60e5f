"""Small counts stay inside: not published, not derived from totals, not from two rounds. Checked by an attacker."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog

from momkd_fl.privacy.suppression import Publication, enough_of_each, publish

COUNT = st.one_of(st.integers(0, 14), st.integers(0, 80))
TABLES = st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(lambda shape: arrays(np.int64, shape, elements=COUNT))


def known(publication: Publication) -> tuple[np.ndarray, np.ndarray]:
    """What the world knows, as equations over the cells of the table without totals."""
    rows, columns = (size - 1 for size in publication.counts.shape)
    left, right = [], []
    for i, j in product(range(rows + 1), range(columns + 1)):
        if not publication.withheld[i, j]:
            into = np.zeros((rows, columns))
            into[i if i < rows else slice(None), j if j < columns else slice(None)] = 1
            left.append(into.ravel())
            right.append(publication.counts[i, j])
    return np.array(left).reshape(-1, rows * columns), np.array(right)


def derived(left: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.linalg.matrix_rank(np.vstack([left, wanted])) == np.linalg.matrix_rank(left)) if len(left) else False


def groups(cells: int) -> list[np.ndarray]:
    """Every set of cells: a number of patients that somebody might want to know."""
    return [np.array(chosen, float) for chosen in product((0, 1), repeat=cells) if any(chosen)]


def total(counts: np.ndarray, group: np.ndarray) -> int:
    return abs(round(float(counts[:-1, :-1].ravel() @ group)))


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_no_small_number_of_patients_can_be_derived(cells: np.ndarray) -> None:
    publication = publish(cells)
    left, _ = known(publication)
    for group in groups(cells.size) if cells.size <= 6 else np.eye(cells.size):
        if derived(left, group):
            assert not 0 < total(publication.counts, group) < 11


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_a_small_count_could_be_any_of_eleven_values(cells: np.ndarray) -> None:
    publication = publish(cells)
    left, right = known(publication)
    for at in np.flatnonzero((cells.ravel() > 0) & (cells.ravel() < 11)):
        wanted = np.eye(cells.size)[at]
        least, most = (
            linprog(sign * wanted, A_eq=left if len(left) else None, b_eq=right if len(left) else None)
            for sign in (1, -1)
        )
        assert most.status == 3 or -most.fun - least.fun >= 10 - 1e-6


SERIES = st.tuples(st.integers(1, 2), st.integers(1, 2)).flatmap(
    lambda shape: st.tuples(*(arrays(np.int64, shape, elements=COUNT) for _ in range(3)))
)


@settings(max_examples=60, deadline=None)
@given(st.one_of(SERIES, st.tuples(*(arrays(np.int64, (1, 3), elements=COUNT) for _ in range(3)))))
def test_nor_from_two_rounds(tables: tuple[np.ndarray, ...]) -> None:
    """Of groups that both rounds determine, the smallest: a larger one's change is only the sum of theirs."""
    published: list[Publication] = []
    for cells in tables:
        now = publish(cells, published)
        for before in published:
            both = [each for each in groups(cells.size) if all(derived(known(p)[0], each) for p in (now, before))]
            for group in both:
                if not any((inner <= group).all() and (inner < group).any() for inner in both):
                    assert not 0 < total(now.counts - before.counts, group) < 11
        published.append(now)


def test_one_patient_who_came_between_rounds_is_not_seen() -> None:
    before = publish(np.array([[40, 60], [30, 25]]))
    assert not before.withheld.any()
    again = publish(np.array([[40, 60], [30, 25]]), [before])
    assert again.cells() == before.cells(), "nothing has changed, and nothing is told"
    now = publish(np.array([[41, 60], [30, 25]]), [before])
    assert now.withheld[0, 0]
    assert now.withheld[-1, -1]
    careless = publish(np.array([[41, 60], [30, 25]]))
    assert careless.counts[0, 0] - before.counts[0, 0] == 1, "what is prevented here"
    assert not careless.withheld.any()


def test_what_was_withheld_once_stays_withheld() -> None:
    first = publish(np.array([[40, 60], [30, 25]]))
    second = publish(np.array([[45, 60], [30, 25]]), [first])
    third = publish(np.array([[90, 60], [30, 25]]), [first, second])
    assert second.withheld[0, 0]
    assert (third.withheld == second.withheld).all()


def test_a_sum_known_in_one_round_and_cells_known_in_the_next_do_not_meet() -> None:
    """12 patients became 11: their cells were withheld, their total is withheld, and both could have been added up."""
    rounds: list[Publication] = []
    for cells in ([0, 0, 0], [4, 4, 4], [11, 0, 0]):
        rounds.append(publish(np.array([cells]), rounds))
    assert rounds[1].cells()[0] == [None, None, None, 12]
    assert rounds[2].withheld.all()


def test_a_total_does_not_give_a_small_count_away() -> None:
    publication = publish(np.array([[3, 50, 47]]), column_totals=False)
    assert publication.cells()[0] == [None, 50, None, 100]
    assert publication.cells()[1] == [None, None, None, 100]
    alone = publish(np.array([[3, 50]]), column_totals=False)
    assert alone.cells()[0][0] is None
    assert alone.cells()[0].count(None) == 2


def test_two_small_counts_whose_sum_is_small_are_covered() -> None:
    publication = publish(np.array([[3, 2, 50, 70]]), column_totals=False)
    assert publication.cells()[0] == [None, None, None, 70, 125]


def test_nothing_small_nothing_withheld() -> None:
    assert not publish(np.array([[11, 0, 40], [0, 12, 30]])).withheld.any()


def test_the_site_may_ask_for_more() -> None:
    assert not publish(np.array([[15, 40], [30, 25]])).withheld.any()
    assert publish(np.array([[15, 40], [30, 25]]), minimum=20).withheld[0, 0]


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        publish(np.full((7, 6), 20))
    with pytest.raises(ValueError, match="another table"):
        publish(np.full((2, 2), 20), [publish(np.full((2, 3), 20))])


def test_metrics_need_enough_of_each_class() -> None:
    assert enough_of_each([11, 200])
    assert not enough_of_each([10, 200])
    assert not enough_of_each([0, 200])
    assert not enough_of_each([])
