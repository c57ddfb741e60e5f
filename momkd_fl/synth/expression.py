"""Molecular profiles: a synthetic expression model, or real tables through options.

Labels are a property of the patient and stand here beside the profile; they never reach the
generator of slides, which sees the programmes alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from momkd_fl.errors import UserError
from momkd_fl.synth.histology import PROGRAMMES, Floats, generator

# Direction of each named gene on the programmes: luminal (0), proliferation (1), HER2 amplicon (12),
# basal (2), immune (3). Reference genes have none.
_LUMINAL = "ESR1 PGR BCL2 SCUBE2 FOXA1 GATA3 NAT1 MAPT SLC39A6 MLPH CXXC5 GPR160 TMEM45B XBP1 AGR3 TFF1 BAG1 MDM2"
_PROLIFERATION = (
    "MKI67 AURKA BIRC5 CCNB1 MYBL2 CCNE1 CDC6 CDC20 CENPF RRM2 TYMS EXO1 PTTG1 MELK NDC80 KIF2C UBE2C UBE2T ANLN "
    "CEP55 NUF2 ORC6 TOP2A CDK1 MYC"
)
_BASAL = "KRT5 KRT14 KRT17 FOXC1 CDH3 EGFR SFRP1 MIA PHGDH ACTR3B"
_IMMUNE = "CD68 CD8A CD3E GZMB CXCL9 CXCL10 PTPRC LYZ"
_AMPLICON = "ERBB2 GRB7 CDK12 STARD3 PGAP3 MIEN1 FGFR4"
_STROMAL = "MMP11 CTSV GSTM1 BLVRA"
_REFERENCE = "ACTB GAPDH RPLP0 GUSB TFRC"
_UNNAMED = 120

_LUMINAL_AXIS, _PROLIFERATION_AXIS, _BASAL_AXIS, _IMMUNE_AXIS, _STROMAL_AXIS, _AMPLICON_AXIS = 0, 1, 2, 3, 4, 12
_AMPLIFIED = 0.15


@dataclass(frozen=True)
class Profiles:
    """Patients with a molecular profile.

    Attributes
    ----------
    patients, hospitals : ids and the hospital each came from (its look)
    genes, values, scale : expression table (n, G) and the scale it is on
    measured : (n,) patients who have a row in the expression table; all have programmes
    programmes : (n, 13) twelve components of unit variance and the HER2 amplicon
    labels : values of each label as they would stand in a hospital's table ('' where missing)
    slides : number of slides of each patient
    """

    patients: tuple[str, ...]
    hospitals: tuple[str, ...]
    genes: tuple[str, ...]
    values: NDArray[np.float32]
    scale: Literal["tpm", "log2tpm", "zscore", "signedlog"]
    measured: NDArray[np.bool_]
    programmes: Floats
    labels: dict[str, tuple[str, ...]]
    slides: tuple[tuple[str, ...], ...]

    def at(self, hospitals: Sequence[str]) -> list[int]:
        """Rows of the patients of these hospitals."""
        wanted = set(hospitals)
        return [row for row, hospital in enumerate(self.hospitals) if hospital in wanted]


def synthetic(patients: Mapping[str, Sequence[str]], seed: int) -> Profiles:
    """A synthetic expression model: twelve programmes and the HER2 amplicon drive genes and labels.

    Parameters
    ----------
    patients : ids by hospital
    seed : of the model and, with the id, of every patient; a patient does not depend on the others

    Notes
    -----
    Prevalences are about 0.65 (PR), 0.15 (HER2) and 0.2 (ODX high). About 3% of the labels are missing
    and 6% of the HER2 labels are 'equivocal'. Values are log2(TPM + 1).
    """
    genes, loadings, base = _gene_model(seed)
    ids = [patient for group in patients.values() for patient in group]
    programmes = np.empty((len(ids), PROGRAMMES))
    values = np.empty((len(ids), len(genes)), dtype=np.float32)
    labels: dict[str, list[str]] = {"PR": [], "HER2": [], "ODX": []}
    slides: list[tuple[str, ...]] = []
    for row, patient in enumerate(ids):
        rng = generator(seed, "patient", patient)
        programmes[row] = _programmes(rng)
        logs = base + programmes[row] @ loadings + 0.55 * rng.standard_normal(len(genes))
        values[row] = np.maximum(logs, 0.0)
        for task, value in _labels(programmes[row], rng).items():
            labels[task].append(value)
        slides.append(tuple(f"{patient}-S{slide + 1}" for slide in range(2 if rng.random() < 0.15 else 1)))
    return Profiles(
        patients=tuple(ids),
        hospitals=tuple(hospital for hospital, group in patients.items() for _ in group),
        genes=genes,
        values=values,
        scale="log2tpm",
        measured=np.ones(len(ids), dtype=bool),
        programmes=programmes,
        labels={task: tuple(column) for task, column in labels.items()},
        slides=tuple(slides),
    )


def _gene_model(seed: int) -> tuple[tuple[str, ...], Floats, Floats]:
    """Gene names, loadings (13, G) in log2 units and base levels (G,)."""
    rng = generator(seed, "genes")
    groups = [
        (_LUMINAL, _LUMINAL_AXIS),
        (_PROLIFERATION, _PROLIFERATION_AXIS),
        (_BASAL, _BASAL_AXIS),
        (_IMMUNE, _IMMUNE_AXIS),
        (_STROMAL, _STROMAL_AXIS),
        (_AMPLICON, _AMPLICON_AXIS),
        (_REFERENCE, None),
    ]
    names: list[str] = []
    columns: list[Floats] = []
    for symbols, axis in groups:
        for symbol in symbols.split():
            column = 0.15 * rng.standard_normal(PROGRAMMES) if axis is not None else np.zeros(PROGRAMMES)
            if axis is not None:
                column[axis] += rng.uniform(0.7, 1.2)
            names.append(symbol)
            columns.append(column)
    for number in range(_UNNAMED):
        names.append(f"SYN{number + 1:03d}")
        columns.append(0.4 * rng.standard_normal(PROGRAMMES))
    return tuple(names), np.stack(columns, axis=1), rng.uniform(4.0, 8.0, len(names))


def _programmes(rng: np.random.Generator) -> Floats:
    """Programmes of one patient (13,): unit variance, the amplicon's distribution has two modes."""
    programmes = rng.standard_normal(PROGRAMMES)
    amplified = rng.random() < _AMPLIFIED
    programmes[_AMPLICON_AXIS] = (2.2 if amplified else -0.39) + 0.45 * programmes[_AMPLICON_AXIS]
    programmes[_BASAL_AXIS] = 0.85 * programmes[_BASAL_AXIS] - 0.5 * programmes[_LUMINAL_AXIS]
    return programmes


def _labels(programmes: Floats, rng: np.random.Generator) -> dict[str, str]:
    """Labels of one patient as text, from the programmes and the noise of the assays."""
    noise = rng.standard_normal(3)
    receptor = 0.85 * programmes[_LUMINAL_AXIS] - 0.25 * programmes[_BASAL_AXIS]
    receptor += 0.25 * programmes[5]
    recurrence = 0.7 * programmes[_PROLIFERATION_AXIS] - 0.45 * programmes[_LUMINAL_AXIS]
    recurrence += 0.25 * programmes[_AMPLICON_AXIS] + 0.2 * programmes[6]
    values = {
        "PR": "positive" if _above(receptor, noise[0], 1.05, 0.45, 0.65) else "negative",
        "HER2": "positive" if programmes[_AMPLICON_AXIS] + 0.8 * noise[1] > 1.15 else "negative",
        "ODX": "high" if _above(recurrence, noise[2], 0.9, 0.4, 0.2) else "low",
    }
    fate = rng.random(3)
    if fate[1] < 0.06:
        values["HER2"] = "equivocal"
    return {task: "" if fate[i] > 0.97 else value for i, (task, value) in enumerate(values.items())}


def _above(score: float, noise: float, spread: float, noise_sd: float, prevalence: float) -> bool:
    """Whether score plus noise is among the top ``prevalence``; ``spread`` is the score's SD."""
    threshold = np.hypot(spread, noise_sd) * float(norm.isf(prevalence))
    return bool(score + noise_sd * noise > threshold)


_LABEL_TEXT = {
    "ER": {"1": "positive", "0": "negative"},
    "PR": {"1": "positive", "0": "negative"},
    "HER2": {"1": "positive", "0": "negative"},
    "ODX": {"1": "high", "0": "low"},
}


def real_brca(folder: Path) -> Profiles:
    """Real breast cohort: expression, labels and tissue source sites from a folder of tables.

    Parameters
    ----------
    folder : holds ``labels.csv``, ``rna_signedlog.csv.gz`` and ``pam50_log2rsem.csv.gz``

    Notes
    -----
    Programmes are principal components of the first expression table; patients without a row there have
    nothing to synthesise a slide from and are left out. The second table is brought to the first one's
    scale (sign(z) log(1+|z|)) and joined; patients without a row in it keep slides but no expression.
    ``ODX_HR`` is ODX among HR-positive, HER2-negative patients.

    Raises
    ------
    UserError
        ``synth-table-missing`` when a table is not there.
    """
    labels = _table(folder / "labels.csv").set_index("patient")
    rna = _numbers(folder / "rna_signedlog.csv.gz", "case_id")
    pam50 = _numbers(folder / "pam50_log2rsem.csv.gz", "patient")
    patients = [patient for patient in labels.index if patient in rna.index]
    rna, labels = rna.loc[patients], labels.loc[patients]
    pam50 = pam50[[gene for gene in pam50 if gene not in rna]]
    scores = (pam50 - pam50.mean()) / pam50.std()
    extra = scores.abs().apply(np.log1p) * scores.apply(np.sign)
    both = rna.join(extra, how="left")
    measured = both.notna().all(axis=1).to_numpy()
    columns = {name: labels["ODX_high" if name == "ODX" else name] for name in _LABEL_TEXT}
    text = {name: tuple(_text(value, _LABEL_TEXT[name]) for value in column) for name, column in columns.items()}
    return Profiles(
        patients=tuple(patients),
        hospitals=tuple(labels["tss"]),
        genes=tuple(both.columns),
        values=both.to_numpy(dtype=np.float32),
        scale="signedlog",
        measured=measured,
        programmes=_components(rna),
        labels={**text, "ODX_HR": tuple(_hormone_positive(text, row) for row in range(len(patients)))},
        slides=tuple(tuple(cell.split(";")) for cell in labels["slides"]),
    )


def _components(rna: pd.DataFrame) -> Floats:
    """Twelve principal components of unit variance and the HER2 amplicon, (n, 13)."""
    varying = rna.loc[:, rna.std() > 0]
    scores = (varying - varying.mean()) / varying.std()
    left, _, _ = np.linalg.svd(scores.to_numpy(), full_matrices=False)
    components = left[:, : PROGRAMMES - 1]
    # A component's sign is arbitrary: its largest entry is made positive.
    components = components * np.sign(components[np.abs(components).argmax(axis=0), range(PROGRAMMES - 1)])
    amplicon = scores[["ERBB2", "CDK12"]].mean(axis=1).to_numpy()
    return np.column_stack([components / components.std(axis=0), amplicon])


def _hormone_positive(text: dict[str, tuple[str, ...]], row: int) -> str:
    hormone = "positive" in (text["ER"][row], text["PR"][row])
    return text["ODX"][row] if hormone and text["HER2"][row] == "negative" else "not applicable"


def _text(value: str, words: dict[str, str]) -> str:
    return "" if value == "" else words[str(int(float(value)))]


def _table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError("synth-table-missing", f"{path}: this table is not there. Name the folder that holds it.")
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _numbers(path: Path, patient: str) -> pd.DataFrame:
    table = _table(path).set_index(patient)
    return table.astype(np.float64)
