"""The end of a run: the best round, threshold and calibration are chosen and frozen, then everyone evaluates."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
from momkd_fl.federation.sum_parts import evaluate_parts
from momkd_fl.federation.sums import SecureSums, Total
from momkd_fl.federation.watch import Watch
from momkd_fl.secagg.manifest import HOLDERS_MIN

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
    """The last questions of a run. ``failures`` (site, code) receives what a site could not answer.

    With ``secure``, scores are seen as sums over at least three sites only: ``held_out`` is that of the sites that
    evaluate, empty where there are fewer.
    """

    config: FederationConfig
    grid: SiteGrid
    watch: Watch
    failures: list[tuple[str, str]]
    secure: SecureSums | None = None
    held_out: Arrays = field(default_factory=dict)

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
        scores, sums = self._validated(state)
        if scores:
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

    def _validated(self, state: ServerState) -> tuple[Arrays, NDArray[np.float64]]:
        """Summed histograms and losses of the training sites' validation patients under the last state."""
        sites = _with_role(state, "train")
        if self.secure is not None:
            total = self._summed(self.secure, state, state, "validation", sites, None)
            return ({}, np.zeros(0)) if total is None else (total.group("scores"), total.values["loss_sum"])
        answers = self._ask(state, state.weights, state.memory, "validation", sites, None)
        sums = np.sum([parcel.body.loss_sum for parcel in answers.values()], axis=0)
        return _summed_scores(answers), sums

    def evaluate(self, state: ServerState, chosen: Chosen) -> dict[str, Evaluations]:
        """Every site's own evaluation of the selected model, by split; held-out sites on all their patients."""
        self.watch.say(f"Evaluating the model of round {chosen.best.round} at the sites.", "evaluate")
        weights, memory = chosen.best.weights, chosen.best.memory
        splits = [("validation", "train")]
        if self.config.privacy.share == "all":  # else whoever never trained has no student
            splits.append(("test", "evaluate"))
        with self.watch.phase("evaluate"):
            if self.secure is not None and len(splits) > 1:
                self._evaluate_together(self.secure, state, chosen)
            return {
                split: self._ask(state, weights, memory, split, _with_role(state, role), chosen)
                for split, role in splits
            }

    def _evaluate_together(self, secure: SecureSums, state: ServerState, chosen: Chosen) -> None:
        """The held-out sites' histograms as one sum, where there are enough of them."""
        sites = [site for site in _with_role(state, "evaluate") if site in self.grid.online()]
        able = [site for site in sites if "test" in state.members[site]["holds"]]
        if self.config.privacy.measured and len(able) >= HOLDERS_MIN:
            total = self._summed(secure, state, chosen.best, "test", sites, chosen)
            self.held_out = {} if total is None else total.group("scores")
        elif sites:
            self.watch.say(
                f"Only {len(able)} sites that evaluate have enough patients, so no sum is formed: each site's own "
                "predictions stay with it.",
                "sum_left_out",
            )

    def _summed(
        self,
        secure: SecureSums,
        state: ServerState,
        of: ServerState | Best,
        split: str,
        sites: Collection[str],
        chosen: Chosen | None,
    ) -> Total | None:
        """Scores and losses of a split over ``sites``; None where no three of them have enough patients."""
        able = [site for site in sites if split in state.members[site]["holds"]]
        if len(able) < HOLDERS_MIN:
            return None
        total = secure.must(
            EVALUATE,
            _question(split, chosen),
            {"weights": of.weights, "memory": of.memory},
            evaluate_parts(self.config, split),
            sites,
            members=state.members,
            run=state.run,
            round=state.round,
            what=f"evaluation ({split})",
        )
        return total if total.values and not total.withheld else None

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
        answers = ask_all(
            self.grid,
            EVALUATE,
            _question(split, chosen),
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


def _question(split: str, chosen: Chosen | None) -> Evaluate:
    return Evaluate.model_validate(
        {
            "split": split,
            "threshold": chosen.threshold if chosen else None,
            "calibration": chosen.calibration.to_list() if chosen else None,
            "final": chosen is not None,
        }
    )


def _with_role(state: ServerState, role: str) -> list[str]:
    return [site for site, hello in state.members.items() if hello["role"] == role]


def _summed_scores(answers: Evaluations) -> Arrays:
    total: Arrays = {}
    for parcel in answers.values():
        for name, value in parcel.arrays.get("scores", {}).items():
            total[name] = total.get(name, np.zeros(value.shape)) + value
    return total
