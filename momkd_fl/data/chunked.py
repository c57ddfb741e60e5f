"""Values of one HDF5 dataset."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt


def read_dataset(path: Path, dataset: h5py.Dataset) -> npt.NDArray[np.generic]:
    """All values of ``dataset``, which lies in the file ``path``, in the dataset's own type and shape."""
    return np.asarray(dataset[()])
