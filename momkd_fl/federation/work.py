"""A site's work of one run: its cohort on the agreed panel and its student, and what a message asks of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from momkd_fl.config.federation import FederationConfig
from momkd_fl.data.cohort import Cohort, Patient
from momkd_fl.data.splits import Split
from momkd_fl.errors import UserError
from momkd_fl.federation.messages import Arrays, Train, expect_shapes
from momkd_fl.federation.plan import SitePlan
from momkd_fl.federation.private_release import PrivateSite
from momkd_fl.federation.public_space import public_statistics
from momkd_fl.federation.site_statistics import memory_statistics
from momkd_fl.federation.student import Layout, build_student, get_weights, layout_of, set_weights, shape_of
from momkd_fl.model.memory import Memory
from momkd_fl.model.momkd import LossWeights, StudentShape
from momkd_fl.privacy.statistics import MemoryStatistics
from momkd_fl.training.loop import Model, Prediction, TrainReport, TrainSettings, predict, train, trial_step
from momkd_fl.training.precision import Precision, choose_precision
from momkd_fl.training.resident import DeviceCache, device_cache
from momkd_fl.training.sampling import Packer
from momkd_fl.training.teacher import leave_one_out_logits, out_of_fold_logits


@dataclass
class Work:
    """What a run needs at the site. The optimiser's state and bags on a GPU are kept between rounds and never leave."""

    config: FederationConfig
    cohort: Cohort
    space: dict[str, Any]
    shape: StudentShape
    layout: Layout
    model: Model
    device: torch.device
    precision: Precision | None = None
    resident: DeviceCache | None = None
    capture: bool = False
    optimiser: dict[str, Any] | None = None
    teacher: dict[Hashable, NDArray[np.float32]] | None = field(default=None, repr=False)
    private: PrivateSite = field(init=False)

    def __post_init__(self) -> None:
        self.private = PrivateSite(self.config)

    @classmethod
    def of_plan(cls, plan: SitePlan, cohort: Cohort, device: torch.device, capture: bool = False) -> Work:
        """The work that a plan describes, over the site's cohort; ``capture``: with CUDA graphs."""
        config = plan.config
        if config.privacy.noisy and cohort.standardise == "site":
            raise UserError(
                "privacy-coupled",
                f"Site '{cohort.site}': its features are standardised by all its patients together, which a private "
                "run cannot use. Start the client again; it must read the cohort as this run asks.",
            )
        if plan.panel:
            cohort = cohort.with_panel(plan.panel, config.genes.minimum)
        elif cohort.genes_available:  # the federation uses no genomics
            without = tuple(dataclasses.replace(patient, genes=None) for patient in cohort.patients)
            cohort = dataclasses.replace(cohort, patients=without, genes_available=())
        shape = shape_of(config, plan.panel)
        model = build_student(shape, config.seed)
        return cls(
            config, cohort, plan.space, shape, layout_of(shape), model, device, resident=device_cache(device),
            capture=capture,
        )  # fmt: skip

    @property
    def genomic(self) -> bool:
        """Whether this site trains the genomic branch and sends genomic statistics."""
        return self.shape.genes is not None and bool(self.cohort.genes_available)

    @property
    def packer(self) -> Packer:
        """Patients as packs, genes as z-scores of the federation's scaling."""
        return Packer(self.cohort, self.space.get("mean"), self.space.get("scale"), self.resident)

    def receive(self, arrays: Arrays) -> Memory:
        """Load the weights that came and return the memory that came with them, both checked whole.

        Where no weights are shared, none may come: the student is the site's own.
        """
        if self.config.privacy.share == "memory":
            expect_shapes(arrays.get("weights", {}), {}, "the coordinator: weights")
            return Memory.from_arrays(arrays.get("memory", {}), self.space)
        sizes = {branch: (size,) for branch, size in self.layout.sizes.items()}
        expect_shapes(arrays.get("weights", {}), sizes, "the coordinator: weights")
        set_weights(self.model, self.layout, arrays["weights"])
        return Memory.from_arrays(arrays.get("memory", {}), self.space)

    def statistics(self, memory: Memory) -> MemoryStatistics:
        """Sums over the training patients for the memory, with noise where the federation's file says so."""
        patients, how = self.cohort.labelled("train"), self.config.memory.assignment
        if self.config.memory.source == "labels":  # no patient's slot may follow from its genome
            memory = dataclasses.replace(memory, anchors=None)
        if self.config.privacy.memory_noisy:
            return self.private.slots(self.model, memory, self.packer, patients, self.device, genomic=self.genomic)
        if self.config.privacy.share == "memory":
            return public_statistics(self.config, memory, self.packer, patients, how)
        return memory_statistics(
            self.model, memory, self.packer, patients, self.device, how,
            genomics=self.genomic, precision=self.config.training.score_precision,
        )  # fmt: skip

    def score(self, memory: Memory, split: Split) -> Prediction:
        """Scores of the labelled patients of a split."""
        return self.score_patients(memory, self.cohort.labelled(split))

    def score_patients(self, memory: Memory, patients: Sequence[Patient]) -> Prediction:
        """Scores of these patients of the cohort, labelled or not."""
        precision = self.config.training.score_precision
        return predict(self.model, memory, self.packer, patients, self.device, precision)

    def train(self, memory: Memory, seed: int, asked: Train) -> TrainReport:
        """One round of training from the weights received."""
        patients = self.cohort.labelled("train")
        settings = self._settings(memory, patients, asked)
        packer = self.packer
        packer.teacher = self._teacher(packer, patients)
        report = train(self.model, memory, packer, patients, settings, seed, self.optimiser)
        self.optimiser = report.optimiser
        self.private.trained(report.steps)
        return report

    def difference(self, received: dict[str, Any]) -> dict[str, Any]:
        """theta - theta_t; no genomic branch from sites without, and none at all where no weights are shared."""
        if self.config.privacy.share == "memory":
            return {}
        branches = [branch for branch in self.layout.branches if branch == "histology" or self.genomic]
        new = get_weights(self.model, self.layout)
        return {branch: new[branch] - received[branch] for branch in branches}

    def _teacher(self, packer: Packer, patients: list[Patient]) -> dict[Hashable, NDArray[np.float32]] | None:
        """A teacher's logits of the patients with genomics, made once a run; None where no loss asks for them."""
        space = Memory.from_arrays({}, self.space).space
        soft = self.config.losses.soft_labels > 0 and "class_included" in self.space
        if space is None or not self.genomic or not (soft or self.config.losses.logits):
            return None
        if self.teacher is None:
            found = [(patient, packer.genes(patient)) for patient in patients]
            known = [(patient, z) for patient, z in found if z is not None]
            z = torch.from_numpy(np.stack([z for _, z in known]))
            labels = torch.tensor([patient.label for patient, _ in known])
            if soft:
                names = ("class_sums", "class_counts", "class_included")
                told = (np.asarray(self.space[name], np.float64) for name in names)
                logits = leave_one_out_logits(space.embed(z).double().numpy(), labels.numpy(), *told)
            else:
                logits = out_of_fold_logits(space.coordinates(z), labels, self.config.classes, self.config.seed)
            self.teacher = dict(zip((patient.key for patient, _ in known), logits, strict=True))
        return self.teacher

    def _settings(self, memory: Memory, patients: list[Patient], body: Train) -> TrainSettings:
        """The federation's settings, with the precision that a trial on the first patients chose once."""
        asked = self.config.training
        losses = _loss_weights(self.config)
        gradients = self.private.gradients()
        if gradients is not None:
            self.precision = "fp32"  # a trial would choose by the patients
        if self.precision is None:
            first = patients[: asked.patients_per_step]
            step = trial_step(self.model, memory, self.packer, first, self.device, losses)
            self.precision = choose_precision(asked.precision, self.device, step)
        return TrainSettings(
            epochs=asked.local_epochs,
            steps=asked.local_steps,
            patients_per_step=asked.patients_per_step,
            learning_rate=asked.learning_rate * body.learning_rate_share,
            weight_decay=asked.weight_decay,
            clip_norm=asked.clip_norm,
            precision=self.precision,
            device=self.device,
            losses=losses,
            proximal_mu=body.proximal_mu,
            max_patches=asked.max_patches,
            capture=self.capture,
            private=gradients,
        )


def _loss_weights(config: FederationConfig) -> LossWeights:
    losses, memory = config.losses, config.memory
    return LossWeights(
        classification=losses.classification,
        memory=losses.memory,
        align_histology=losses.align_histology,
        align_genomics=losses.align_genomics,
        reconstruction=losses.reconstruction,
        match=memory.match_weight,
        margin=losses.margin,
        match_temperature=memory.match_temperature,
        match_labels=memory.source == "labels",
        batch=losses.batch,
        batch_distance=losses.batch_distance,
        logits=losses.logits,
        logits_temperature=losses.logits_temperature,
        soft_labels=losses.soft_labels,
    )
