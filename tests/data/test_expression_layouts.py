"""Each fixture follows a published file: see the sources named in momkd_fl/data/expression_layouts.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.config.site import Genomics
from momkd_fl.data.genomics import load_panel, on_panel, read_expression
from momkd_fl.errors import UserError

GENES = ("ESR1", "PGR", "ERBB2", "MKI67")
PEOPLE = ("TCGA-A6-2671", "TCGA-A6-2672", "TCGA-A6-2673")
VALUES = np.array([[1, -2, 3.5, 0], [4, 5, -6, 0.25], [7, 8, 9, -1]], dtype=np.float32)


@pytest.fixture
def read(tmp_path, write_table):
    def reading(rows, scale="zscore", patients=None, name="rna.csv", separator=",", **options):
        path = write_table(tmp_path / name, rows, separator)
        return read_expression(Genomics(path=path, scale=scale, **options), patients)

    return reading


def _refused(code, call):
    with pytest.raises(UserError) as error:
        call()
    assert error.value.code == code
    return error.value.sentence


def _same(expression, layout, people=PEOPLE, genes=GENES, values=VALUES):
    assert expression.layout == layout
    assert expression.patients == tuple(people)
    assert expression.genes == tuple(genes)
    np.testing.assert_array_equal(expression.values, values)


def _down(head=("gene",), genes=GENES, fill=()):
    return [(*head, *PEOPLE), *((gene, *fill, *column) for gene, column in zip(genes, VALUES.T.tolist(), strict=True))]


def test_patients_in_rows_with_an_unnamed_first_column(read):
    rows = [("", *GENES), *((who, *row) for who, row in zip(PEOPLE, VALUES.tolist(), strict=True))]
    _same(read(rows), "wide, patients in rows")  # SurvPath, rna_clean.csv


@pytest.mark.parametrize("head", ["sample", "Gene", "", "gene_id", "Hugo_Symbol"])
def test_genes_in_rows(read, head):
    _same(read(_down((head,)), name="rna.tsv.gz", separator="\t"), "wide, genes in rows")  # Xena writes 'sample'


def test_cbioportal(read):
    rows = _down(("Hugo_Symbol", "Entrez_Gene_Id"), fill=("2099",))
    rows += [("", "100", 1, 2, 3), ("SOX9", "6662", "NA", "NA", "NA")]
    found = read(rows, name="data_mrna_seq_v2_rsem.txt", separator="\t")
    _same(found, "wide, genes in rows")
    for words in ("1 columns that describe genes", "1 rows without a gene name", "1 genes have no value"):
        assert any(words in note for note in found.notes)


def test_ensembl_ids_become_the_panels_symbols(read):
    ids = ("ENSG00000091831.24", "ENSG00000082175.15", "ENSG00000141736.14", "ENSG00000000003.15")
    found = read(_down(("Ensembl_ID",), genes=ids))
    _same(found, "wide, genes in rows", genes=("ESR1", "PGR", "ERBB2", "ENSG00000000003"))
    values, _ = on_panel(found, load_panel("odx21"))
    np.testing.assert_array_equal(values, VALUES[:, [2, 0, 1]])
    assert any("4 genes have Ensembl ids" in note and "1 keep" in note for note in found.notes)


def test_porpoise(read):
    clinical = ("case_id", "slide_id", "oncotree_code", "is_female", "site", "age", "survival_months", "censorship")
    header = ("", *clinical, "train", "MTAP_cnv", "TP53_mut", "PIK3CA_mut", *(f"{gene}_rnaseq" for gene in GENES))
    rows = [header]
    for number, (who, values) in enumerate(zip(PEOPLE, VALUES.tolist(), strict=True)):
        for slide in range(1 + (number == 1)):  # one row a slide
            rows.append((slide, who, f"{who}-DX{slide}.svs", "BRCA", 1, "A6", 60, 3.5, 0, 1, -1, 0, 1, *values))
    found = read(rows)
    _same(found, "porpoise")
    assert any("4 expression columns were kept; 1 of copy numbers, 2 of mutations and 10" in n for n in found.notes)
    assert any("1 rows repeat a patient" in note for note in found.notes)


def test_porpoise_with_the_patients_in_the_unnamed_column(read):
    rows = [("", "slide_id", *(f"{gene}_rnaseq" for gene in GENES))]
    rows += [(who, f"{who}.svs", *values) for who, values in zip(PEOPLE, VALUES.tolist(), strict=True)]
    _same(read(rows), "porpoise")


def _long_rows(order=range(12)):
    cells = [(who, gene, VALUES[i, j]) for i, who in enumerate(PEOPLE) for j, gene in enumerate(GENES)]
    return [cells[number] for number in order]


def test_long(read):
    _same(read([("patient", "gene", "value"), *_long_rows()]), "long")
    rows = [("wert", "gen", "fall"), *((value, gene, who) for who, gene, value in _long_rows())]
    _same(read(rows, patient="fall", gene="gen", value="wert"), "long")
    assert "data.genomics.value" in _refused(
        "expression-column-unknown", lambda: read([("patient", "gene", "x"), *_long_rows()], layout="long")
    )


@given(st.permutations(range(12)))
@settings(max_examples=25, deadline=None)
def test_long_in_any_order(tmp_path_factory, order):
    path = tmp_path_factory.mktemp("long") / "rna.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in [("id", "gene", "tpm"), *_long_rows(order)]))
    found = read_expression(Genomics(path=path, scale="zscore"))
    who, genes = [found.patients.index(name) for name in PEOPLE], [found.genes.index(name) for name in GENES]
    np.testing.assert_array_equal(found.values[np.ix_(who, genes)], VALUES)


def test_long_that_contradicts_or_lacks_a_value(read):
    header = ("patient", "gene", "value")
    assert "row 2" in _refused(
        "expression-value-twice", lambda: read([header, *_long_rows(), (*_long_rows()[0][:2], 99)])
    )
    _same(read([header, *_long_rows(), _long_rows()[0]]), "long")
    assert "MKI67" in _refused("expression-missing", lambda: read([header, *_long_rows()[:-1]]))
    assert "'x'" in _refused("expression-not-numeric", lambda: read([header, ("a", "ESR1", "x")]))
    _refused("gene-unnamed", lambda: read([header, ("a", "", "1")]))
    _refused("patient-id-empty", lambda: read([header, ("", "ESR1", "1")]))


def test_an_axis_that_nothing_tells(read):
    rows = [("x", "p", "q"), ("g", 1, 2), ("h", -1, 0)]
    assert "data.genomics.layout" in _refused("expression-layout-unknown", lambda: read(rows))
    assert read(rows, layout="genes-in-rows").patients == ("p", "q")
    assert read(rows, layout="patients-in-rows").patients == ("g", "h")
    assert read(rows, patients={"p", "q"}).patients == ("p", "q")
    assert read(rows, patients={"g", "z"}).patients == ("g", "h")
    assert read(rows, gene="x").patients == ("p", "q")


def test_mistakes_in_a_table_with_genes_in_rows(read):
    def table(column, cell):
        rows = [list(row) for row in _down()]
        rows[column[0]][column[1]] = cell
        return rows

    assert "column 3: gene ERBB2" in _refused("expression-missing", lambda: read(table((3, 2), "")))
    assert "row 4: gene ERBB2" in _refused("expression-not-numeric", lambda: read(table((3, 2), "1,5")))
    assert "columns 2 and 4" in _refused("expression-patient-duplicated", lambda: read(table((0, 3), PEOPLE[0])))
    assert "column 3" in _refused("patient-id-empty", lambda: read(table((0, 2), "")))
    empty = [row if not n else [*row[:2], "NA", row[3]] for n, row in enumerate(_down())]
    assert read(empty).patients == (PEOPLE[0], PEOPLE[2])


def test_log2_with_an_offset_of_a_thousandth(read):
    values = np.log2(np.array([[0, 5, 1, 2]] * 3) + 0.001).round(4)
    rows = [("", *GENES), *((who, *row) for who, row in zip(PEOPLE, values.tolist(), strict=True))]
    assert "log2(TPM + 0.001)" in _refused("expression-scale", lambda: read(rows, "log2tpm"))
