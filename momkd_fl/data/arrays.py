"""NumPy's own files as hostile input: no pickles, and no more memory than the file has bytes."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from momkd_fl.data.hdf5 import check_readable
from momkd_fl.data.header import MAX_BYTES, too_large
from momkd_fl.errors import UserError


def map_npy(path: Path) -> npt.NDArray[np.generic]:
    """A ``.npy`` file of numbers, mapped and not yet read, so that its shape costs no memory.

    Raises
    ------
    UserError
        ``bag-missing``, ``bag-unreadable``, ``bag-too-large``; ``bag-not-npy``: damaged, or a pickle.
    """
    check_readable(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False, max_header_size=10_000)
    except Exception as reason:  # the header is a Python literal; what a hostile one raises is not enumerable
        raise _not_npy(path, type(reason).__name__) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise _not_npy(path, "not an array of numbers")
    if array.size * max(array.itemsize, 4) > MAX_BYTES:
        raise too_large(path, "array", array.shape)
    return array


def read_npz_member(path: Path, name: str) -> npt.NDArray[np.generic]:
    """One array of numbers of a ``.npz`` file, its sizes checked before anything is unpacked.

    Raises
    ------
    UserError
        As :func:`map_npy`.
    """
    check_readable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.file_size > MAX_BYTES or member.file_size > 1100 * path.stat().st_size:
                raise too_large(path, name, (member.file_size,))
            content = io.BytesIO(archive.read(member))
        version = np.lib.format.read_magic(content)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(content, max_header_size=10_000)
        if (
            dtype.kind not in "fiu"
            or min(shape, default=0) < 0
            or math.prod(shape) * dtype.itemsize > len(content.getbuffer())
        ):
            raise _not_npy(path, "not an array of numbers")
        values = np.frombuffer(content.getbuffer(), dtype, math.prod(shape), content.tell())
        return values.reshape(shape, order="F" if by_columns else "C").copy()
    except UserError:
        raise
    except Exception as reason:  # as in map_npy
        raise _not_npy(path, type(reason).__name__) from None


def _not_npy(path: Path, reason: str) -> UserError:
    return UserError(
        "bag-not-npy",
        f"{path}: this is not a file of numbers as numpy writes it ({reason}); pickled objects are never loaded. "
        "Write it again with numpy.save.",
    )
