"""Who shares a mask with whom."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.secagg.manifest import least_threshold
from momkd_fl.secagg.pairing import neighbours, risks


def connected(graph: dict[str, tuple[str, ...]], without: frozenset[str] = frozenset()) -> bool:
    left = set(graph) - without
    seen, edge = set(), [min(left)]
    while edge:
        site = edge.pop()
        if site not in seen:
            seen.add(site)
            edge += [peer for peer in graph[site] if peer in left]
    return seen == left


@given(st.integers(3, 120), st.integers(2, 40), st.binary(max_size=8))
def test_the_graph_is_mutual_regular_and_connected(n: int, degree: int, seed: bytes):
    sites = [f"S{number:03d}" for number in range(n)]
    graph = neighbours(sites, degree, seed)
    assert all(site in graph[peer] and site != peer for site in sites for peer in graph[site])
    wanted = min(degree, n - 1)
    assert {len(peers) for peers in graph.values()} <= {wanted, min(wanted + (wanted * n) % 2, n - 1)}
    assert connected(graph)


def test_the_seed_orders_the_ring_and_the_order_of_sites_does_not():
    sites = [f"S{number:03d}" for number in range(100)]
    assert neighbours(sites, 20, b"a") == neighbours(sites[::-1], 20, b"a")
    assert neighbours(sites, 20, b"a") != neighbours(sites, 20, b"b")


def test_a_harary_graph_stays_connected_without_fewer_sites_than_its_degree():
    sites = [f"S{number:03d}" for number in range(60)]
    graph = neighbours(sites, 8, b"")
    site = sites[0]
    assert connected(graph, frozenset(graph[site][:7]))
    assert not connected(graph, frozenset(graph[site]))


def test_up_to_the_limit_every_two_sites_share_a_mask():
    assert neighbours(["A", "B", "C"], 0, b"") == {"A": ("B", "C"), "B": ("A", "C"), "C": ("A", "B")}


def frequencies(n: int, degree: int, corrupt: int, dropped: int, rounds: int) -> tuple[float, float]:
    """How often, over random graphs, a site is bare or the survivors fall apart; and how often a secret is lost."""
    sites = [f"S{number:03d}" for number in range(n)]
    least, rng = least_threshold(degree + 1), random.Random(0)
    unsafe = lost = 0
    for _ in range(rounds):
        graph = neighbours(sites, degree, rng.randbytes(8))
        wicked, gone = frozenset(sites[:corrupt]), frozenset(sites[corrupt : corrupt + dropped])
        bare = any(len(wicked & set(graph[site])) >= least for site in set(sites) - wicked)
        unsafe += bare or not connected(graph, wicked | gone)
        lost += any(len({site, *graph[site]} - gone) < least for site in sites)
    return unsafe / rounds, lost / rounds


@pytest.mark.parametrize(("degree", "corrupt", "dropped"), [(8, 9, 3), (10, 12, 4), (12, 9, 9), (10, 6, 6)])
def test_what_is_simulated_is_below_the_bounds(degree: int, corrupt: int, dropped: int):
    bound = risks(60, degree, least_threshold(degree + 1), corrupt, dropped)
    unsafe, lost = frequencies(60, degree, corrupt, dropped, 150)
    assert unsafe <= bound.unsafe + 0.1
    assert lost <= bound.lost + 0.1


def test_too_few_neighbours_do_go_wrong():
    """Control: with four neighbours, a third corrupt, both happen most of the time, and the bounds say so."""
    assert min(frequencies(60, 4, 20, 20, 30)) > 0.5
    bound = risks(60, 4, least_threshold(5), 20, 20)
    assert min(bound.unsafe, bound.lost) > 0.5


def test_the_documented_degree_is_safe():
    bound = risks(100, 50, least_threshold(51), 20, 10)
    assert bound.unsafe < 1e-9
    assert bound.lost < 1e-6
