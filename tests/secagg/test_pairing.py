"""Who shares a mask with whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.secagg.pairing import neighbours


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
