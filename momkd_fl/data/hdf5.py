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

from momkd_fl.data.attributes import read_text
from momkd_fl.data.header import MAX_BYTES, too_large
from momkd_fl.errors import UserError

MAX_ATTRIBUTE_BYTES = 4096

_DEFLATE = 1100
"""More than deflate can shrink anything (1,032 times)."""

_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
    h5py.h5z.FILTER_LZF,
}
"""Filters that come with HDF5 and h5py. Any other would make HDF5 look for a plug-in to load."""


@contextmanager
def open_readonly(path: Path) -> Iterator[h5py.File]:
    """Open one feature file for reading; it is never written to or locked.

    Raises
    ------
    UserError
        ``bag-missing``, ``bag-not-hdf5``; ``bag-unreadable`` where HDF5 itself fails while the
        file is open, as it does on a truncated copy.
    """
    check_readable(path)
    try:
        if not h5py.is_hdf5(path):
            raise UserError(
                "bag-not-hdf5", f"{path}: this is not an HDF5 file. Extract the slide's features again or remove it."
            )
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as reason:
        raise UserError(
            "bag-unreadable",
            f"{path}: HDF5 cannot read this file ({type(reason).__name__}); it is damaged or incomplete. "
            "Copy it again or extract the slide's features again.",
        ) from None


def check_readable(path: Path) -> None:
    """Refuse what is no file, or may not be read.

    Raises
    ------
    UserError
        ``bag-missing``, ``bag-unreadable``.
    """
    if not path.is_file():
        raise UserError("bag-missing", f"{path}: there is no such feature file. Check data.features and the slide id.")
    if not os.access(path, os.R_OK):
        raise UserError("bag-unreadable", f"{path}: this account may not read the file. Grant it read permission.")


def hard_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset | None:
    """The dataset ``name`` (``a/b`` for one in a group), or None where there is no such link.

    Raises
    ------
    UserError
        ``bag-link``: a link on the way is soft or external, or the dataset's bytes lie in another file
        (external storage, virtual dataset). ``bag-filter``: only a plug-in could decompress it.
        ``bag-too-large``: more than :data:`MAX_BYTES`, or more than the file's own size can hold.
    """
    group: h5py.Group = file
    *folders, last = name.split("/")
    for part in folders:
        inner = _hard(path, group, part, name)
        if not isinstance(inner, h5py.Group):
            return None
        group = inner
    found = _hard(path, group, last, name)
    if not isinstance(found, h5py.Dataset):
        return None
    plan = found.id.get_create_plist()
    if found.is_virtual:
        raise _elsewhere(path, name, "is a virtual dataset")
    if plan.get_external_count():
        raise _elsewhere(path, name, "keeps its values in another file")
    filters = {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}
    if not filters <= _FILTERS:
        raise UserError(
            "bag-filter",
            f"{path}: '{name}' is compressed by a plug-in of HDF5 (filter {max(filters - _FILTERS)}), which is not "
            "loaded. Write the file again with gzip or without compression (h5repack -f GZIP=4).",
        )
    _check_size(path, name, found, compressed=bool(filters))
    return found


def _hard(path: Path, group: h5py.Group, part: str, name: str) -> object:
    link = part.encode()
    if not group.id.links.exists(link):
        return None
    if group.id.links.get_info(link).type != h5py.h5l.TYPE_HARD:
        raise _elsewhere(path, name, "is a link to another place")
    return group[part]


def _check_size(path: Path, name: str, found: h5py.Dataset, *, compressed: bool) -> None:
    """The declared size against the cap, and against what a file of this size can hold.

    A chunked dataset may be declared and never written; then HDF5 invents the values, and a few bytes would cost
    gigabytes. One without any bytes is left to the reader, who says that it is empty.
    """
    values, chunk = math.prod(found.shape or (0,)), math.prod(found.chunks or (0,))
    if max(values, chunk) * max(found.dtype.itemsize, 4) > MAX_BYTES:
        raise too_large(path, name, found.shape)
    room = path.stat().st_size * (_DEFLATE if compressed else 1)
    if values * found.dtype.itemsize > room and found.id.get_storage_size() != 0:
        raise too_large(path, name, found.shape)


def _elsewhere(path: Path, name: str, what: str) -> UserError:
    return UserError(
        "bag-link",
        f"{path}: '{name}' {what}; only values stored in the file itself are read. Write the features into the file.",
    )


def scalar_attribute(found: h5py.Dataset | h5py.File, name: str) -> str | float | None:
    """A text or number attribute of a dataset or file; None where it is absent or anything else.

    Raises
    ------
    HeapDamaged
        HDF5 would crash or never end on it; :func:`open_readonly` says so.
    """
    if name not in found.attrs:
        return None
    attribute = found.attrs.get_id(name)
    if math.prod(attribute.shape or ()) != 1 or attribute.get_storage_size() > MAX_ATTRIBUTE_BYTES:
        return None
    kind = attribute.get_type()
    if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
        return read_text(found, name) or None
    if not isinstance(kind, h5py.h5t.TypeStringID | h5py.h5t.TypeIntegerID | h5py.h5t.TypeFloatID):
        return None
    value = np.asarray(found.attrs[name]).reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value.strip()[:MAX_ATTRIBUTE_BYTES] or None
    return float(value) if isinstance(value, int | float | np.integer | np.floating) else None
