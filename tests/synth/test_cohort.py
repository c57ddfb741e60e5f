from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from momkd_fl.config.base import load
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.load import load_cohort
from momkd_fl.errors import UserError
from momkd_fl.synth.cohort import SynthSite, write_consortium, write_semi_real

SITES = (SynthSite("oak", 10), SynthSite("pine", 6, genomics=False, role="evaluate"))
SMALL = {"mean_patches": 24, "dim": 16}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_site_files_are_valid_and_lead_to_their_files(consortium: dict[str, Path]) -> None:
    for name, path in consortium.items():
        site = load(path, SiteConfig)
        assert site.site == name
        assert site.data.labels.path.is_file()
        assert len(list(site.data.features[0].glob("*.h5"))) >= len(pd.read_csv(site.data.labels.path))
        assert (site.data.genomics is not None) == (name == "oak") == (path.parent / "expression.csv").exists()
        assert set(site.data.tasks) == {"PR", "HER2", "ODX"}
    assert load(consortium["yew"], SiteConfig).role == "evaluate"


def test_bags_are_as_trident_writes_them(consortium: dict[str, Path]) -> None:
    path = next(consortium["oak"].parent.glob("features_synthetic-32/*.h5"))
    with h5py.File(path) as file:
        features, coords = file["features"], file["coords"]
        assert features.dtype == np.float16
        assert features.chunks == (1, 32)
        assert features.attrs["encoder"] == "synthetic-32"
        assert features.attrs["name"] == path.stem
        assert coords.dtype == np.int64
        assert coords.shape == (features.shape[0], 2)
        assert dict(coords.attrs) == {
            "patch_size": 256,
            "patch_size_level0": 512,
            "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 0,
        }


def test_every_slide_of_the_table_has_its_file_and_some_patients_have_two(consortium: dict[str, Path]) -> None:
    slides = []
    for path in consortium.values():
        table = pd.read_csv(path.parent / "labels.csv", dtype=str, keep_default_na=False)
        files = {bag.stem for bag in path.parent.glob("features_*/*.h5")}
        assert files == {slide for cell in table["slides"] for slide in cell.split(";")}
        slides += [cell.count(";") + 1 for cell in table["slides"]]
    assert set(slides) == {1, 2}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_consortium(tmp_path / name, SITES, seed=seed, **SMALL)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    before, after = digests(tmp_path / "a"), digests(tmp_path / "c")
    bags = [name for name in before if name.endswith("-S1.h5")]
    assert len(bags) == 16
    assert all(before[name] != after[name] for name in bags)


def test_a_site_does_not_depend_on_the_others(tmp_path: Path) -> None:
    write_consortium(tmp_path / "both", SITES, seed=1, **SMALL)
    write_consortium(tmp_path / "one", SITES[1:], seed=1, **SMALL)
    assert digests(tmp_path / "both" / "pine") == digests(tmp_path / "one" / "pine")


def test_a_finished_site_is_not_written_over(tmp_path: Path) -> None:
    write_consortium(tmp_path, SITES[:1], seed=1, **SMALL)
    with pytest.raises(UserError) as error:
        write_consortium(tmp_path, SITES[:1], seed=2, **SMALL)
    assert error.value.code == "synth-folder-in-use"


@pytest.mark.parametrize(
    ("sites", "tasks", "code"),
    [
        (SITES, ("MSI",), "synth-task-unknown"),
        (SITES, ("ODX_HR",), "synth-task-unknown"),
        ((SynthSite("oak", 0),), ("PR",), "synth-site-empty"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, sites: tuple[SynthSite, ...], tasks: tuple[str, ...], code: str) -> None:
    with pytest.raises(UserError) as error:
        write_consortium(tmp_path, sites, seed=0, tasks=tasks, **SMALL)
    assert error.value.code == code
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("gain", "lowest", "highest"), [(0.0, 0.40, 0.60), (1.0, 0.63, 0.90)])
def test_histology_knows_the_label_through_the_gain_alone(
    tmp_path: Path, mean_bags, gain: float, lowest: float, highest: float
) -> None:
    sites = [SynthSite(name, patients, genomics=False) for name, patients in (("oak", 300), ("pine", 200))]
    sites.append(SynthSite("yew", 400, genomics=False))
    paths = write_consortium(tmp_path, sites, seed=7, gain=gain, mean_patches=50, dim=64, tasks=("PR",))
    means, labels = mean_bags(list(paths.values()), "PR", "positive", "negative")
    student = LogisticRegression(C=0.01).fit(np.concatenate(means[:2]), np.concatenate(labels[:2]))
    assert lowest < roc_auc_score(labels[2], student.decision_function(means[2])) < highest


@pytest.mark.real
def test_semi_real_cohort(tmp_path: Path, brca_folder: Path) -> None:
    paths = write_semi_real(tmp_path, brca_folder, seed=0, tasks=("PR", "ODX_HR"), dim=16, mean_patches=16)
    assert list(paths) == ["BH", "A2", "E2", "D8", "A8", "AR", "external"]
    counts = {}
    for name, path in paths.items():
        site = load(path, SiteConfig)
        assert (site.data.genomics is None) == (name in ("A8", "AR", "external"))
        assert site.role == ("evaluate" if name == "external" else "train")
        counts[name] = len(pd.read_csv(path.parent / "labels.csv"))
    assert sum(counts.values()) == 612
    assert counts["external"] == 102
    expression = pd.read_csv(tmp_path / "BH" / "expression.csv")
    assert expression.notna().all().all()
    assert len(expression) < counts["BH"] + 1


def test_the_loader_takes_a_written_site(consortium: dict[str, Path]) -> None:
    cohort = load_cohort(load(consortium["oak"], SiteConfig), task="PR", classes=2)
    assert (cohort.dim, cohort.encoder) == (32, "synthetic-32")
    assert len(cohort.patients) == 12
    assert {"ESR1", "ERBB2", "MKI67"} <= set(cohort.genes_available)
    bag = cohort.bag(cohort.patients[0])
    assert bag.features.shape[1] == 32
    assert bag.neighbours.shape == (len(bag.features), 9)
