"""What the benchmarks compare with, as shipped, on the CPU: the released MoMKD, CLAM and torchmil's ABMIL.

``benchmarks/peers.sh`` brings them beside the checkout. Each is driven through its own training and evaluation loop,
its own collate function and its own optimiser's settings; only the files are read by a data set of ours: h5py to
float32, and for the release the edges that were prepared beforehand.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.bags import GENES, NEIGHBOURS, Site
from momkd_fl.data.graph import neighbours

RELEASE_SETTINGS = {
    "task_weight": 0.5, "alpha_rna": 0.05, "alpha_wsi": 0.2, "margin": 0.3, "recon_weight": 0.05, "gc": 16,
}  # fmt: skip
"""What the release's train_mkd hands to its loop; ``gc`` is a clipping norm (run.sh)."""
CPU = torch.device("cpu")


def add_packages(folder: Path) -> None:
    """Make the peers' packages importable, behind the product's own.

    Raises
    ------
    SystemExit
        Status 2 with a sentence, where ``benchmarks/peers.sh`` has not brought them.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "venv" / "lib" / version / "site-packages"
    if not (packages / "torchmil").is_dir():
        print(f"{folder}: no peers to compare with; bring them with 'bash benchmarks/peers.sh'", file=sys.stderr)
        raise SystemExit(2)
    if str(packages) not in sys.path:
        sys.path.append(str(packages))


class Slides(Dataset[tuple[Tensor, int]]):
    """A site's slides in float32, from their files at every access, or from memory."""

    def __init__(self, site: Site, in_memory: bool) -> None:
        self.site = site
        self.kept = [self._read(path) for path in site.slides] if in_memory else None
        self.slide_data = pd.DataFrame({"slide_id": [path.stem for path in site.slides]})  # CLAM's summary reads it

    def __len__(self) -> int:
        return len(self.site.slides)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        features = self._read(self.site.slides[row]) if self.kept is None else self.kept[row]
        return features, self.site.labels[row]

    @staticmethod
    def _read(path: Path) -> Tensor:
        with h5py.File(path) as file:
            return torch.from_numpy(file["features"][:]).float()


class Clam:
    """CLAM_SB with gate, dropout 0.25 and instance loss over 8 patches (main.py's defaults; lr as in its README)."""

    def __init__(self, folder: Path, slides: Slides, bf16: bool = False) -> None:
        with _borrowed(folder / "CLAM"), _without_encoders(folder / "CLAM"):
            self.loops = importlib.import_module("utils.core_utils")
            models, tools = importlib.import_module("models.model_clam"), importlib.import_module("utils.utils")
        self.loops.device = CPU
        torch.manual_seed(0)
        self.model = models.CLAM_SB(
            gate=True, size_arg="small", dropout=0.25, k_sample=8, n_classes=2, embed_dim=slides.site.dim
        )
        self.loader = DataLoader(slides, batch_size=1, collate_fn=tools.collate_MIL)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=2e-4, weight_decay=1e-5)
        self.bf16 = bf16

    def epoch(self) -> float:
        """CLAM's training loop once; its mean loss of the bags."""
        seen = _Scalars()
        with _silent(), self._precision():
            self.loops.train_loop_clam(0, self.model, self.loader, self.optimiser, 2, 0.7, seen, nn.CrossEntropyLoss())
        return seen.values["train/loss"]

    def score(self) -> None:
        """CLAM's evaluation without its instance loss."""
        with _silent(), self._precision():
            self.loops.summary(self.model, self.loader, 2)

    def _precision(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()


class Torchmil:
    """torchmil's gated ABMIL with CLAM's layers before it: the same products as CLAM and our gated attention."""

    def __init__(self, slides: Slides, batch: int) -> None:
        trainer, models, data = (importlib.import_module(f"torchmil.{name}") for name in ("utils", "models", "data"))
        torch.manual_seed(0)
        before = nn.Sequential(nn.Linear(slides.site.dim, 512), nn.ReLU(), nn.Dropout(0.25))
        model = models.ABMIL(in_shape=(slides.site.dim,), att_dim=256, gated=True, feat_ext=before)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
        self.trainer = trainer.Trainer(model, optimiser, device="cpu", disable_pbar=True, verbose=False)
        bags = _Dictionaries(slides)
        self.loader = DataLoader(bags, batch_size=batch, collate_fn=data.collate_fn)

    def epoch(self) -> float:
        """Its training loop once (``train`` would pass over the bags a second time, to validate); the mean loss."""
        return float(self.trainer._shared_loop(self.loader, epoch=0, mode="train")["train/loss"])


class Released:
    """The released MoMKD at the sizes of its run.sh, with the patient's genes and prepared edges."""

    def __init__(self, folder: Path, slides: Slides) -> None:
        with _borrowed(folder / "MoMKD"):
            self.loops = importlib.import_module("utils.Mkd_train_utils")
            model = importlib.import_module("models.mkd").MKD
        torch.manual_seed(0)
        self.model = model(GENES, slides.site.dim, 512, 512, 64, 16, 128)
        self.loader = DataLoader(_WithGraphAndGenes(slides), batch_size=1)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=2e-4, weight_decay=1e-4)

    def epoch(self) -> float:
        """Its training loop once; the mean classification loss."""
        with _silent():
            means = self.loops.mkd_train_loop(0, self.model, self.loader, self.optimiser, RELEASE_SETTINGS, CPU)
        return float(means["loss_task"])

    def score(self) -> None:
        """Its validation loop once."""
        with _silent():
            self.loops.mkd_validate_loop(self.model, self.loader, CPU)


class _WithGraphAndGenes(Dataset[tuple[Any, ...]]):
    """Items as the release's data set gives them: ((features, edges), genes, label, id)."""

    def __init__(self, slides: Slides) -> None:
        self.slides = slides
        self.genes = torch.from_numpy(slides.site.genes)
        self.edges = [_edges(path) for path in slides.site.slides]

    def __len__(self) -> int:
        return len(self.slides)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        features, label = self.slides[row]
        return (features, self.edges[row]), self.genes[row], label, str(row)


class _Dictionaries(Dataset[dict[str, Tensor]]):
    """Items as torchmil's collate function takes them."""

    def __init__(self, slides: Slides) -> None:
        self.slides = slides

    def __len__(self) -> int:
        return len(self.slides)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        features, label = self.slides[row]
        return {"X": features, "Y": torch.tensor(label)}


class _Scalars:
    """In a TensorBoard writer's place."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Keep the last value of each name."""
        self.values[name] = value


def _edges(path: Path) -> Tensor:
    """(2, E) of the graph that our student gets too: speaker and hearer, without loops (the layer adds them)."""
    with h5py.File(path) as file:
        coords = file["coords"][:].astype(np.float32)
    index = neighbours(coords, NEIGHBOURS)
    hearer, column = np.nonzero(index[:, 1:] >= 0)
    return torch.from_numpy(np.stack([index[hearer, column + 1], hearer]).astype(np.int64))


@contextmanager
def _borrowed(folder: Path) -> Iterator[None]:
    """Imports from a peer's folder; its modules, whose names are as common as 'utils', are forgotten after."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
        roots = {entry.stem for entry in folder.iterdir()}
        for name in set(sys.modules) - before:
            if name.split(".")[0] in roots:
                del sys.modules[name]


@contextmanager
def _without_encoders(folder: Path) -> Iterator[None]:
    """CLAM's training imports torchvision, and its package of models every patch encoder; it touches neither."""
    models, vision = types.ModuleType("models"), types.ModuleType("torchvision")
    models.__path__ = [str(folder.resolve() / "models")]
    vision.transforms = types.ModuleType("torchvision.transforms")  # type: ignore[attr-defined]
    absent = {name: module for name, module in (("models", models), ("torchvision", vision)) if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


@contextmanager
def _silent() -> Iterator[None]:
    """Peers print; the figures are on standard output."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def losses_fall(losses: Sequence[float]) -> bool:
    """Whether an arm learns: the last epoch's loss is below the first's."""
    return losses[-1] < losses[0]
