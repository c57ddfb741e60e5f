from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.data.cache import BagCache, PatientBag


def _bag(patches):
    return PatientBag(np.zeros((patches, 4), dtype=np.float32), np.zeros((patches, 3), dtype=np.int32))


def test_least_recently_used_goes_first():
    size = _bag(10).nbytes
    assert size == 10 * (16 + 12)
    cache = BagCache(2 * size)
    for key in "ab":
        cache.put(key, _bag(10))
    assert cache.get("a") is not None
    cache.put("c", _bag(10))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.get("c") is not None


def test_nothing_is_kept_without_room():
    cache = BagCache(0)
    cache.put("a", _bag(1))
    assert cache.get("a") is None


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 20))), st.integers(0, 2000))
def test_bytes_stay_under_the_cap(puts, capacity):
    cache = BagCache(capacity)
    for key, patches in puts:
        cache.put(key, _bag(patches))
        kept = [bag for other in range(9) if (bag := cache.get(other)) is not None]
        assert cache.used_bytes == sum(bag.nbytes for bag in kept) <= capacity
