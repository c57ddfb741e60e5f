from __future__ import annotations

import re
from importlib import resources

import pytest

from momkd_fl.data.gene_names import canonical_gene, count_known, is_ensembl, load_panel


@pytest.mark.parametrize(
    ("name", "gene"),
    [
        ("ENSG00000091831.24", "ESR1"), ("ENSG00000091831", "ESR1"), ("ensg00000082175.1", "PGR"),
        (" esr1 ", "ESR1"), ("ORC6L", "ORC6"), ("ENSG00000000003.15", "ENSG00000000003"),
        ("ENSG00000002586.20_PAR_Y", "ENSG00000002586"), ("ENSMUSG00000019768", "ENSMUSG00000019768"),
    ],
)  # fmt: skip
def test_canonical_gene(name, gene):
    assert canonical_gene(name) == gene


def test_every_gene_of_a_panel_has_one_ensembl_id():
    text = (resources.files("momkd_fl.data") / "panels" / "ensembl.csv").read_text(encoding="utf-8")
    header, *rows = text.splitlines()
    ids, symbols = zip(*(row.split(",") for row in rows), strict=True)
    assert header == "ensembl,symbol"
    assert all(re.fullmatch(r"ENSG\d{11}", name) for name in ids)
    assert len(set(ids)) == len(ids)
    assert sorted(symbols) == sorted({*load_panel("odx21"), *load_panel("pam50")})


def test_known_genes_are_counted():
    assert count_known(["tp53", "ESR1", "ENSG00000000003.15", "P001", "G7", ""]) == 3
    assert is_ensembl("ENSG00000000003.15")
    assert not is_ensembl("ENSG0000000000")


def test_panel_by_ensembl_id(tmp_path):
    path = tmp_path / "panel.txt"
    path.write_text("ENSG00000091831.1\nENSG00000000003\n")
    assert load_panel(path) == ("ESR1", "ENSG00000000003")
