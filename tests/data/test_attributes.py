"""A damaged heap of text makes HDF5 loop for ever: that ends a child process, never this one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from momkd_fl.data import attributes
from momkd_fl.data.attributes import read_text
from momkd_fl.data.bags import read_header
from momkd_fl.errors import UserError

Writer = Callable[..., Path]


def test_a_heap_object_of_no_size_is_refused_and_the_next_file_is_read(write_trident: Writer, tmp_path: Path) -> None:
    bad, good = write_trident(tmp_path / "bad.h5"), write_trident(tmp_path / "good.h5")
    content = bytearray(bad.read_bytes())
    size = content.find(b"GCOL") + 24  # of the heap's first object: HDF5 walks on by it, and so never on
    content[size : size + 8] = bytes(8)
    bad.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_header(bad)
    assert refused.value.code == "bag-unreadable"
    assert str(bad) in refused.value.sentence
    assert read_header(good).encoder == "house-8"


def test_a_child_that_was_killed_is_replaced(write_trident: Writer, tmp_path: Path) -> None:
    path = write_trident(tmp_path / "a.h5")
    read_header(path)
    process = attributes._child._process
    assert process is not None
    process.kill()
    process.wait()
    assert read_header(path).encoder == "house-8"


@pytest.mark.parametrize(("value", "expected"), [("uni_v1", "uni_v1"), ("é" * 3, "ééé"), ("", ""), ("x" * 5000, None)])
def test_what_is_read(tmp_path: Path, value: str, expected: str | None) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.zeros(2)).attrs["name"] = value
        file.attrs["name"] = value
    with h5py.File(tmp_path / "a.h5") as file:
        assert read_text(file["x"], "name") == expected
        assert read_text(file, "name") == expected
