"""The report's calibration: which kind was chosen on the training sites, and whether it carries over to others."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure

from momkd_fl.evaluation.report_svg import LOOKS, MUTED, Drawing, draw, number
from momkd_fl.evaluation.report_tables import Table, cell
from momkd_fl.evaluation.results import Curve, Metric, Results, Scaling

_SQUARE: Final = (4.2, 3.7)
_KINDS: Final[dict[Scaling, str]] = {
    "temperature": "temperature (slope of the logit)",
    "platt": "Platt (slope and intercept of the logit)",
    "isotonic": "isotonic (an increasing curve)",
}
_COLUMNS: Final[dict[Metric, str]] = {
    "brier": "Brier score",
    "calibration_slope": "Slope",
    "calibration_intercept": "Intercept",
}


def chosen(results: Results, task: str) -> str | None:
    """What was frozen, and against what it was chosen; None where the run says nothing."""
    selection = results.selection.get(task)
    if selection is None:
        return None
    kind = f"Calibration of {task}: {_KINDS[selection.calibration.kind]}"
    losses = selection.calibration.losses
    if not losses:
        return f"{kind}, fitted on the training sites' validation patients."
    told = ", ".join(f"{name} {number(loss, 3)}" for name, loss in losses.items())
    return (
        f"{kind}: the simplest within one standard error of the smallest cross-validated log loss of the training "
        f"sites' validation patients ({told})."
    )


def transfer(results: Results, task: str) -> Table | None:
    """Brier score, slope and intercept before and after the frozen calibration."""
    rows = []
    for one in results.transfer:
        if one.task != task:
            continue
        where = one.site or "All held-out"
        if one.patients == "validation":
            where = "Training sites' validation (fitted there)"
        for said, metrics in (("before", one.before), ("after", one.after)):
            rows.append((where, said, *(cell(metrics[metric]) for metric in _COLUMNS if metric in metrics)))
    columns = ("Patients", "Calibration", *_COLUMNS.values())
    caption = "Does the calibration carry over? Perfect: slope 1, intercept 0"
    return Table(caption, columns, tuple(rows)) if rows else None


def figure(results: Results, task: str) -> Drawing | None:
    """Predicted against observed for the federated model on held-out patients, before and after calibration."""
    curve, raw = _curve(results, "calibration", task), _curve(results, "calibration_raw", task)
    if curve is None:
        return None
    look = LOOKS["federated"]
    low, high = curve.low or curve.y, curve.high or curve.y
    dashed = (0, (4, 2))

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        if raw is not None:
            axes.plot(
                raw.x, raw.y, color=MUTED, marker="s", markersize=4, linewidth=1, linestyle=dashed, label="Before"
            )
        axes.vlines(curve.x, low, high, color=look.colour, linewidth=1.4)
        axes.plot(curve.x, curve.y, color=look.colour, marker=look.marker, markersize=5, linewidth=1.2, label="After")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="Predicted probability", ylabel="Observed share")
        axes.set_aspect("equal")
        if raw is not None:
            axes.legend(loc="upper left", fontsize=8)

    rows = [("after", *row) for row in _rows(curve)] + [("before", *row) for row in (_rows(raw) if raw else [])]
    alt = f"Calibration for {task}: " + "; ".join(
        f"predicted {row[1]}, observed {row[2]}" for row in rows[: len(curve.x)]
    )
    key = "calibration-" + "".join(letter if letter.isalnum() else "-" for letter in task.lower())
    return Drawing(
        key,
        "Calibration",
        "Federated model on held-out patients, calibrated on training sites only. On the dashed line, predictions mean "
        "what they say. Bars: 95% intervals (Wilson).",
        alt,
        draw(key, alt, _SQUARE, plot),
        ("Calibration", "Predicted", "Observed", "95% low", "95% high", "Share of patients"),
        tuple(rows),
    )


def _curve(results: Results, kind: str, task: str) -> Curve | None:
    found = (c for c in results.curves if (c.kind, c.task, c.method) == (kind, task, "federated"))
    return next(found, None)


def _rows(curve: Curve) -> list[tuple[str, ...]]:
    parts = zip(curve.x, curve.y, curve.low or curve.y, curve.high or curve.y, strict=True)
    shares = [number(share) for share in curve.weight] if curve.weight else ["—"] * len(curve.x)
    return [(*(number(value) for value in point), share) for point, share in zip(parts, shares, strict=True)]
