"""STAR tables as the GDC writes them (docs.gdc.cancer.gov), vectors as MoMKD's gene selection does."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from momkd_fl.config.site import Genomics
from momkd_fl.data.genomics import read_expression
from momkd_fl.errors import UserError

COLUMNS = (
    "gene_id", "gene_name", "gene_type", "unstranded", "stranded_first", "stranded_second", "tpm_unstranded",
    "fpkm_unstranded", "fpkm_uq_unstranded",
)  # fmt: skip
GENES = (("ENSG00000091831.24", "ESR1"), ("ENSG00000082175.15", "PGR"), ("ENSG00000000003.15", "TSPAN6"))
UUID = "7f0a5b1c-0000-4000-8000-00000000000{}.rna_seq.augmented_star_gene_counts.tsv"


def _star(path, tpm, genes=GENES):
    lines = ["# gene-model: GENCODE v36", "\t".join(COLUMNS)]
    for name in ("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous"):
        lines.append(f"{name}\t\t\t8120268\t8120268\t8120268\t\t\t")
    for (ensembl, symbol), value in zip(genes, tpm, strict=True):
        lines.append(f"{ensembl}\t{symbol}\tprotein_coding\t3231\t1634\t1597\t{value:.4f}\t16.8557\t23.8956")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def _read(path, scale="tpm", **options):
    return read_expression(Genomics(path=path, scale=scale, **options))


def _refused(code, call):
    with pytest.raises(UserError) as error:
        call()
    assert error.value.code == code
    return error.value.sentence


def test_star_files_named_by_patient(tmp_path):
    _star(tmp_path / "P1.tsv", (0, 1023, 3))
    _star(tmp_path / "deeper" / "P2.star.tsv.gz", (1, 0, 7))
    (tmp_path / "manifest.tsv").write_text("id\tfilename\n1\tP1.tsv\n")
    found = _read(tmp_path)
    assert (found.layout, found.scale) == ("gdc-star folder", "log2tpm")
    assert found.genes == ("ESR1", "PGR", "TSPAN6")
    rows = {who: row.tolist() for who, row in zip(found.patients, found.values, strict=True)}
    assert rows == {"P1": [0, 10, 2], "P2": [1, 0, 3]}
    assert any("1 .tsv files that are no STAR tables" in note for note in found.notes)


def test_star_files_with_the_gdcs_sample_sheet(tmp_path, write_table):
    folder = tmp_path / "gdc"
    for number in range(4):
        _star(folder / f"uuid{number}" / UUID.format(number), (number, 1, 100))
    assert "data.genomics.samples" in _refused("expression-samples-missing", lambda: _read(folder))
    sheet = [("File ID", "File Name", "Case ID", "Sample ID", "Sample Type")]
    kinds = ["Primary Tumor", "Primary Tumor", "Solid Tissue Normal", "Primary Tumor"]
    for number, kind in enumerate(kinds[:3]):
        sheet.append((f"uuid{number}", UUID.format(number), f"TCGA-A6-000{number % 2}", "x", kind))
    sheet.append(("uuid9", "absent.tsv", "TCGA-A6-0009", "x", "Primary Tumor"))
    path = write_table(tmp_path / "sheet.tsv", sheet, "\t")
    found = _read(folder, samples=path)
    assert found.patients == ("TCGA-A6-0000", "TCGA-A6-0001")
    for words in ("1 samples of normal", "2 files that the table", "1 files of the table of samples"):
        assert any(words in note for note in found.notes)
    plain = [("file", "patient"), *((UUID.format(number), "TCGA-A6-0000") for number in range(2))]
    path = write_table(tmp_path / "samples.csv", plain)
    assert UUID.format(1) in _refused("expression-patient-duplicated", lambda: _read(folder, samples=path))
    path = write_table(tmp_path / "samples.csv", [("file", "patient"), ("a.tsv", "P1"), ("a.tsv", "P2")])
    assert "row 3" in _refused("expression-samples-conflict", lambda: _read(folder, samples=path))
    path = write_table(tmp_path / "samples.csv", [("file", "patient"), ("a.tsv", "P1")])
    _refused("expression-samples-unmatched", lambda: _read(folder, samples=path))


def test_star_files_that_do_not_fit(tmp_path):
    _star(tmp_path / "P1.tsv", (0, 36893, 3))
    assert "maximum is 36,893" in _refused("expression-scale", lambda: _read(tmp_path, "log2tpm"))
    assert "fpkm_unstranded" in _refused("column-unknown", lambda: _read(tmp_path, value="fpkm"))
    _star(tmp_path / "P2.tsv", (0, 1, 3), genes=GENES[::-1])
    assert "P2.tsv" in _refused("expression-file-genes", lambda: _read(tmp_path))
    _star(tmp_path / "P2.tsv", (0, 1, 3))
    (tmp_path / "P2.tsv").write_text((tmp_path / "P2.tsv").read_text()[:-40])
    assert "P2.tsv" in _refused("expression-file-unreadable", lambda: _read(tmp_path))


def _vectors(folder, genes="gene\nESR1\nCTSL2\nPGR\n"):
    folder.mkdir(exist_ok=True)
    np.save(folder / "TCGA-A6-2671-01Z-00-DX1.npy", np.array([0.5, -1, 2]))
    np.save(folder / "TCGA-A6-2672-01Z-00-DX1.npy", np.array([[1, 0, -2]], dtype=np.float32))
    (folder.parent / "genes.csv").write_text(genes)
    return folder.parent / "genes.csv"


def test_vectors(tmp_path):
    genes = _vectors(tmp_path / "rna")
    found = _read(tmp_path / "rna", "zscore", genes=genes)
    assert (found.layout, found.genes) == ("npy folder", ("ESR1", "CTSV", "PGR"))
    assert found.patients == ("TCGA-A6-2671-01Z-00-DX1", "TCGA-A6-2672-01Z-00-DX1")
    np.testing.assert_array_equal(found.values, np.array([[0.5, -1, 2], [1, 0, -2]], dtype=np.float32))
    assert "data.genomics.genes" in _refused("gene-list-missing", lambda: _read(tmp_path / "rna", "zscore"))


@pytest.mark.parametrize(
    ("vector", "code"),
    [
        (np.zeros(4), "expression-file-genes"),
        (np.zeros((2, 3)), "expression-file-unreadable"),
        (np.array([1, "a", None], dtype=object), "expression-file-unreadable"),
        (np.array(["1", "2", "3"]), "expression-file-unreadable"),
        (np.array([1, np.inf, 0]), "expression-not-numeric"),
        (np.array([1, np.nan, 0]), "expression-missing"),
    ],
)
def test_vectors_that_do_not_fit(tmp_path, vector, code):
    genes = _vectors(tmp_path / "rna")
    np.save(tmp_path / "rna" / "P3.npy", vector, allow_pickle=True)
    assert "P3" in _refused(code, lambda: _read(tmp_path / "rna", "zscore", genes=genes))


def test_a_vector_that_declares_more_than_it_has(tmp_path):
    genes = _vectors(tmp_path / "rna")
    whole = (tmp_path / "rna" / "TCGA-A6-2671-01Z-00-DX1.npy").read_bytes()
    (tmp_path / "rna" / "P3.npy").write_bytes(whole.replace(b"(3,), }" + b" " * 12, b"(3000000000000,), }"))
    assert b"3000000000000" in (tmp_path / "rna" / "P3.npy").read_bytes()
    _refused("expression-file-unreadable", lambda: _read(tmp_path / "rna", "zscore", genes=genes))


def test_folder_and_file_are_not_confused(tmp_path):
    _refused("expression-folder-empty", lambda: _read(tmp_path))
    _star(tmp_path / "P1.tsv", (0, 1, 3))
    _refused("expression-layout", lambda: _read(tmp_path, layout="long"))
    _refused("expression-layout", lambda: _read(tmp_path / "P1.tsv", layout="npy"))
    (tmp_path / "P1.tsv").write_text("id\tfilename\n")
    _refused("expression-folder-empty", lambda: _read(tmp_path))
