"""What one site does when asked: the work behind each message, without a word of Flower.

A patient's data is read by the cohort, trained on by ``training`` and summed by ``privacy.statistics``; what this
module returns is what the messages' schemas allow, nothing else.
"""

from __future__ import annotations

import json
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
from momkd_fl.data.cohort import Cohort
from momkd_fl.data.fingerprint import Fingerprint, data_digest
from momkd_fl.data.genomics import panel_columns
from momkd_fl.data.withdrawal import read_withdrawn, withdrawn_file
from momkd_fl.errors import UserError
from momkd_fl.evaluation.metrics import ScoreHistogram
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
    Select,
    SelectReply,
    Train,
    TrainReply,
)
from momkd_fl.federation.own_student import load_student, save_student
from momkd_fl.federation.plan import MODEL_FILE, SitePlan, load_plan, save_model, save_plan
from momkd_fl.federation.private_plan import released_in
from momkd_fl.federation.private_release import NOTHING
from momkd_fl.federation.site_data import cohort_loader, device_of
from momkd_fl.federation.site_outputs import cohort_row, unmeasured_row, write_predictions
from momkd_fl.federation.site_statistics import anchor_statistics, genomes
from momkd_fl.federation.state import Arrays as SpaceArrays
from momkd_fl.federation.student import get_weights, set_weights
from momkd_fl.federation.vault import CLEAR, Vault
from momkd_fl.federation.work import Work
from momkd_fl.model.memory import Memory, gene_scores
from momkd_fl.model.momkd import architecture_hash
from momkd_fl.privacy.accountant import Charge
from momkd_fl.privacy.statistics import MemoryStatistics, moment_sums, scaling_sums, selection_sums
from momkd_fl.security.seal import Sealed
from momkd_fl.training.loop import Prediction

LoadCohort = Callable[[FederationConfig], tuple[Cohort, Fingerprint]]
"""Reads the site's data as the federation's shared sections ask, with the site's fingerprint."""


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
    capture : record steps as CUDA graphs
    vault : how its files lie on disk
    withdrawn : who no longer takes part, as the site's list says now

    Attributes
    ----------
    charged : what all messages made since the greeting cost in privacy
    """

    site: str
    role: Literal["train", "evaluate"]
    load: LoadCohort
    state_dir: Path
    device: torch.device
    say: Callable[[str], None]
    capture: bool = False
    vault: Vault = CLEAR
    withdrawn: Callable[[], frozenset[str]] = frozenset
    over: bool = False
    mistake: UserError | None = None
    charged: list[Charge] = field(default_factory=list)
    _plan: SitePlan | None = None
    _loaded: tuple[Cohort, Fingerprint] | None = field(default=None, repr=False)
    _loaded_for: tuple[str, str, bool, frozenset[str]] | None = None
    _work: Work | None = field(default=None, repr=False)

    @property
    def task(self) -> str:
        """Task of the run at hand; empty before the first greeting."""
        return "" if self._plan is None else str(self._plan.federation.get("task", ""))

    def config_of(self, run: str) -> FederationConfig:
        """The shared settings of ``run``, also after a restart (raises UserError ``plan-missing``)."""
        known = self._plan is not None and self._plan.run == run
        plan = self._plan if known and self._plan is not None else load_plan(self.state_dir, run, self.vault)
        return plan.config

    def cohort_for(self, config: FederationConfig) -> Cohort:
        """The site's data as a federation's settings ask."""
        return self._cohort(config)[0]

    def give_up(self, mistake: UserError) -> None:
        """End this site's part: its own files or its plan cannot be used."""
        self.mistake, self.over = mistake, True

    def hello(self, request: Parcel[Hello]) -> tuple[HelloReply, Arrays]:
        """Read the cohort and say what the site is; no count, label or id."""
        self.over, self.mistake, self._work, self.charged = False, None, None, []
        self._plan = SitePlan(request.run, request.body.federation)
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

    def select(self, request: Parcel[Select]) -> tuple[SelectReply, Arrays]:
        """Sums that a panel is learnt from, over training patients with a label and genes, and over no one else."""
        if self._plan is None or self._plan.run != request.run:
            raise UserError("plan-missing", f"Run {request.run} asked for sums of genes before its greeting.")
        if self.role != "train":
            raise UserError("role-mismatch", f"Site '{self.site}' evaluates only; it was asked to help choose genes.")
        config = self._plan.config
        if config.privacy.active:
            raise UserError(
                "privacy-not-agreed",
                "The coordinator asked for sums to choose genes by, which this run's privacy section does not allow "
                "to leave. Nothing was sent.",
            )
        cohort, _ = self._cohort(config)
        columns, missing = panel_columns(cohort.genes_available, request.body.candidates)
        if missing:
            raise UserError(
                "genes-missing",
                f"Site '{self.site}': the expression table lacks {len(missing)} candidate gene(s), such as "
                f"{missing[0]}. Start the client again if the table was changed.",
            )
        known = [(patient, patient.genes) for patient in cohort.labelled("train") if patient.genes is not None]
        values = np.array([genes[columns] for _, genes in known], np.float64).reshape(len(known), len(columns))
        labels = np.array([patient.label for patient, _ in known], np.int64)
        hospitals = np.array([patient.site for patient, _ in known], np.str_)
        return SelectReply(), {"statistics": selection_sums(values, labels, hospitals, config.classes)}

    def plan(self, request: Parcel[Plan]) -> tuple[PlanReply, Arrays]:
        """Take the panel and build the student; the hash tells the coordinator that both mean the same."""
        if self._plan is None or self._plan.run != request.run:
            raise UserError("plan-missing", f"Run {request.run} sent a plan before its greeting.")
        self._plan = self._plan.after(panel=tuple(request.body.panel), architecture=request.body.architecture)
        self._work = None
        work = self.ready(request.run)
        save_plan(self.state_dir, self._plan, self.vault)
        self._say_if_small(work)
        return PlanReply(architecture=architecture_hash(work.shape)), {}

    def initialise(self, request: Parcel[Initialise]) -> tuple[InitialiseReply, Arrays]:
        """Sums of one step of the start, or the fixed genomic space to keep."""
        work = self.ready(request.run)
        work.private.take_charges()  # of a message that was never made
        step, space = request.body.step, request.arrays.get("space", {})
        if step == "fixed":
            self._keep_space(work, dict(space))
            return InitialiseReply(), {}
        patients = work.cohort.labelled("train")
        if work.config.privacy.memory_noisy:
            noisy = self._private_start(work, step, request)
            return InitialiseReply(), {"statistics": noisy.to_arrays(work.private.dtype)}
        if step == "slots":
            sums = work.statistics(work.receive(request.arrays))
            kept = MemoryStatistics(
                {"histology": sums.sums["histology"]}, {"histology": sums.counts["histology"]}
            ).to_arrays()
        elif step == "anchors":
            memory = Memory.from_arrays(request.arrays.get("memory", {}), work.space)
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
        work = self.ready(request.run)
        work.private.take_charges()  # of a message that was never made
        memory = work.receive(request.arrays)
        self.say(f"Round {request.round}: training.")
        seconds: dict[str, float] = {}
        seed = int(
            np.random.SeedSequence((work.config.seed, request.round, _site_seed(self.site))).generate_state(1)[0]
        )
        measured = work.config.privacy.measured
        validated = _timed(seconds, "evaluate", lambda: work.score(memory, "validation")) if measured else None
        sums = NOTHING
        if released_in(work.config, request.round):
            sums = _timed(seconds, "statistics", lambda: work.statistics(memory))
        report = _timed(seconds, "train", lambda: work.train(memory, seed, request.body))
        arrays = {"statistics": sums.to_arrays(work.private.dtype)}
        if work.config.privacy.share == "memory":
            weights = get_weights(work.model, work.layout)
            save_student(self.state_dir, request.run, request.round, weights, self.vault)
        else:
            arrays["update"] = work.difference(request.arrays["weights"])
        if validated is None:
            return TrainReply(seconds={}, losses={}, loss_sum=[], monitors={}), arrays
        reply = TrainReply(
            seconds=seconds,
            losses=report.losses,
            loss_sum=validated.loss_by_class(work.config.classes),
            monitors={"effective_patches": validated.effective_patches},
        )
        return reply, {**arrays, "scores": _histogram(validated)}

    def take_charges(self) -> tuple[Charge, ...]:
        """What the message just made costs in privacy, to be debited before it is sent; empty if it costs nothing."""
        taken = () if self._work is None else self._work.private.take_charges()
        self.charged += taken
        return taken

    def evaluate(self, request: Parcel[Evaluate]) -> tuple[EvaluateReply, Arrays]:
        """Score a split; the final evaluation also writes the patients' predictions, which stay at the site."""
        work = self.ready(request.run)
        split = request.body.split
        scored = work.score(work.receive(request.arrays), split)
        if request.body.final:
            path = self.state_dir / f"predictions_{split}.csv"
            write_predictions(path, scored, request.run, request.round, self.vault)
            self.say(f"Predictions of the selected model are in {self.vault.path(path)}.")
        if not work.config.privacy.measured:
            return EvaluateReply(loss_sum=[], cohort=unmeasured_row(work.cohort)), {}
        reply = EvaluateReply(loss_sum=scored.loss_by_class(work.config.classes), cohort=cohort_row(work.cohort))
        return reply, {"scores": _histogram(scored)}

    def finish(self, request: Parcel[Finish]) -> tuple[FinishReply, Arrays]:
        """Keep the selected model, or the reason why the site was turned away; the run is over here."""
        body = request.body
        if body.outcome != "refused" and self._plan is not None and self._plan.run != request.run:
            raise UserError("plan-missing", f"Run {request.run} was said to be over, and this site is in another.")
        self.over = True
        if body.outcome == "refused":
            self.mistake = UserError(body.code, body.sentence)
        elif self._plan is not None and request.arrays:
            path = self.state_dir / MODEL_FILE
            arrays = dict(request.arrays)
            if self._plan.config.privacy.share == "memory" and self.role == "train":
                work = self.ready(request.run)
                arrays["weights"] = get_weights(work.model, work.layout)
            threshold, calibration = body.threshold, body.calibration
            if self.role == "train" and not self._plan.config.privacy.measured:
                threshold, calibration = self._own_threshold(request)
            save_model(path, self._plan, arrays, threshold, calibration, request.round, self.vault)
            self._keep_provenance(self._plan, request.round)
            self.say(f"The run is over. {body.sentence} It is kept in {self.vault.path(path)}.")
        return FinishReply(), {}

    def _own_threshold(self, request: Parcel[Finish]) -> tuple[float | None, list[float] | None]:
        """Threshold and calibration of this site's own validation patients, where no score of anybody's may leave.

        They are for this site's own use of the model, and stay here with it.
        """
        from momkd_fl.evaluation.calibration_choice import choose_calibration  # scipy, which a round does without

        work = self.ready(request.run)
        scored = work.score(work.receive(request.arrays), "validation")
        histogram = ScoreHistogram.of(scored.labels, scored.probabilities)
        threshold = histogram.youden_threshold()
        self.say(
            f"No score may leave in this run, so the threshold ({'none' if threshold is None else f'{threshold:.2f}'}) "
            f"and the calibration in the model's file are this site's own, made on its {len(scored.labels)} validation "
            "patients. They hold for patients like these, and they are not for publication: no noise hides who is in "
            "them."
        )
        return threshold, choose_calibration(histogram).to_list()

    def score_with(
        self, run: str, config: FederationConfig, panel: tuple[str, ...], space: SpaceArrays, state: Arrays
    ) -> Prediction:
        """Score this site's test patients with a given state (``weights``, ``memory``), outside any run."""
        shared = config.model_dump(mode="json", include=set(SHARED_SECTIONS))
        self._plan, self._work = SitePlan(run, shared, panel, space=dict(space)), None
        work = self.ready(run)
        return work.score(work.receive(state), "test")

    def _keep_provenance(self, plan: SitePlan, round: int) -> None:
        """What was trained on, for the site's own records: the digest depends on labels, so it stays here."""
        known = {"run": plan.run, "software": __version__, "data": data_digest(self._cohort(plan.config)[0])}
        path = self.state_dir / "provenance.json"
        self.vault.write(path, json.dumps(known, indent=1).encode(), Sealed("provenance", plan.run, round))

    def _cohort(self, config: FederationConfig) -> tuple[Cohort, Fingerprint]:
        """The cohort, read again where another is asked for or a patient was withdrawn.

        Everything that was made of the old one goes with it: bags in memory and on the GPU, the teacher's logits, and
        the optimiser's moments.
        """
        asked = (config.task, config.training.standardise, config.privacy.active, self.withdrawn())
        if self._loaded is None or self._loaded_for != asked:
            self._loaded, self._work = None, None
            self._loaded, self._loaded_for = self.load(config), asked
        return self._loaded

    def ready(self, run: str) -> Work:
        """The work of ``run``; after a restart it is rebuilt from the plan that was kept."""
        if self._plan is None or self._plan.run != run:
            self._plan, self._work = load_plan(self.state_dir, run, self.vault), None
            self.say(f"Going on with run {run}.")
        cohort, _ = self._cohort(self._plan.config)
        if self._work is None:
            self._work = Work.of_plan(self._plan, cohort, self.device, self.capture)
            if self._work.config.privacy.share == "memory":
                kept = load_student(self.state_dir, run, self.vault)
                if kept is not None:
                    set_weights(self._work.model, self._work.layout, kept)
        return self._work

    def _say_if_small(self, work: Work) -> None:
        """Tell the person at this site alone: a refusal would tell others how many patients it has."""
        expected, own = work.config.privacy.site_patients, len(work.cohort.labelled("train"))
        if self.role == "train" and work.config.privacy.noisy and own < expected / 2:
            self.say(
                f"This run's noise is planned for about {expected} training patients a site; here are {own}, so that "
                "what leaves this site is mostly noise. It may be better to let it evaluate only."
            )

    def _private_start(self, work: Work, step: str, request: Parcel[Initialise]) -> MemoryStatistics:
        """One step of the start with noise; no other step is agreed, whoever asks for it."""
        patients = work.cohort.labelled("train")
        if step == "scaling" and "means" in work.private.plan.releases:
            return work.private.gene_means(patients, len(work.cohort.panel))
        if step == "anchors" and "anchors" in work.private.plan.releases:
            memory = Memory.from_arrays(request.arrays.get("memory", {}), work.space)
            anchors = np.asarray(request.arrays["memory"]["anchors"], np.float64)
            return work.private.anchors(anchors, memory, work.packer, patients)
        raise UserError(
            "privacy-not-agreed",
            f"The coordinator asked for step '{step}' of the start, which this run's privacy section does not allow "
            "to leave. Nothing was sent.",
        )

    def _keep_space(self, work: Work, space: dict[str, Any]) -> None:
        work.space = space
        if self._plan is not None:
            self._plan = self._plan.after(space=space)
            save_plan(self.state_dir, self._plan, self.vault)


def site_participant(config: SiteConfig, say: Callable[[str], None], vault: Vault = CLEAR) -> Participant:
    """The participant of a site's own configuration."""
    device = device_of(config)
    capture = config.cuda_graphs and device.type == "cuda"
    load = cohort_loader(config, say)
    return Participant(
        config.site, config.role, load, config.state_dir, device, say, capture, vault,
        lambda: frozenset(read_withdrawn(withdrawn_file(config))),
    )  # fmt: skip


def _site_seed(site: str) -> int:
    return int.from_bytes(site.encode()[:16].ljust(16, b"\0"), "little")


def _histogram(scored: Prediction) -> dict[str, Any]:
    return ScoreHistogram.of(scored.labels, scored.probabilities).to_arrays()


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = work()
    seconds[name] = round(time.perf_counter() - started, 4)
    return result
