"""The end of a run: the best round, threshold and calibration are chosen and frozen, then everyone evaluates."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.evaluation.calibration_choice import choose_calibration
from momkd_fl.evaluation.metrics import ScoreHistogram
from momkd_fl.evaluation.results import Calibration
from momkd_fl.federation.arrivals import check_evaluation
from momkd_fl.federation.dialogue import SiteGrid, ask_all
from momkd_fl.federation.messages import EVALUATE, FINISH, Evaluate, EvaluateReply, Finish, Parcel
from momkd_fl.federation.rounds import balanced_loss, better
from momkd_fl.federation.state import Arrays, Best, ServerState
from momkd_fl.federation.watch import Watch

FAREWELL_S = 30.0

Evaluations = dict[str, Parcel[EvaluateReply]]


@dataclass(frozen=True)
class Chosen:
    """What was selected on the training sites' validation patients, then frozen."""

    best: Best
    threshold: float | None
    calibration: Calibration


@dataclass
class Closing:
    """The last questions of a run. ``failures`` (site, code) receives what a site could not answer."""

    config: FederationConfig
    grid: SiteGrid
    watch: Watch
    failures: list[tuple[str, str]]

    def choose(self, state: ServerState) -> Chosen:
        """Best round by validation, the last one included; threshold and calibration from the best one's histogram.

        Where no score may leave, it is the last round, as agreed beforehand, without threshold and calibration.

        Raises
        ------
        UserError
            ``validation-not-estimable``.
        """
        if not self.config.privacy.measured:
            return Chosen(Best(state.round, None, state.weights, state.memory, {}), None, Calibration())
        best = state.best
        answers = self._ask(state, state.weights, state.memory, "validation", _with_role(state, "train"), None)
        if answers:
            scores = _summed_scores(answers)
            sums = np.sum([parcel.body.loss_sum for parcel in answers.values()], axis=0)
            loss = balanced_loss(sums, scores)
            if loss is not None:
                best = better(best, Best(state.round, loss, state.weights, state.memory, scores))
        if best is None:
            raise UserError(
                "validation-not-estimable",
                "No round could be selected: the training sites' validation patients do not hold every class. "
                "Raise training.validation_fraction, or add sites.",
            )
        histogram = ScoreHistogram.from_arrays(best.scores)
        return Chosen(best, histogram.youden_threshold(), choose_calibration(histogram))

    def evaluate(self, state: ServerState, chosen: Chosen) -> dict[str, Evaluations]:
        """Every site's own evaluation of the selected model, by split; held-out sites on all their patients."""
        self.watch.say(f"Evaluating the model of round {chosen.best.round} at the sites.", "evaluate")
        weights, memory = chosen.best.weights, chosen.best.memory
        with self.watch.phase("evaluate"):
            return {
                split: self._ask(state, weights, memory, split, _with_role(state, role), chosen)
                for split, role in (("validation", "train"), ("test", "evaluate"))
                if role == "train" or self.config.privacy.share == "all"  # whoever never trained has no student
            }

    def farewell(self, state: ServerState, chosen: Chosen) -> None:
        """Hand every site that is there the selected model, with its threshold and calibration."""
        body = Finish(
            outcome="finished",
            code="finished",
            sentence=f"The model is that of round {chosen.best.round}.",
            threshold=chosen.threshold,
            calibration=chosen.calibration.to_list(),
        )
        arrays = {"weights": chosen.best.weights, "memory": chosen.best.memory}
        there = set(state.members) & self.grid.online()
        run, number = state.run, state.round
        with self.watch.phase("finish"):
            answers = ask_all(
                self.grid, FINISH, body, there, run=run, round=number, timeout_s=FAREWELL_S, arrays=arrays
            )
        for site in answers.parcels:
            self.watch.site(site, "finished")

    def _ask(
        self,
        state: ServerState,
        weights: Arrays,
        memory: Arrays,
        split: str,
        sites: Collection[str],
        chosen: Chosen | None,
    ) -> Evaluations:
        if not sites:
            return {}
        body = Evaluate.model_validate(
            {
                "split": split,
                "threshold": chosen.threshold if chosen else None,
                "calibration": chosen.calibration.to_list() if chosen else None,
                "final": chosen is not None,
            }
        )
        answers = ask_all(
            self.grid,
            EVALUATE,
            body,
            sites,
            run=state.run,
            round=state.round,
            timeout_s=self.config.rounds.deadline_s,
            arrays={"weights": weights, "memory": memory},
            check=lambda site, parcel: check_evaluation(site, parcel, self.config, state.members[site]["role"]),
        )
        for site in sites:
            if site not in answers.parcels:
                code = answers.refusals.get(site, "no-answer")
                self.failures.append((site, code))
                self.watch.say(f"site {site}: no evaluation ({code}).", "evaluation_missing", level="warning")
        return answers.parcels


def _with_role(state: ServerState, role: str) -> list[str]:
    return [site for site, hello in state.members.items() if hello["role"] == role]


def _summed_scores(answers: Evaluations) -> Arrays:
    total: Arrays = {}
    for parcel in answers.values():
        for name, value in parcel.arrays.get("scores", {}).items():
            total[name] = total.get(name, np.zeros(value.shape)) + value
    return total
