"""Expression as one file a patient: the GDC's STAR tables, and MoMKD's ``.npy`` vectors.

STAR files: https://docs.gdc.cancer.gov/Data/Bioinformatics_Pipelines/Expression_mRNA_Pipeline. Vectors: one
``{name}.npy`` of as many values as the gene list has lines, which may begin with the header ``gene``.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

import numpy as np

from momkd_fl.config.site import Genomics, Layout
from momkd_fl.data.expression_layouts import Raw, Values
from momkd_fl.data.tables import column_index, read_table
from momkd_fl.errors import UserError

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_LARGEST_VECTOR = 1_000_000
"""More values than this in one patient's file is no expression."""


def detect_folder(folder: Path) -> Layout:
    """'npy' or 'gdc-star', by the files in the folder.

    Raises
    ------
    UserError
        ``expression-folder-empty``.
    """
    if _files(folder, ".npy"):
        return "npy"
    if _files(folder, ".tsv", ".tsv.gz"):
        return "gdc-star"
    raise UserError(
        "expression-folder-empty",
        f"{folder}: there are neither GDC STAR tables (.tsv) nor one .npy per patient in this folder. Correct "
        "data.genomics.path.",
    )


def read_folder(config: Genomics, layout: Layout) -> Raw:
    """Read a folder of the layout 'npy' or 'gdc-star'.

    Raises
    ------
    UserError
        ``expression-folder-empty``, ``expression-samples-missing``, ``expression-samples-conflict``,
        ``expression-samples-unmatched``, ``gene-list-missing``, ``expression-file-unreadable``,
        ``expression-file-genes``.
    """
    files = _files(config.path, ".npy") if layout == "npy" else _files(config.path, ".tsv", ".tsv.gz")
    notes: list[str] = []
    genes: Sequence[str] = ()
    if layout == "npy":
        genes = _gene_list(config)
    else:
        star = [file for file in files if _is_star(file)]
        if len(star) < len(files):
            notes.append(f"{len(files) - len(star)} .tsv files that are no STAR tables were left out.")
        files = star
    if not files:
        raise UserError(
            "expression-folder-empty", f"{config.path}: no file in this folder is of the layout '{layout}'. Correct it."
        )
    named = _patients_of(config, files, notes)
    values = bytearray()
    for file in named:
        if layout == "npy":
            row = _vector(file, len(genes))
        else:
            found, row = _star(file, config.value or "tpm_unstranded")
            genes = genes or found
            if list(genes) != found:
                raise UserError(
                    "expression-file-genes",
                    f"{file}: it lists other genes than the first file. Use files of one gene model and release.",
                )
        values += row.tobytes()
    table = np.frombuffer(values, dtype=np.float32).reshape(len(named), len(genes))
    places = [file.name for file in named]
    layout_name = "npy folder" if layout == "npy" else "gdc-star folder"
    return Raw(layout_name, list(named.values()), list(genes), table, "file", places, tuple(notes))


def _files(folder: Path, *endings: str) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.name.lower().endswith(endings))
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def _patients_of(config: Genomics, files: Sequence[Path], notes: list[str]) -> dict[Path, str]:
    """Patient of each file: by the table of samples, else by the file's name up to its first point."""
    if config.samples is None:
        named = {file: file.name.split(".", 1)[0] for file in files}
        if all(_UUID.fullmatch(name) for name in named.values()):
            raise UserError(
                "expression-samples-missing",
                f"{config.path}: the files are named by the GDC's own ids, which say nothing of the patient. Set "
                "data.genomics.samples to the GDC's sample sheet, or to a table with the columns file,patient.",
            )
        return named
    patient_of, normal = _sample_table(config.samples)
    named = {file: patient_of[file.name] for file in files if file.name in patient_of}
    if not named:
        raise UserError(
            "expression-samples-unmatched",
            f"{config.samples}: none of its files is in {config.path}. The column of files needs their full names.",
        )
    if normal:
        notes.append(f"{normal} samples of normal tissue in the sample sheet were left out.")
    if len(files) - len(named):
        notes.append(f"{len(files) - len(named)} files that the table of samples does not assign were left out.")
    if len(patient_of) - len(named):
        notes.append(f"{len(patient_of) - len(named)} files of the table of samples are not in the folder.")
    return named


def _sample_table(path: Path) -> tuple[dict[str, str], int]:
    table = read_table(path)
    sheet = "File Name" in table.columns and "Case ID" in table.columns
    names = ("File Name", "Case ID") if sheet else ("file", "patient")
    file, patient = (column_index(path, table.columns, name, "data.genomics.samples") for name in names)
    kind = table.columns.index("Sample Type") if sheet and "Sample Type" in table.columns else None
    found: dict[str, str] = {}
    normal = 0
    for number, cells in table.rows:
        if kind is not None and "normal" in cells[kind].lower():
            normal += 1
            continue
        if not cells[file] or not cells[patient]:
            raise UserError("patient-id-empty", f"{path}, row {number}: the file or the patient is empty. Fill it in.")
        if found.setdefault(cells[file], cells[patient]) != cells[patient]:
            raise UserError(
                "expression-samples-conflict",
                f"{path}, row {number}: this file stands there with two patients. Mend it.",
            )
    return found, normal


def _gene_list(config: Genomics) -> list[str]:
    try:
        text = config.genes.read_text(encoding="utf-8-sig") if config.genes else ""
    except (OSError, UnicodeDecodeError):
        text = ""
    names = [line.strip().strip('"') for line in text.splitlines() if line.strip()]
    names = names[1:] if names and names[0].lower() in ("gene", "genes", "symbol") else names
    if not names:
        raise UserError(
            "gene-list-missing",
            f"{config.genes or config.path}: vectors in .npy do not name their genes, and there is no readable list. "
            "Set data.genomics.genes to a text file with one gene a line, in the vectors' order.",
        )
    return names


def _vector(file: Path, length: int) -> Values:
    try:
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)  # the file's size bounds what it can declare
        shape = tuple(size for size in mapped.shape if size != 1)
        if mapped.dtype.kind not in "fiu" or mapped.size > _LARGEST_VECTOR or len(shape) > 1:
            raise ValueError
        with np.errstate(over="ignore"):
            values: Values = np.array(mapped, dtype=np.float32).reshape(-1)
    except (OSError, ValueError, EOFError, SyntaxError):
        raise UserError(
            "expression-file-unreadable",
            f"{file}: this is no .npy with one row of numbers. Write it again or remove it.",
        ) from None
    if len(values) != length:
        raise UserError(
            "expression-file-genes",
            f"{file}: it has {len(values):,} values where the gene list has {length:,} genes. Give the list that the "
            "vectors were written with.",
        )
    if np.isinf(values).any():
        raise UserError("expression-not-numeric", f"{file}: it has infinite values. Mend or remove it.")
    return values


@contextmanager
def _open(file: Path) -> Iterator[Iterator[list[str]]]:
    """Rows of a STAR table after its '#' lines."""
    opener = gzip.open if file.suffix.lower() == ".gz" else open
    try:
        with cast(TextIO, opener(file, "rt", encoding="utf-8", newline="")) as text:
            yield (line.rstrip("\r\n").split("\t") for line in text if not line.startswith("#"))
    except (OSError, EOFError, ValueError, IndexError):
        raise UserError(
            "expression-file-unreadable",
            f"{file}: the STAR table cannot be read to its end. Download it again or remove it.",
        ) from None


def _is_star(file: Path) -> bool:
    with _open(file) as rows:
        return next(rows, [""])[0] == "gene_id"


def _star(file: Path, value: str) -> tuple[list[str], Values]:
    """Genes (symbol where there is one, else the Ensembl id) and values of a file; the four N_ rows are skipped."""
    with _open(file) as rows:
        columns = next(rows, [])
        place = column_index(file, columns, value, "data.genomics.value")
        name = columns.index("gene_name") if "gene_name" in columns else 0
        genes, cells = [], []
        for row in rows:
            if not row[0].startswith("N_"):
                genes.append(row[name] or row[0])
                cells.append(row[place])
        values = np.array(cells, dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError
    return genes, values
