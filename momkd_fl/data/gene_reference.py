"""A public scale of gene values: mean and standard deviation of each gene in a cohort that is no site's."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from momkd_fl.errors import UserError


def read_reference(path: Path, panel: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """``mean`` and ``scale`` (G,) of the panel's genes, from a CSV file with the columns gene, mean and sd.

    Raises
    ------
    UserError
        ``gene-reference``, naming the first gene that is missing or whose numbers cannot be used.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = {row["gene"]: (float(row["mean"]), float(row["sd"])) for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError) as problem:
        raise UserError(
            "gene-reference",
            f"privacy.gene_reference: {path} is no table with the columns gene, mean and sd of numbers "
            f"({type(problem).__name__}). Correct it, or leave the key out.",
        ) from None
    for gene in panel:
        mean, sd = rows.get(gene, (math.nan, math.nan))
        if not (math.isfinite(mean) and math.isfinite(sd) and sd > 0):
            raise UserError(
                "gene-reference",
                f"privacy.gene_reference: {path} has no mean and sd above 0 of gene {gene}, which is in the panel. "
                "Add it, or leave the key out.",
            )
    chosen = np.array([rows[gene] for gene in panel], np.float32)
    return {"mean": chosen[:, 0].copy(), "scale": chosen[:, 1].copy()}
