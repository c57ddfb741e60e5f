"""Every row of the table in docs/data-formats.md, read from files that follow the tool's own writer."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from bag_writers import TOOLS
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.data.bags import FORMATS, find_bags, read_bag, read_header
from momkd_fl.data.features import common_features
from momkd_fl.errors import UserError


def _refused(code, call):
    with pytest.raises(UserError) as error:
        call()
    assert error.value.code == code
    return error.value.sentence


@pytest.mark.parametrize("name", TOOLS)
def test_a_tools_file_is_read_as_written(tmp_path, bag_values, name):
    tool = TOOLS[name]
    features, coords = bag_values(23, 8)
    path = tool.write(tmp_path, "S1", features, coords)
    bag = read_bag(path)
    assert bag.features.dtype == bag.coords.dtype == np.float32
    np.testing.assert_array_equal(bag.features, features.astype(tool.dtype).astype(np.float32))
    np.testing.assert_array_equal(bag.coords, coords // tool.grid)
    header = bag.header
    found = (header.slide, header.format, header.unit, header.encoder, header.patch_um, header.dtype)
    assert found == ("S1", tool.format, tool.unit, tool.encoder, tool.patch_um, tool.dtype)
    assert (header.patches, header.dim) == (23, 8)
    assert header == read_header(path) == read_header(path, tool.format)
    assert find_bags([tmp_path]) == {"S1": path}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(TOOLS)),
    patches=st.integers(1, 70),
    dim=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)
def test_any_size_is_read_as_written(bag_values, name, patches, dim, seed):
    tool = TOOLS[name]
    features, coords = bag_values(patches, dim, seed)
    with tempfile.TemporaryDirectory() as folder:
        bag = read_bag(tool.write(Path(folder), "S", features, coords))
    np.testing.assert_array_equal(bag.features, features.astype(tool.dtype).astype(np.float32))
    np.testing.assert_array_equal(bag.coords, coords // tool.grid)


def test_every_format_has_a_writer():
    assert {tool.format for tool in TOOLS.values()} == set(FORMATS)


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("wanted", FORMATS)
def test_an_override_that_does_not_fit_is_a_sentence(tmp_path, bag_values, name, wanted):
    """TRIDENT, CLAM and the published sets share their dataset, STAMP's versions theirs; all else is refused."""
    tool = TOOLS[name]
    path = tool.write(tmp_path, "S1", *bag_values(9))
    alike = [{"trident", "clam"}, {"stamp", "stamp-old"}]
    allowed = {tool.format}.union(*(group for group in alike if tool.format in group))
    if tool.format == "uni2-h":
        allowed |= {"trident", "clam"}
    if name == "stamp-embeddings":
        allowed -= {"stamp"}
    if wanted in allowed:
        assert read_bag(path, wanted).header.format == wanted
    else:
        sentence = _refused("bag-format", lambda: read_header(path, wanted))
        assert str(path) in sentence
        assert wanted in sentence


def test_a_site_may_mix_formats_and_reports_them(tmp_path, bag_values, make_site):
    paths = [
        TOOLS[name].write(tmp_path / name, f"S{number}", *bag_values(9, seed=number))
        for number, name in enumerate(("trident", "clam", "clam-pt", "torchmil-npy", "trident-half"))
    ]
    data = make_site(encoder="house", patch_um=128).data
    found = common_features({"a": tuple(paths)}, data)
    assert (found.encoder, found.dim) == ("house", 8)
    assert found.formats == {"trident": 2, "clam": 1, "clam-pt": 1, "torchmil": 1}


def test_mixed_encoders_are_refused(tmp_path, bag_values, make_site, write_trident):
    one = TOOLS["stamp"].write(tmp_path, "S1", *bag_values(9))
    two = write_trident(tmp_path / "S2.h5", encoder="other", level0=None)
    sentence = _refused("encoder-mixed", lambda: common_features({"a": (one, two)}, make_site().data))
    assert str(two) in sentence


def test_the_configured_format_reaches_the_files(tmp_path, bag_values, make_site):
    path = TOOLS["clam"].write(tmp_path, "S1", *bag_values(9))
    assert common_features({"a": (path,)}, make_site(encoder="x", format="trident").data).formats == {"trident": 1}
    _refused("bag-format", lambda: common_features({"a": (path,)}, make_site(encoder="x", format="stamp").data))


def test_clams_two_files_of_a_slide_are_one_bag(tmp_path, bag_values):
    path = TOOLS["clam"].write(tmp_path, "S1", *bag_values(9))
    assert find_bags([tmp_path]) == {"S1": path}
    assert find_bags([tmp_path / "pt_files"]) == {"S1": tmp_path / "pt_files" / "S1.pt"}
    assert read_bag(tmp_path / "pt_files" / "S1.pt").header.format == "clam-pt"


def test_several_roots_of_several_tools(tmp_path, bag_values):
    roots = [tmp_path / name for name in TOOLS]
    paths = {f"S-{name}": TOOLS[name].write(tmp_path / name, f"S-{name}", *bag_values(5)) for name in TOOLS}
    assert find_bags(roots) == dict(sorted(paths.items()))


def test_headers_of_a_thousand_slides_are_quick(tmp_path, write_trident, make_site):
    """Loose: about 1 ms each on a free core; what it guards against is reading the values."""
    first = write_trident(tmp_path / "S0.h5", 2000, 256).read_bytes()
    paths = [tmp_path / f"S{number}.h5" for number in range(1000)]
    for path in paths:
        path.write_bytes(first)
    start = time.process_time()
    found = common_features({"a": tuple(paths)}, make_site().data)
    assert time.process_time() - start < 10
    assert found.formats == {"trident": 1000}
