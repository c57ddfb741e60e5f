"""Ours against the released MoMKD code: the same weights, bag, graph, genes and label through both.

    bash benchmarks/peers.sh ../peers
    python -m benchmarks.parity_release [--release ../peers/MoMKD] [--write-fixture]

The release's own training loop takes one step on one bag, without dropout, and is stopped where its optimiser would
move the weights. One JSON line for each logit, attention, loss term and gradient tensor: the largest difference as
a share of the tensor's largest value, the larger of the two labels. What differs by design is set as released here:
the memory is a parameter (``memory_mode='gradient'``), and the neighbour index lists the patches that list a patch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.figures import Figure, print_figures
from benchmarks.peers import add_packages
from momkd_fl.data.graph import neighbours as own_nearest
from momkd_fl.model.batch import pack
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import LossWeights, MoMKD, StudentShape, load_weights, weights

FIXTURE = Path(__file__).resolve().parent.parent / "tests" / "model" / "fixtures" / "parity_release.json"
COMMIT = "226ad631d93d50790d9c842e6c5dc3ea641a9ae2"
TOLERANCE = 1e-4
HYPERPARAMETERS = {"task_weight": 0.5, "alpha_rna": 0.05, "alpha_wsi": 0.2, "margin": 0.3, "recon_weight": 0.05}
"""What the release's training hands to its loop; the memory's weight, 0.1, is written inside it."""
TERMS = {
    "classification": ("loss_task", LossWeights.classification),
    "memory": ("mem_loss", LossWeights.memory),
    "align_histology": ("loss_align_wsi", LossWeights.align_histology),
    "align_genomics": ("loss_align_rna", LossWeights.align_genomics),
    "reconstruction": ("loss_recon", LossWeights.reconstruction),
}
"""Ours to the release's name, and the weight that our term already carries."""
MODULES = {
    "encoder.first_norm.": "wsi_encoder.ln1.",
    "encoder.second_norm.": "wsi_encoder.ln2.",
    "encoder.first.source.": "wsi_encoder.gat1.lin_l.",
    "encoder.first.target.": "wsi_encoder.gat1.lin_r.",
    "encoder.first.attention": "wsi_encoder.gat1.att",
    "encoder.first.bias": "wsi_encoder.gat1.bias",
    "encoder.second.source.": "wsi_encoder.gat2.lin_l.",
    "encoder.second.target.": "wsi_encoder.gat2.lin_r.",
    "encoder.second.attention": "wsi_encoder.gat2.att",
    "encoder.second.bias": "wsi_encoder.gat2.bias",
    "encoder.residual.": "wsi_encoder.res_proj1.",
    "patch_projection.": "wsi_patch_projector.",
    "slide_projection.": "wsi_pool_projector.",
    "classifier.": "wsi_classifier_proto.",
    "genomics.encoder.": "rna_tower.encoder.",
    "genomics.decoder.": "rna_decoder.decoder.",
    "genomics.projection.": "rna_projector.",
}
"""Ours to the release's; ``tau`` (the release learns its logarithm) and ``slots`` (two codebooks) are apart."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One bag and one set of weights, in our names and shapes.

    Attributes
    ----------
    features : (P, D_in) float32
    neighbours : (P, k + 1) int32, column 0 the patch itself, -1 where there is none
    genes : (G,) float32
    weights : of a MoMKD with ``memory_mode='gradient'``
    """

    hidden: int
    features: NDArray[np.float32]
    neighbours: NDArray[np.int32]
    genes: NDArray[np.float32]
    weights: Arrays

    def shape(self) -> StudentShape:
        """The student that the weights belong to."""
        classes, slots, memory_dim = self.weights["slots"].shape
        return StudentShape(
            dim_in=self.features.shape[1],
            hidden=self.hidden,
            heads=len(self.weights["encoder.first.attention"]),
            memory_dim=memory_dim,
            neighbours=self.neighbours.shape[1] - 1,
            classes=classes,
            slots=slots,
            genes=len(self.genes),
            anchor_dim=None,
            dropout=0.0,
            memory_mode="gradient",
        )


def draw(patches: int, dim_in: int, hidden: int, memory_dim: int, slots: int, genes: int, classifier: int) -> Case:
    """A case from a fixed seed; of the classifier's hidden units only ``classifier`` are not zero."""
    rng = np.random.RandomState(7)  # its stream never changes between versions of NumPy
    shape = StudentShape(dim_in, hidden, 2, memory_dim, 8, 2, slots, genes, None, 0.0, "momkd", "gradient")
    drawn = {name: rng.standard_normal(value.shape) for name, value in sorted(weights(MoMKD(shape)).items())}
    for name, value in drawn.items():
        if value.ndim == 2:
            value /= np.sqrt(value.shape[1])
        elif value.ndim == 1:
            value *= 0.1
            value += 1.0 if "norm.weight" in name or name.endswith((".0.weight", ".1.weight")) else 0.0
    drawn["tau"] = np.array(0.2)
    drawn["slots"] /= np.linalg.norm(drawn["slots"], axis=-1, keepdims=True)
    drawn["classifier.1.weight"][classifier:] = drawn["classifier.1.bias"][classifier:] = 0.0
    drawn["classifier.4.weight"][:, classifier:] = 0.0
    side = int(np.ceil(np.sqrt(patches)))
    grid = np.stack([np.arange(patches) // side, np.arange(patches) % side], axis=1)
    coords = (grid + rng.uniform(-0.3, 0.3, (patches, 2))).astype(np.float32)
    return Case(
        hidden=hidden,
        features=rng.standard_normal((patches, dim_in)).astype(np.float32),
        neighbours=turned_round(own_nearest(coords, 8)),
        genes=rng.standard_normal(genes).astype(np.float32),
        weights={name: value.astype(np.float32) for name, value in drawn.items()},
    )


def edges(neighbours: NDArray[np.int32]) -> NDArray[np.int64]:
    """(2, E) speaker and hearer of every edge of an index (P, k + 1), without the loops of column 0."""
    hearer, column = np.nonzero(neighbours[:, 1:] >= 0)
    return np.stack([neighbours[hearer, column + 1], hearer]).astype(np.int64)


def turned_round(neighbours: NDArray[np.int32]) -> NDArray[np.int32]:
    """The index in which a patch hears from those that list *it*, as in the release: any number of them, -1 padded."""
    hearer, speaker = edges(neighbours)
    order = np.argsort(hearer, kind="stable")
    counts = np.bincount(hearer, minlength=len(neighbours))
    column = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = np.full((len(neighbours), counts.max() + 1), -1, np.int32)
    index[:, 0] = np.arange(len(neighbours))
    index[hearer[order], column + 1] = speaker[order]
    return index


def ours(case: Case, label: int) -> Arrays:
    """Everything that is compared, from our student."""
    model = MoMKD(case.shape())
    load_weights(model, case.weights)
    _without_dropout(model)
    batch = pack([(case.features, case.neighbours)], [label], [case.genes], len(case.genes))
    memory = Memory()
    output = model(batch, memory)
    terms = model.loss(output, batch, memory, LossWeights())
    torch.stack(list(terms.values())).sum().backward()
    found = {"logits": output.logits, "attention": output.attention, "slide": output.slide, "genome": output.genome}
    found |= {f"term.{name}": terms[name] / weight for name, (_, weight) in TERMS.items()}
    found |= {f"gradient.{name}": value.grad for name, value in model.named_parameters()}
    return {name: value.detach().numpy() for name, value in found.items()}


def released(case: Case, label: int) -> Arrays:
    """The same from the release, whose folder is on ``sys.path``; gradients in our names and shapes."""
    model = _released_model(case)
    seen: dict[str, Tensor] = {}
    loop = importlib.import_module("utils.Mkd_train_utils").mkd_train_loop
    inner = model.forward_train

    def watched(*given: Any) -> dict[str, Tensor]:
        seen.update(inner(*given))
        return seen

    model.forward_train = watched
    optimiser = _Stopped(model)
    graph = torch.from_numpy(edges(case.neighbours))
    bag = ((torch.from_numpy(case.features), graph), torch.from_numpy(case.genes)[None], torch.tensor([label]), None)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # it prints; the figures are on standard output
        means = loop(0, model, [bag], optimiser, HYPERPARAMETERS, torch.device("cpu"))
    found = {
        "logits": seen["logits"],
        "attention": seen["attention"],
        "slide": seen["wsi_proj"],
        "genome": seen["rna_proj"],
    }
    arrays = {name: value.detach().numpy() for name, value in found.items()}
    arrays |= {f"term.{name}": np.float64(means[theirs]) for name, (theirs, _) in TERMS.items()}
    for name, value in case.weights.items():
        arrays[f"gradient.{name}"] = _in_our_shape(name, value, optimiser.gradients)
    return arrays


class _Stopped:
    """In an optimiser's place: keeps the gradients and moves nothing."""

    param_groups = ({"lr": 0.0},)

    def __init__(self, model: nn.Module) -> None:
        self.model, self.gradients = model, dict[str, NDArray[Any]]()

    def step(self) -> None:
        self.gradients = {
            name: np.zeros(value.shape, np.float32) if value.grad is None else value.grad.numpy().copy()
            for name, value in self.model.named_parameters()
        }

    def zero_grad(self) -> None:
        self.model.zero_grad()


def _released_model(case: Case) -> Any:
    """The release's model with the case's weights; the width of its genomic branch is the case's, not always 512."""
    shape, theirs = case.shape(), importlib.import_module("models.mkd")
    classifier = int(np.any(case.weights["classifier.1.weight"] != 0, axis=1).sum())
    genes = shape.genes or 0
    model = theirs.MKD(genes, shape.dim_in, shape.hidden, shape.hidden, shape.memory_dim, shape.slots, classifier)
    model.rna_tower = theirs.RnaEncoder(genes, shape.hidden, shape.hidden)
    model.rna_decoder = theirs.RnaDecoder(genes, shape.hidden, shape.hidden)
    state = dict(model.named_parameters())
    written = set()
    with torch.no_grad():
        for name, value in case.weights.items():
            for row, target in enumerate(_released_names(name)):
                piece = np.log(value) if name == "tau" else value[row : row + 1] if name == "slots" else value
                if name.startswith("classifier."):
                    piece = piece[tuple(slice(size) for size in state[target].shape)]
                state[target].copy_(torch.tensor(piece).view_as(state[target]))
                written.add(target)
    if written != set(state):
        raise ValueError(f"tensors of the release without a counterpart: {sorted(set(state) - written)}")
    _without_dropout(model)
    return model


def _released_names(name: str) -> tuple[str, ...]:
    """The release's tensors that hold our tensor ``name``; the codebook of class 0 comes first."""
    if name == "tau":
        return ("attn_log_tau",)
    if name == "slots":
        return ("mem_neg._codebook.embed", "mem_pos._codebook.embed")
    start = next(start for start in MODULES if name.startswith(start))
    return (MODULES[start] + name.removeprefix(start),)


def _in_our_shape(name: str, value: NDArray[Any], gradients: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The release's gradient of our tensor ``name``; dL/dtau = dL/dlog(tau) / tau, unused units have gradient 0."""
    pieces = [gradients[target] for target in _released_names(name)]
    if name == "tau":
        return np.asarray(pieces[0] / value)
    if not name.startswith("classifier."):
        return np.concatenate(pieces).reshape(value.shape)
    return np.pad(pieces[0], [(0, ours - theirs) for ours, theirs in zip(value.shape, pieces[0].shape, strict=True)])


def _without_dropout(model: nn.Module) -> None:
    """Dropout off in training mode: the release forms its memory loss in no other, and the draws are not shared."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


def relative(got: NDArray[Any], want: NDArray[Any]) -> float:
    """Largest difference as a share of the largest value wanted; 0 where both are 0."""
    difference = float(np.abs(np.float64(got).reshape(-1) - np.float64(want).reshape(-1)).max())
    return difference / float(np.abs(want).max()) if difference else 0.0


def compare(case: Case, size: str, tolerance: float) -> list[Figure]:
    """A figure for each tensor, the worse of the labels 0 and 1."""
    pairs = [(ours(case, label), released(case, label)) for label in (0, 1)]
    figures = []
    for name in pairs[0][0]:
        worst = max(relative(got[name], want[name]) for got, want in pairs)
        target = f"<= {tolerance:g}"
        figures.append(Figure(f"parity.{size}.{name}", worst, "relative", target, worst <= tolerance))
    return figures


def by_design(case: Case) -> list[Figure]:
    """How far one step lies from the release's where ours differs on purpose; nothing to hold."""
    heard, stretched = replace(case, neighbours=turned_round(case.neighbours)), _stretched(case)
    pairs = {
        "own_nearest": (ours(heard, 1), released(case, 1), ("logits", "attention")),
        "slots_of_any_norm": (ours(stretched, 1), released(stretched, 1), ("logits", "term.memory")),
    }
    return [
        Figure(f"parity.by_design.{what}.{name}", relative(got[name], want[name]), "relative")
        for what, (got, want, names) in pairs.items()
        for name in (*names, "gradient.patch_projection.weight")
    ]


def _stretched(case: Case) -> Case:
    """Slots whose norms have left 1 by up to a tenth, as after some steps of an optimiser."""
    slots = case.weights["slots"]
    norms = np.linspace(0.9, 1.1, slots.shape[1], dtype=np.float32)[None, :, None]
    return replace(case, weights={**case.weights, "slots": slots * norms})


def write_fixture(case: Case, path: Path) -> None:
    """A case and what the release makes of it, as numbers, for the test suite."""

    def plain(value: NDArray[Any]) -> Any:
        return json.loads(json.dumps(value.tolist()), parse_float=lambda text: float(f"{float(text):.9g}"))

    record = {
        "source": f"CAIR-LAB-WFUSM/MoMKD {COMMIT}",
        "hidden": case.hidden,
        **{name: plain(getattr(case, name)) for name in ("features", "neighbours", "genes")},
        "weights": {name: plain(value) for name, value in case.weights.items()},
        "released": {
            str(label): {name: plain(value) for name, value in released(case, label).items()} for label in (0, 1)
        },
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, separators=(",", ":")).replace('"weights"', '\n"weights"') + "\n", "utf-8")


def read_fixture(path: Path = FIXTURE) -> tuple[Case, dict[int, Arrays]]:
    """The case of the fixture, and the release's values for each label."""
    record = json.loads(path.read_text("utf-8"))
    case = Case(
        hidden=record["hidden"],
        features=np.array(record["features"], np.float32),
        neighbours=np.array(record["neighbours"], np.int32),
        genes=np.array(record["genes"], np.float32),
        weights={name: np.array(value, np.float32) for name, value in record["weights"].items()},
    )
    values = {
        int(label): {name: np.array(value) for name, value in found.items()}
        for label, found in record["released"].items()
    }
    return case, values


SMALL = {"patches": 14, "dim_in": 6, "hidden": 8, "memory_dim": 4, "slots": 3, "genes": 5, "classifier": 5}
AS_SCRIPTED = {
    "patches": 1000, "dim_in": 1536, "hidden": 512, "memory_dim": 64, "slots": 16, "genes": 768, "classifier": 128,
}  # fmt: skip
"""The sizes of the release's run.sh."""


def main() -> int:
    """Entry point; exit status 1 if a tensor is further from the release's than the tolerance, or there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, default=Path("../peers/MoMKD"), help="folder of the released code")
    parser.add_argument("--write-fixture", action="store_true", help=f"also write {FIXTURE.name} for the tests")
    args = parser.parse_args()
    if not (args.release / "models" / "mkd.py").is_file():
        print(f"{args.release}: no released MoMKD here; bring it with 'bash benchmarks/peers.sh'", file=sys.stderr)
        return 1
    add_packages(args.release.parent)
    sys.path.insert(0, str(args.release.resolve()))
    try:
        importlib.import_module("utils.Mkd_train_utils")
        importlib.import_module("models.mkd")
    except ImportError as error:
        print(f"{args.release}: {error}; install what it needs with 'bash benchmarks/peers.sh'", file=sys.stderr)
        return 1
    small, scripted = draw(**SMALL), draw(**AS_SCRIPTED)
    if args.write_fixture:
        write_fixture(small, FIXTURE)
    figures = compare(small, "small", TOLERANCE) + compare(scripted, "as_scripted", TOLERANCE)
    return print_figures(figures + by_design(scripted))


if __name__ == "__main__":
    sys.exit(main())
