"""What one site does when asked: the work behind each message, without a word of Flower.

A patient's data is read by the cohort, trained on by ``training`` and summed by ``privacy.statistics``; what this
module returns is what the messages' schemas allow, nothing else.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from momkd_fl import __version__
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.cohort import Cohort, Patient
from momkd_fl.data.fingerprint import Fingerprint
from momkd_fl.errors import UserError
from momkd_fl.evaluation.disclosure import publishable
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.evaluation.results import Cohort as CohortRow
from momkd_fl.evaluation.results import TaskCohort
from momkd_fl.federation.messages import (
    SHARED_SECTIONS,
    Arrays,
    Evaluate,
    EvaluateReply,
    Finish,
    FinishReply,
    Hello,
    HelloReply,
    Initialise,
    InitialiseReply,
    Parcel,
    Plan,
    PlanReply,
    Train,
    TrainReply,
    expect_shapes,
)
from momkd_fl.federation.plan import SitePlan, load_plan, save_plan
from momkd_fl.federation.site_data import cohort_loader, device_of
from momkd_fl.federation.site_statistics import anchor_statistics, genomes, memory_statistics
from momkd_fl.federation.state import Arrays as SpaceArrays
from momkd_fl.federation.student import Layout, build_student, get_weights, layout_of, set_weights, shape_of
from momkd_fl.model.memory import Memory, gene_scores
from momkd_fl.model.momkd import LossWeights, StudentShape, architecture_hash
from momkd_fl.privacy.statistics import MemoryStatistics, moment_sums, scaling_sums
from momkd_fl.training import checkpoint
from momkd_fl.training.loop import Model, Prediction, TrainSettings, predict, train, trial_step
from momkd_fl.training.precision import Precision, choose_precision
from momkd_fl.training.sampling import Packer

LoadCohort = Callable[[FederationConfig], tuple[Cohort, Fingerprint]]
"""Reads the site's data as the federation's shared sections ask, with the site's fingerprint."""


@dataclass
class Work:
    """What a run needs at the site, built from the plan: cohort on the panel, student, device."""

    config: FederationConfig
    cohort: Cohort
    shape: StudentShape
    layout: Layout
    model: Model
    packer: Packer
    device: torch.device
    precision: Precision | None = None
    optimiser: dict[str, Any] | None = None

    @property
    def genomic(self) -> bool:
        """Whether this site trains the genomic branch and sends genomic statistics."""
        return self.shape.genes is not None and bool(self.cohort.genes_available)


@dataclass
class Participant:
    """One site of a federation.

    Parameters
    ----------
    site, role : as in the site's configuration
    load : reads the cohort once the coordinator says which task, encoder and graph are asked for
    state_dir : where the plan, the final model and predictions are kept
    device : where to compute
    say : shows a sentence on the site's own screen
    """

    site: str
    role: Literal["train", "evaluate"]
    load: LoadCohort
    state_dir: Path
    device: torch.device
    say: Callable[[str], None]
    over: bool = False
    mistake: UserError | None = None
    _plan: SitePlan | None = None
    _loaded: tuple[Cohort, Fingerprint] | None = field(default=None, repr=False)
    _work: Work | None = field(default=None, repr=False)

    def give_up(self, mistake: UserError) -> None:
        """End this site's part: its own files or its plan cannot be used."""
        self.mistake, self.over = mistake, True

    def hello(self, request: Parcel[Hello]) -> tuple[HelloReply, Arrays]:
        """Read the cohort and say what the site is; no count, label or id."""
        self._plan, self._work, self.over, self.mistake = (
            SitePlan(request.run, request.body.federation),
            None,
            False,
            None,
        )
        cohort, fingerprint = self._cohort(self._plan.config)
        return HelloReply(
            site=self.site,
            role=self.role,
            software=__version__,
            genomics=bool(cohort.genes_available),
            genes=list(cohort.genes_available),
            fingerprint=dict(fingerprint.to_dict()),
            clock_unix_s=time.time(),
        ), {}

    def plan(self, request: Parcel[Plan]) -> tuple[PlanReply, Arrays]:
        """Take the panel and build the student; the hash tells the coordinator that both mean the same."""
        if self._plan is None or self._plan.run != request.run:
            raise UserError("plan-missing", f"Run {request.run} sent a plan before its greeting.")
        self._plan = self._plan.after(panel=tuple(request.body.panel), architecture=request.body.architecture)
        self._work = None
        work = self._ready(request.run)
        save_plan(self.state_dir, self._plan)
        return PlanReply(architecture=architecture_hash(work.shape)), {}

    def initialise(self, request: Parcel[Initialise]) -> tuple[InitialiseReply, Arrays]:
        """Sums of one step of the start, or the fixed genomic space to keep."""
        work = self._ready(request.run)
        step, space = request.body.step, request.arrays.get("space", {})
        if step == "fixed":
            self._keep_space(dict(space))
            return InitialiseReply(), {}
        patients = work.cohort.labelled("train")
        if step == "slots":
            memory = self._receive(work, request.arrays)
            sums = self._statistics(work, memory, patients)
            kept = MemoryStatistics(
                {"histology": sums.sums["histology"]}, {"histology": sums.counts["histology"]}
            ).to_arrays()
        elif step == "anchors":
            memory = Memory.from_arrays(request.arrays.get("memory", {}), self._space())
            embedded, rows = genomes(memory, work.packer, patients)
            labels = np.array([patients[row].label for row in rows], np.int64)
            anchors = np.asarray(request.arrays["memory"]["anchors"], np.float64)
            kept = anchor_statistics(anchors, embedded, labels, work.config.memory.assignment).to_arrays()
        else:
            values = np.stack([patient.genes for patient in patients if patient.genes is not None]).astype(np.float64)
            if step == "scaling":
                kept = scaling_sums(values)
            else:
                z = [gene_scores(row.astype(np.float32), space["mean"], space["scale"]) for row in values]
                kept = moment_sums(np.stack(z).astype(np.float64))
        return InitialiseReply(), {"statistics": kept}

    def train(self, request: Parcel[Train]) -> tuple[TrainReply, Arrays]:
        """One round: validate and sum under what came, then train from it and answer the difference."""
        if self.role != "train":
            raise UserError("role-mismatch", f"Site '{self.site}' evaluates only; it was asked to train.")
        work = self._ready(request.run)
        memory = self._receive(work, request.arrays)
        patients = work.cohort.labelled("train")
        self.say(f"Round {request.round}: training.")
        seconds: dict[str, float] = {}
        validated = _timed(seconds, "validate", lambda: self._score(work, memory, "validation"))
        sums = _timed(seconds, "statistics", lambda: self._statistics(work, memory, patients))
        settings = self._settings(work, memory, patients, request.body.proximal_mu)
        seed = int(
            np.random.SeedSequence((work.config.seed, request.round, _site_seed(self.site))).generate_state(1)[0]
        )
        report = _timed(
            seconds, "train", lambda: train(work.model, memory, work.packer, patients, settings, seed, work.optimiser)
        )
        if not all(np.isfinite(value) for value in report.losses.values()):
            raise UserError(
                "training-diverged",
                f"Round {request.round}: the training loss is not finite, so nothing is sent. Ask the coordinator for "
                "a smaller training.learning_rate.",
            )
        work.optimiser = report.optimiser
        update = self._difference(work, request.arrays["weights"])
        reply = TrainReply(
            seconds=seconds,
            losses=report.losses,
            loss_sum=validated.loss_by_class(work.config.classes),
            monitors={"effective_patches": validated.effective_patches},
        )
        return reply, {"update": update, "statistics": sums.to_arrays(), "scores": _histogram(validated)}

    def evaluate(self, request: Parcel[Evaluate]) -> tuple[EvaluateReply, Arrays]:
        """Score a split; the final evaluation also writes the patients' predictions, which stay at the site."""
        work = self._ready(request.run)
        memory = self._receive(work, request.arrays)
        split = request.body.split
        scored = self._score(work, memory, split)
        if request.body.final:
            path = self.state_dir / f"predictions_{split}.csv"
            write_predictions(path, scored)
            self.say(f"Predictions of the selected model are in {path}.")
        reply = EvaluateReply(loss_sum=scored.loss_by_class(work.config.classes), cohort=_cohort_row(work.cohort))
        return reply, {"scores": _histogram(scored)}

    def finish(self, request: Parcel[Finish]) -> tuple[FinishReply, Arrays]:
        """Keep the selected model, or the reason why the site was turned away; the run is over here."""
        body = request.body
        self.over = True
        if body.outcome == "refused":
            self.mistake = UserError(body.code, body.sentence)
        elif self._plan is not None and request.arrays:
            path = self.state_dir / "model.safetensors"
            tensors = {
                f"{group}/{name}": value for group, members in request.arrays.items() for name, value in members.items()
            }
            tensors |= {f"space/{name}": value for name, value in self._plan.space.items()}
            meta = {
                "run": self._plan.run,
                "federation": self._plan.federation,
                "panel": list(self._plan.panel),
                "architecture": self._plan.architecture,
            }
            checkpoint.save(path, tensors, meta)
            self.say(f"The run is over. {body.sentence} It is kept in {path}.")
        return FinishReply(), {}

    def score_with(
        self, run: str, config: FederationConfig, panel: tuple[str, ...], space: SpaceArrays, state: Arrays
    ) -> Prediction:
        """Score this site's test patients with a given state (``weights``, ``memory``), outside any run."""
        shared = config.model_dump(mode="json", include=set(SHARED_SECTIONS))
        self._plan, self._work = SitePlan(run, shared, panel, space=dict(space)), None
        work = self._ready(run)
        return self._score(work, self._receive(work, state), "test")

    def _cohort(self, config: FederationConfig) -> tuple[Cohort, Fingerprint]:
        if self._loaded is None or self._loaded[0].task != config.task:
            self._loaded = self.load(config)
        return self._loaded

    def _ready(self, run: str) -> Work:
        """The work of ``run``; after a restart it is rebuilt from the plan that was kept."""
        if self._plan is None or self._plan.run != run:
            self._plan, self._work = load_plan(self.state_dir, run), None
            self.say(f"Going on with run {run}.")
        if self._work is None:
            self._work = self._build(self._plan)
        return self._work

    def _build(self, plan: SitePlan) -> Work:
        config = plan.config
        cohort, _ = self._cohort(config)
        if plan.panel:
            cohort = cohort.with_panel(plan.panel, config.genes.minimum)
        elif cohort.genes_available:  # the federation uses no genomics
            without = tuple(dataclasses.replace(patient, genes=None) for patient in cohort.patients)
            cohort = dataclasses.replace(cohort, patients=without, genes_available=())
        shape = shape_of(config, plan.panel)
        return Work(
            config=config,
            cohort=cohort,
            shape=shape,
            layout=layout_of(shape),
            model=build_student(shape, config.seed),
            packer=_packer(cohort, plan),
            device=self.device,
        )

    def _space(self) -> dict[str, Any]:
        return {} if self._plan is None else self._plan.space

    def _keep_space(self, space: dict[str, Any]) -> None:
        if self._plan is not None and self._work is not None:
            self._plan = self._plan.after(space=space)
            self._work.packer = _packer(self._work.cohort, self._plan)
            save_plan(self.state_dir, self._plan)

    def _receive(self, work: Work, arrays: Arrays) -> Memory:
        """Load the weights that came and return the memory that came with them, both checked whole."""
        sizes = {branch: (size,) for branch, size in work.layout.sizes.items()}
        expect_shapes(arrays.get("weights", {}), sizes, "the coordinator: weights")
        set_weights(work.model, work.layout, arrays["weights"])
        return Memory.from_arrays(arrays.get("memory", {}), self._space())

    def _statistics(self, work: Work, memory: Memory, patients: list[Patient]) -> MemoryStatistics:
        how = work.config.memory.assignment
        return memory_statistics(work.model, memory, work.packer, patients, work.device, how, genomics=work.genomic)

    def _score(self, work: Work, memory: Memory, split: Literal["validation", "test"]) -> Prediction:
        return predict(work.model, memory, work.packer, work.cohort.labelled(split), work.device)

    def _settings(self, work: Work, memory: Memory, patients: list[Patient], proximal_mu: float) -> TrainSettings:
        """The federation's settings, with the precision that a trial on the first patients chose once."""
        settings = _settings(work, proximal_mu)
        if work.precision is None:
            first = patients[: settings.patients_per_step]
            step = trial_step(work.model, memory, work.packer, first, work.device, settings.losses)
            work.precision = choose_precision(work.config.training.precision, work.device, step)
        return dataclasses.replace(settings, precision=work.precision)

    def _difference(self, work: Work, received: dict[str, Any]) -> dict[str, Any]:
        """theta - theta_t, clipped in norm where the federation says so; no genomic branch from sites without."""
        branches = [branch for branch in work.layout.branches if branch == "histology" or work.genomic]
        new = get_weights(work.model, work.layout)
        update = {branch: new[branch] - received[branch] for branch in branches}
        limit = work.config.training.update_norm_max
        if limit is not None:
            norm = float(np.sqrt(sum(float(np.vdot(part, part)) for part in update.values())))
            update = {branch: part * np.float32(min(1.0, limit / max(norm, 1e-12))) for branch, part in update.items()}
        return update


def site_participant(config: SiteConfig, say: Callable[[str], None]) -> Participant:
    """The participant of a site's own configuration."""
    device = device_of(config)
    return Participant(config.site, config.role, cohort_loader(config, say), config.state_dir, device, say)


def write_predictions(path: Path, scored: Prediction) -> None:
    """One row a patient: id, label, probability of each class. The file stays at the site."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["patient", "label", *(f"p{label}" for label in range(scored.probabilities.shape[1]))])
    for patient, label, row in zip(scored.ids, scored.labels, scored.probabilities, strict=True):
        writer.writerow([patient, int(label), *(f"{value:.8g}" for value in row)])
    checkpoint.write_durably(path, text.getvalue().encode())


def _packer(cohort: Cohort, plan: SitePlan) -> Packer:
    return Packer(cohort, plan.space.get("mean"), plan.space.get("scale"))


def _settings(work: Work, proximal_mu: float) -> TrainSettings:
    """What the federation asks for; the precision is chosen on the first step."""
    training, losses, memory = work.config.training, work.config.losses, work.config.memory
    return TrainSettings(
        epochs=training.local_epochs,
        steps=training.local_steps,
        patients_per_step=training.patients_per_step,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
        precision="fp32",
        device=work.device,
        losses=LossWeights(
            classification=losses.classification,
            memory=losses.memory,
            align_histology=losses.align_histology,
            align_genomics=losses.align_genomics,
            reconstruction=losses.reconstruction,
            match=memory.match_weight,
            margin=losses.margin,
            match_temperature=memory.match_temperature,
        ),
        proximal_mu=proximal_mu,
        max_patches=training.max_patches,
    )


def _site_seed(site: str) -> int:
    return int.from_bytes(site.encode()[:16].ljust(16, b"\0"), "little")


def _histogram(scored: Prediction) -> dict[str, Any]:
    return ScoreHistogram.of(scored.labels, scored.probabilities).to_arrays()


def _cohort_row(cohort: Cohort) -> CohortRow:
    """The cohort's row in the report, with every count under the minimum cell withheld."""
    labelled = [patient for patient in cohort.patients if patient.label is not None]
    positive = float(np.mean([patient.label == 1 for patient in labelled])) if labelled else None
    return publishable(
        CohortRow(
            site=cohort.site,
            role=cohort.role,
            patients=len(cohort.patients),
            slides=sum(len(patient.slides) for patient in cohort.patients),
            with_genomics=sum(patient.genes is not None for patient in cohort.patients),
            tasks={cohort.task: TaskCohort(len(labelled), positive, dict(cohort.exclusions))},
        )
    )


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = work()
    seconds[name] = round(time.perf_counter() - started, 4)
    return result
