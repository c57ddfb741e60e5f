"""A small hospital on which the real site code is attacked: files, cohort, participant, and a canary."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from momkd_fl.config.base import load
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.cache import PatientBag
from momkd_fl.data.cohort import Patient
from momkd_fl.data.graph import neighbours
from momkd_fl.federation.initialise import first_anchors, public_axes
from momkd_fl.federation.messages import SHARED_SECTIONS, Hello, Initialise, Parcel, Plan
from momkd_fl.federation.participant import Participant
from momkd_fl.federation.site_data import cohort_loader
from momkd_fl.federation.student import initial_memory, initial_weights, shape_of
from momkd_fl.federation.work import Work
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import architecture_hash
from momkd_fl.synth.cohort import SynthSite, write_consortium

DIM, RUN = 16, "audit-00000000"
BASE: dict[str, Any] = {
    "name": "audit",
    "task": "PR",
    "encoder": {"name": f"synthetic-{DIM}", "dim": DIM},
    "model": {"hidden_dim": 16, "memory_dim": 4, "dropout": 0.0},
    "memory": {"slots": 1, "assignment": "hard", "anchor_dim": 4, "anchor_iterations": 1},
    "training": {"learning_rate": 5e-3, "precision": "fp32", "standardise": "none", "local_steps": 40},
    "genes": {"panel": "pam50"},
    "rounds": {"count": 1, "quorum": 1},
    "output_dir": ".",
    "members": {"ash": {}},
}


@dataclasses.dataclass
class AuditedSite:
    """The participant, its work, and the public state of a first round."""

    participant: Participant
    work: Work
    config: FederationConfig
    arrays: dict[str, dict[str, Any]]

    @property
    def memory(self) -> Memory:
        """The memory as the site received it."""
        return Memory.from_arrays(self.arrays["memory"], self.work.space)

    def patients(self) -> list[Patient]:
        """Training patients."""
        return self.work.cohort.labelled("train")

    def keep(self, patients: list[Patient]) -> None:
        """Make these the site's patients."""
        self.work.cohort = dataclasses.replace(self.work.cohort, patients=tuple(patients))


def audited_site(
    folder: Path, privacy: dict[str, Any], *, patients: int = 12, gain: float = 1.0, **sections: Any
) -> AuditedSite:
    """A hospital of so many patients, greeted and planned as by a coordinator; ``gain`` as in write_consortium."""
    torch.set_num_threads(1)
    sites = folder / "sites"
    file = sites / "ash" / "site.yaml"
    if not file.exists():
        hospital = (SynthSite("ash", patients),)
        write_consortium(sites, hospital, seed=11, dim=DIM, mean_patches=24, tasks=("PR",), gain=gain)
    config = FederationConfig.model_validate(BASE | {"privacy": privacy} | sections)
    own = load(file, SiteConfig)
    participant = Participant(
        "ash", "train", cohort_loader(own, _unsaid), folder / "state", torch.device("cpu"), _unsaid
    )
    shared = config.model_dump(mode="json", include=set(SHARED_SECTIONS))
    hello, _ = participant.hello(Parcel("hello", RUN, 0, Hello(federation=shared), {}))
    panel = tuple(sorted(hello.genes)[:20])
    shape = shape_of(config, panel)
    plan = Plan(panel=list(panel), architecture=architecture_hash(shape))
    participant.plan(Parcel("plan", RUN, 0, plan, {}))
    genes, dim = len(panel), shape.anchor_dim or 4
    space = {
        "mean": np.full(genes, config.privacy.gene_centre, np.float32),
        "scale": np.full(genes, config.privacy.gene_sd, np.float32),
        "axes": public_axes(dim, genes, config.seed),
        "sd": np.ones(dim, np.float32),
    }
    participant.initialise(Parcel("initialise", RUN, 0, Initialise(step="fixed", iteration=0), {"space": space}))
    assert participant._work is not None
    memory = {**initial_memory(config, shape), "anchors": first_anchors(config, dim)}
    arrays = {"weights": initial_weights(config, shape), "memory": memory}
    participant._work.receive(arrays)
    return AuditedSite(participant, participant._work, config, arrays)


def canary(site: AuditedSite, slides: int = 3) -> Patient:
    """A patient of several slides whose patches all point the same way: as heavy as a patient may be."""
    paths = tuple(Path(f"canary-{number}.h5") for number in range(slides))
    model = site.patients()[0]
    direction = np.random.default_rng(5).standard_normal(DIM).astype(np.float32)
    coords = np.stack(np.meshgrid(np.arange(3 * slides), np.arange(3)), -1).reshape(-1, 2).astype(np.float32)
    bag = PatientBag(np.tile(direction, (len(coords), 1)), neighbours(coords, 8))
    patient = dataclasses.replace(model, id="canary", slides=paths, label=1, genes=None, split="train")
    site.work.cohort.cache.put(patient.key, bag)
    return patient


def _unsaid(sentence: str) -> None:
    """The site's own sentences are of no interest to an attacker."""
