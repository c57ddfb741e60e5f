from __future__ import annotations

import numpy as np
import pytest

from momkd_fl.config.site import Genomics
from momkd_fl.data.genomics import Expression, canonical_gene, load_panel, on_panel, read_expression, rows_by_patient
from momkd_fl.errors import UserError


@pytest.fixture
def read(tmp_path, write_table):
    """Write an expression table and read it back."""

    def reading(rows, scale="zscore", **settings):
        path = write_table(tmp_path / "rna.csv", rows)
        return read_expression(Genomics(path=path, scale=scale, **settings))

    return reading


def _refused(code, call):
    with pytest.raises(UserError) as error:
        call()
    assert error.value.code == code
    return error.value.sentence


def test_values_are_read_by_patient_and_gene(read):
    expression = read([("id", "ESR1", "pgr"), ("a", "1.5", "-2"), ("b", "0", "1e-1")])
    assert expression.patients == ("a", "b")
    assert expression.genes == ("ESR1", "PGR")
    assert expression.values.dtype == np.float32
    np.testing.assert_allclose(expression.values, [[1.5, -2], [0, 0.1]])
    assert expression.scale == "zscore"


def test_patient_column_anywhere(read):
    expression = read([("ESR1", "case", "PGR"), ("1", "a", "2"), ("-3", "b", "4")], patient="case")
    assert expression.patients == ("a", "b")
    np.testing.assert_array_equal(expression.values, [[1, 2], [-3, 4]])


def test_tpm_is_logged_once(read):
    expression = read([("id", "ESR1", "PGR"), ("a", "0", "1023")], scale="tpm")
    np.testing.assert_allclose(expression.values, [[0, 10]])
    assert expression.scale == "log2tpm"
    np.testing.assert_allclose(read([("id", "ESR1"), ("a", "10")], scale="log2tpm").values, [[10]])


def test_a_row_of_empty_cells_is_a_patient_without_expression(read):
    assert read([("id", "ESR1", "PGR"), ("a", "1", "-1"), ("b", "", "")]).patients == ("a",)


@pytest.mark.parametrize("pair", [("ESR1", "ESR1"), ("ESR1", "esr1"), ("CTSV", "CTSL2")])
def test_duplicated_genes_are_named_or_the_higher_is_kept(read, pair):
    rows = [("id", "A", *pair), ("a", "1", "2", "3"), ("b", "1", "9", "-3")]
    assert pair[0] in _refused("genes-duplicated", lambda: read(rows, duplicates="refuse"))
    for order in (lambda row: row, lambda row: (row[0], row[1], row[3], row[2])):
        kept = read([order(row) for row in rows])
        assert kept.genes == ("A", pair[0])
        np.testing.assert_array_equal(kept.values, [[1, 2], [1, 9]])
        assert any("1 genes stand there more than once" in note for note in kept.notes)


def test_duplicated_patients_name_the_rows(read):
    rows = [("id", "A"), ("a", "1"), ("b", "1"), ("a", "2")]
    assert "rows 2 and 4" in _refused("expression-patient-duplicated", lambda: read(rows))


def test_a_patient_twice_with_the_same_values_counts_once(read):
    same = read([("id", "A", "B"), ("a", "1", "2"), ("b", "1", "3"), ("a", "1.0", "2")])
    assert same.patients == ("a", "b")
    assert any("1 rows repeat a patient" in note for note in same.notes)


def test_a_gene_without_any_value_is_one_that_the_table_lacks(read):
    found = read([("id", "A", "B"), ("a", "1", "NA"), ("b", "2", "")])
    assert found.genes == ("A",)
    assert any("1 genes have no value" in note for note in found.notes)


@pytest.mark.parametrize("cell", ["", "NA", "nan", "NULL"])
def test_missing_value_names_row_and_gene(read, cell):
    sentence = _refused("expression-missing", lambda: read([("id", "A", "B"), ("a", "1", "2"), ("b", "1", cell)]))
    assert "row 3" in sentence
    assert "gene B" in sentence


@pytest.mark.parametrize("cell", ["0,5", "high", "inf", "1e99"])
def test_value_that_is_no_number(read, cell):
    assert cell in _refused("expression-not-numeric", lambda: read([("id", "A", "B"), ("a", "1", cell)]))


def test_a_table_without_expression(read):
    _refused("expression-empty", lambda: read([("id", "A")]))
    _refused("gene-unnamed", lambda: read([("id", "A", ""), ("a", "1", "2")]))
    _refused("patient-id-empty", lambda: read([("id", "A"), ("", "1")]))


def _table(values):
    genes = [f"G{number}" for number in range(values.shape[1])]
    return [("id", *genes), *((f"p{number}", *row) for number, row in enumerate(values.tolist()))]


def test_declared_scale_is_checked_against_the_values(read):
    draw = np.random.default_rng(0)
    tpm = draw.lognormal(2, 2, size=(20, 10)).round(3)
    tpm[3, 3] = 36893
    assert "declared log2tpm, but the maximum is 36,893" in _refused(
        "expression-scale", lambda: read(_table(tpm), "log2tpm")
    )
    logged = np.log2(tpm + 1).round(4)
    assert "logged already" in _refused("expression-scale", lambda: read(_table(logged), "tpm"))
    _refused("expression-scale", lambda: read(_table(logged), "zscore"))
    _refused("expression-scale", lambda: read(_table(logged), "signedlog"))
    centred = draw.normal(size=(20, 10)).round(3)
    for scale in ("tpm", "log2tpm"):
        assert "cannot be negative" in _refused("expression-scale", lambda scale=scale: read(_table(centred), scale))
    assert "minimum is -5,000" in _refused("expression-scale", lambda: read(_table(centred * 0 - 5000), "signedlog"))
    for values, scale in ((tpm, "tpm"), (logged, "log2tpm"), (centred, "zscore"), (centred, "signedlog")):
        assert read(_table(values), scale).values.shape == (20, 10)


def test_panels_of_the_package():
    odx, pam50 = load_panel("odx21"), load_panel("pam50")
    assert (len(odx), len(pam50)) == (21, 50)
    assert {"ACTB", "GAPDH", "RPLP0", "GUSB", "TFRC", "CTSV"} < set(odx)
    assert all(gene == canonical_gene(gene) for gene in odx + pam50)


def test_panel_from_a_file(tmp_path):
    path = tmp_path / "panel.txt"
    path.write_text("# ours\nESR1\n ctsl2  # cathepsin\n\n")
    assert load_panel(path) == ("ESR1", "CTSV")
    path.write_text("ESR1\nesr1\n")
    _refused("panel-duplicated", lambda: load_panel(path))
    path.write_text("# nothing\n")
    _refused("panel-empty", lambda: load_panel(path))
    assert "odx21" in _refused("panel-missing", lambda: load_panel("oncotype"))


def test_panel_order_and_missing_genes():
    expression = Expression(("a",), ("ESR1", "CTSV", "PGR"), np.array([[1, 2, 3]], dtype=np.float32), "zscore")
    values, missing = on_panel(expression, ("PGR", "AURKA", "CTSL2"))
    np.testing.assert_array_equal(values, [[3, 2]])
    assert missing == ["AURKA"]
    assert "AURKA" in _refused("genes-no-overlap", lambda: on_panel(expression, ("AURKA", "BAG1")))


def _names(*patients):
    return Expression(patients, ("A",), np.zeros((len(patients), 1), dtype=np.float32), "zscore")


def test_patients_match_exactly_or_by_tumour_barcode():
    expression = _names("TCGA-A6-2671-01A-11R", "TCGA-A6-2672-11A", "TCGA-A6-2673", "TCGA-A6-2673-01A", "P1", "P2-x")
    patients = ["TCGA-A6-2671", "TCGA-A6-2672", "TCGA-A6-2673", "P1", "P2"]
    assert rows_by_patient(expression, patients) == {"TCGA-A6-2671": 0, "TCGA-A6-2673": 2, "P1": 4}


def test_two_samples_of_one_patient():
    expression = _names("TCGA-A6-2671-01A", "TCGA-A6-2671-06A")
    sentence = _refused("expression-patient-ambiguous", lambda: rows_by_patient(expression, ["TCGA-A6-2671"]))
    assert "TCGA-A6-2671-06A" in sentence
