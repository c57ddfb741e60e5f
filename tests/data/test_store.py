"""The store gives back what was put in, only while its source is unchanged, and survives damage and crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.config.site import SiteConfig
from momkd_fl.data.bags import find_bags, read_bag
from momkd_fl.data.graph import neighbours
from momkd_fl.data.ingest import ingest, verify
from momkd_fl.data.load import load_cohort
from momkd_fl.data.store import INDEX, PAGE_BYTES, Store, morton_order
from momkd_fl.errors import UserError

Hospital = Callable[..., SiteConfig]


def quiet(what: str, done: int, total: int) -> None:
    pass


def put(site: SiteConfig, folder: Path, **options):
    return ingest(find_bags(site.data.features), folder, k=4, format=None, progress=quiet, **options)


@pytest.mark.parametrize("tile_bytes", [1, 200, 1 << 20])
def test_what_comes_back_is_what_went_in(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile_bytes: int
) -> None:
    monkeypatch.setattr("momkd_fl.data.store.TILE_BYTES", tile_bytes)
    site = hospital(patients=6)
    done = put(site, tmp_path / "store")
    assert (done.written, done.unchanged, done.problems) == (8, 0, [])
    store = Store(tmp_path / "store")
    for path in find_bags(site.data.features).values():
        bag, entry = read_bag(path), store.find(path)
        assert entry is not None
        features = np.concatenate([values.copy() for _, values in store.features(entry)])
        (coords, near), order = store.graph(entry), morton_order(bag.coords)
        np.testing.assert_array_equal(features.astype(np.float32), bag.features[order])
        np.testing.assert_array_equal(coords, bag.coords[order])
        assert features.dtype == np.float16
        np.testing.assert_array_equal(near, neighbours(bag.coords[order], 4))
        assert entry.header() == bag.header
        assert all(place % PAGE_BYTES == 0 for place, _, _ in entry.sections.values())
    assert verify(tmp_path / "store", quiet) == []


def test_training_sees_the_same_patients_either_way(hospital: Hospital, tmp_path: Path) -> None:
    plain = hospital(patients=9)
    put(plain, tmp_path / "store")
    stored = hospital(patients=9, store=tmp_path / "store")
    put(stored, tmp_path / "store")  # the hospital's files were written again
    one, two = (load_cohort(site, task="PR", classes=2, neighbours=3) for site in (plain, stored))
    np.testing.assert_array_equal(one.scaling["alpha"].mean, two.scaling["alpha"].mean)
    np.testing.assert_array_equal(one.scaling["alpha"].sd, two.scaling["alpha"].sd)
    for a, b in zip(one.patients, two.patients, strict=True):
        bag, packed = one.bag(a), two.bag(b)
        np.testing.assert_array_equal(packed.features, bag.features)
        np.testing.assert_array_equal(packed.neighbours, bag.neighbours)
        assert one.patches(a) == two.patches(b) == len(bag.features)


def test_only_what_changed_is_ingested_again(hospital: Hospital, tmp_path: Path) -> None:
    site, store = hospital(patients=6), tmp_path / "store"
    put(site, store)
    assert put(site, store).unchanged == 8
    paths = list(find_bags(site.data.features).values())
    with h5py.File(paths[0], "a") as file:
        file["features"][0] = 3.0
    paths[1].unlink()
    assert Store(store).find(paths[0]) is None, "a source that changed is not read from the store"
    done = put(site, store)
    assert (done.written, done.unchanged, done.dropped) == (1, 6, 1)
    assert len(list(store.glob("*.bin"))) == 7
    assert read_bag(paths[0]).features[0, 0] == 3.0


def test_a_slide_that_cannot_be_read_does_not_stop_the_others(hospital: Hospital, tmp_path: Path) -> None:
    site = hospital(patients=6)
    paths = list(find_bags(site.data.features).values())
    paths[2].write_bytes(b"no features")
    done = put(site, tmp_path / "store")
    assert (done.written, [problem.code for problem in done.problems]) == (7, ["bag-not-hdf5"])


def test_verify_names_a_flipped_bit_and_a_short_shard(hospital: Hospital, tmp_path: Path) -> None:
    site, folder = hospital(patients=3), tmp_path / "store"
    put(site, folder)
    entries = list(Store(folder).entries.values())
    raw = bytearray((folder / entries[0].shard).read_bytes())
    raw[100] ^= 1
    (folder / entries[0].shard).write_bytes(raw)
    os.truncate(folder / entries[1].shard, 50)
    wrong = verify(folder, quiet)
    assert len(wrong) == 2
    assert entries[0].source in wrong[0]
    assert Store(folder).find(Path(entries[1].source)) is None, "a short shard is not read"


def test_a_line_cut_off_by_a_crash_costs_one_slide(hospital: Hospital, tmp_path: Path) -> None:
    site, folder = hospital(patients=4), tmp_path / "store"
    put(site, folder)
    index = folder / INDEX
    os.truncate(index, index.stat().st_size - 7)
    assert len(Store(folder).entries) == 5
    assert put(site, folder).written == 1
    assert verify(folder, quiet) == []


def test_kill_9_loses_at_most_the_slide_in_work(hospital: Hospital, tmp_path: Path) -> None:
    site, folder = hospital(patients=40, dim=64), tmp_path / "store"
    program = (
        "import sys; from pathlib import Path; from momkd_fl.data.bags import find_bags\n"
        "from momkd_fl.data.ingest import ingest\n"
        "ingest(find_bags([Path(sys.argv[1])]), Path(sys.argv[2]), k=4, format=None,"
        " progress=lambda w, d, t: print(d, flush=True))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(site.data.features[0]), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 5:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(0.05)
    kept = len(Store(folder).entries)
    assert kept >= 5
    done = put(site, folder)
    assert done.unchanged == kept
    assert done.written == 42 - kept
    assert verify(folder, quiet) == []
    assert not list(folder.glob("*.new"))


def test_no_store_and_a_foreign_index_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError) as missing:
        Store(tmp_path)
    assert missing.value.code == "store-missing"
    (tmp_path / INDEX).write_text('{"version": 9}\n')
    with pytest.raises(UserError) as damaged:
        Store(tmp_path)
    assert damaged.value.code == "store-damaged"
    assert "line 1" in damaged.value.sentence


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=60))
def test_the_order_is_a_permutation_along_the_curve(places: list[tuple[int, int]]) -> None:
    order = morton_order(np.array(places, np.float32))
    assert sorted(order.tolist()) == list(range(len(places)))


def test_the_order_walks_quadrant_by_quadrant() -> None:
    side = np.arange(4, dtype=np.float32)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    walked = grid[morton_order(grid)]
    for start in range(0, 16, 4):
        quadrant = walked[start : start + 4]
        assert np.ptp(quadrant, axis=0).max() <= 1
