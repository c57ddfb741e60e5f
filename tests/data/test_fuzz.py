"""Feature files with bytes changed, inserted, cut out or cut off: read in full or refused with a sentence.

A crash of HDF5 ends the run, a hang ends it after a minute with a traceback, and the memory that all of it takes
stays far below the cap of one file, because no file can have declared more than it holds.

Text attributes of variable length are read in another process, since HDF5 does crash and loop on their heap
(:mod:`momkd_fl.data.attributes`); the files that showed it are made again below.
"""

from __future__ import annotations

import faulthandler
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
from bag_writers import TOOLS
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from momkd_fl.data.bags import read_bag, read_header
from momkd_fl.errors import UserError

HANG_S = 60
GROWTH_MB = 300


def _gzipped(root: Path, slide: str, features: np.ndarray, coords: np.ndarray) -> Path:
    path = root / f"{slide}.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("features", data=features, chunks=(4, features.shape[1]), compression="gzip", shuffle=True)
        file.create_dataset("coords", data=coords, chunks=(4, 2), compression="gzip", fletcher32=True)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory, bag_values):
    """One folder per kind of file: the bag, and the files of which one is changed."""
    root = tmp_path_factory.mktemp("good")
    features, coords = bag_values(11, 4)
    made: dict[str, tuple[Path, list[Path]]] = {}
    for name, write in {**{name: tool.write for name, tool in TOOLS.items()}, "gzip": _gzipped}.items():
        (root / name).mkdir()
        path = write(root / name, "S", features, coords)
        made[name] = path, sorted(file for file in (root / name).rglob("*") if file.is_file())
    return made


@pytest.fixture
def watched():
    """End the whole run on a hang; afterwards compare the most memory ever held."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield lambda: faulthandler.dump_traceback_later(HANG_S, exit=True)
    faulthandler.cancel_dump_traceback_later()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_MB * 1024


def _mutated(content: bytes, data: st.DataObject) -> bytes:
    changed = bytearray(content)
    places = st.integers(0, max(len(content) - 1, 0))
    for place in data.draw(st.lists(places, max_size=6)):
        changed[place] = data.draw(st.sampled_from([0, 1, 2, 4, 8, 16, 64, 127, 128, 254, 255]) | st.integers(0, 255))
    match data.draw(st.sampled_from(["keep", "number", "cut off", "cut out", "insert", "swap"])):
        case "number":  # sizes, offsets and counts are eight aligned bytes in HDF5
            place = data.draw(places) // 8 * 8
            number = data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1, len(content)]))
            changed[place : place + 8] = number.to_bytes(8, "little")
        case "cut off":
            del changed[data.draw(places) :]
        case "cut out":
            place = data.draw(places)
            del changed[place : place + data.draw(st.integers(1, 64))]
        case "insert":
            place = data.draw(places)
            changed[place:place] = data.draw(st.binary(min_size=1, max_size=64))
        case "swap":
            one, other = data.draw(places), data.draw(places)
            changed[one : one + 8], changed[other : other + 8] = content[other : other + 8], content[one : one + 8]
    return bytes(changed)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_file_is_read_or_refused(good, watched, data):
    name = data.draw(st.sampled_from(sorted(good)))
    bag, files = good[name]
    changed = data.draw(st.sampled_from(files))
    original, refused = changed.read_bytes(), None
    watched()
    try:
        changed.write_bytes(_mutated(original, data))
        try:
            header = read_header(bag)
            found = read_bag(bag)
        except UserError as problem:
            refused = problem
        if refused is not None:
            event(f"refused: {refused.code}")
            assert any(str(file) in refused.sentence for file in {bag, *files})
        else:
            event("read")
            assert found.header == header
            assert found.features.shape == (header.patches, header.dim)
            assert found.coords.shape == (header.patches, 2)
            assert np.isfinite(found.features).all()
            assert np.isfinite(found.coords).all()
    finally:
        changed.write_bytes(original)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400), suffix=st.sampled_from([".h5", ".pt", ".npy"]), start=st.integers(0, 64))
def test_noise_behind_a_true_beginning_is_refused(good, watched, content, suffix, start):
    name = {".h5": "clam", ".pt": "slideflow", ".npy": "torchmil-npy"}[suffix]
    bag, _ = good[name]
    original = bag.read_bytes()
    watched()
    try:
        bag.write_bytes(original[:start] + content)
        with pytest.raises(UserError) as error:
            read_bag(bag)
        assert str(bag) in error.value.sentence
    finally:
        bag.write_bytes(original)


def test_the_good_files_are_read(good):
    """Otherwise the tests above would prove nothing."""
    for name, (bag, files) in good.items():
        assert read_bag(bag).header.patches == 11, name
        assert bag in files
