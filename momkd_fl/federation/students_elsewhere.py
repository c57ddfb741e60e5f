"""Sites' own students on other sites' patients: in a simulation only, where one machine may hold everything.

With ``share: memory`` no weights leave, so a site that never trained has no model and nothing can be measured there in
a live run. What the shared memory is worth to new hospitals is measured here: every training site's student scores
the held-out patients, and the median over students is reported, as it is for models that are trained alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.privacy import Privacy
from momkd_fl.errors import UserError
from momkd_fl.evaluation.comparison import Scores
from momkd_fl.federation.comparators import Arm, Shelf, arm_scores, predictions_path
from momkd_fl.federation.own_student import load_student
from momkd_fl.federation.site_outputs import write_predictions
from momkd_fl.federation.state import ServerState


def score_students(
    config: FederationConfig, state: ServerState, shelf: Shelf, folder: Path, base: Path, tested: Sequence[str]
) -> list[Scores]:
    """Scores of ``tested`` sites' patients by each training site's student, in the order of the members.

    Parameters
    ----------
    folder : of the run; each training site's student lies under it
    base : where the predictions are kept, ``own-<site>`` each

    Raises
    ------
    UserError
        ``student-missing`` where a training site has left none.
    """
    found = []
    shared = config.model_copy(update={"privacy": Privacy()})  # weights are handed to the site that scores
    for name, member in config.members.items():
        if member.role != "train":
            continue
        student = load_student(folder / "sites" / name, state.run)
        if student is None:
            raise UserError(
                "student-missing", f"{folder / 'sites' / name}: no student of run {state.run} is kept here. Run again."
            )
        arm = Arm(f"own-{name}", "federated", (name,))
        for site in tested:
            participant = shelf.participant(site, arm, "evaluate", base / arm.name)
            sent = {"weights": student, "memory": state.memory}
            scored = participant.score_with(state.run, shared, state.panel, state.space, sent)
            write_predictions(predictions_path(base / arm.name, site), scored)
        found.append(arm_scores(base / arm.name, tested))
    return found
