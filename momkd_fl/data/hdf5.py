"""HDF5 as hostile input: what is opened, what is followed and how much is read.

A file with external storage was seen to read another local file, and 1,400 bytes can declare
4 TB, so nothing is followed but hard links, and nothing is read before its size is known.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from momkd_fl.errors import UserError

MAX_BYTES = 4 * 1024**3
"""Largest dataset read, in bytes as declared: 700,000 patches of 1,536 dimensions in float32."""

MAX_ATTRIBUTE_BYTES = 4096


@contextmanager
def open_readonly(path: Path) -> Iterator[h5py.File]:
    """Open one feature file for reading; it is never written to or locked.

    Raises
    ------
    UserError
        ``bag-missing``, ``bag-not-hdf5``; ``bag-unreadable`` where HDF5 itself fails while the
        file is open, as it does on a truncated copy.
    """
    if not path.is_file():
        raise UserError("bag-missing", f"{path}: there is no such feature file. Check data.features and the slide id.")
    if not os.access(path, os.R_OK):
        raise UserError("bag-unreadable", f"{path}: this account may not read the file. Grant it read permission.")
    try:
        if not h5py.is_hdf5(path):
            raise UserError(
                "bag-not-hdf5", f"{path}: this is not an HDF5 file. Extract the slide's features again or remove it."
            )
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as reason:
        raise UserError(
            "bag-unreadable",
            f"{path}: HDF5 cannot read this file ({type(reason).__name__}); it is damaged or incomplete. "
            "Copy it again or extract the slide's features again.",
        ) from None


def hard_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset | None:
    """The dataset ``name`` in the root group, or None where there is no such link.

    Raises
    ------
    UserError
        ``bag-link``: the link is soft or external, or the dataset's bytes lie in another file
        (external storage, virtual dataset). ``bag-too-large``: more than :data:`MAX_BYTES`.
    """
    if not file.id.links.exists(name.encode()):
        return None
    if file.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise _elsewhere(path, name, "is a link to another place")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        return None
    if found.is_virtual:
        raise _elsewhere(path, name, "is a virtual dataset")
    if found.id.get_create_plist().get_external_count():
        raise _elsewhere(path, name, "keeps its values in another file")
    rows = math.prod(found.shape or (0,))
    chunk = math.prod(found.chunks or (0,))
    if max(rows, chunk) * max(found.dtype.itemsize, 4) > MAX_BYTES:
        raise UserError(
            "bag-too-large",
            f"{path}: '{name}' declares {found.shape} values, more than the {MAX_BYTES // 1024**3} GB a slide may "
            "have. The file is damaged, or it holds more than one slide.",
        )
    return found


def _elsewhere(path: Path, name: str, what: str) -> UserError:
    return UserError(
        "bag-link",
        f"{path}: '{name}' {what}; only values stored in the file itself are read. Write the features into the file.",
    )


def scalar_attribute(found: h5py.Dataset | h5py.File, name: str) -> str | float | None:
    """A text or number attribute of a dataset or file; None where it is absent or anything else."""
    if name not in found.attrs:
        return None
    attribute = found.attrs.get_id(name)
    if math.prod(attribute.shape or ()) != 1 or attribute.get_storage_size() > MAX_ATTRIBUTE_BYTES:
        return None
    value = np.asarray(found.attrs[name]).reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value.strip()[:MAX_ATTRIBUTE_BYTES] or None
    return float(value) if isinstance(value, int | float | np.integer | np.floating) else None
