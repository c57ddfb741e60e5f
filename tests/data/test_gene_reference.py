"""A public scale of genes: read whole, or refused with the gene's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from momkd_fl.data.gene_reference import read_reference
from momkd_fl.errors import UserError


def table(folder: Path, text: str) -> Path:
    path = folder / "reference.csv"
    path.write_text(text, "utf-8")
    return path


def test_the_panel_s_genes_in_its_order(tmp_path: Path) -> None:
    found = read_reference(table(tmp_path, "gene,mean,sd\nESR1,9.5,2\nPGR,4,3\nKRAS,1,1\n"), ["PGR", "ESR1"])
    np.testing.assert_array_equal(found["mean"], np.array([4, 9.5], np.float32))
    np.testing.assert_array_equal(found["scale"], np.array([3, 2], np.float32))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gene,mean,sd\nPGR,4,3\n", "ESR1"),
        ("gene,mean,sd\nPGR,4,3\nESR1,1,0\n", "ESR1"),
        ("gene,mean,sd\nPGR,4,3\nESR1,nan,1\n", "ESR1"),
        ("gene,mean\nESR1,1\n", "columns gene, mean and sd"),
        ("gene,mean,sd\nESR1,high,1\n", "columns gene, mean and sd"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read_reference(table(tmp_path, text), ["PGR", "ESR1"])
    assert caught.value.code == "gene-reference"
    with pytest.raises(UserError):
        read_reference(tmp_path / "absent.csv", ["ESR1"])
