"""The report's figures: each a :class:`~momkd_fl.evaluation.report_svg.Drawing`, or None where there is nothing."""

from __future__ import annotations

from typing import Any, Final

from matplotlib.figure import Figure

from momkd_fl.evaluation.report_svg import INK, LOOKS, MUTED, Drawing, draw, every, number
from momkd_fl.evaluation.results import METHODS, Curve, Estimate, Method, Results

_SQUARE: Final = (4.2, 3.7)
_NAMED: Final = 3
"""Sites without an AUROC that the forest plot names; the tables name all."""
_HEADING: Final = "heading"
_COMPARED: Final = ("federated", "pooled", "local_median", "no_genomics_control")


def roc(results: Results, task: str) -> Drawing | None:
    """ROC of the main methods over all held-out patients, with the federated model's 95% band."""
    curves = [c for c in _curves(results, "roc", task) if c.method in _COMPARED]
    if not curves:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        for curve in curves:
            look = LOOKS[curve.method]
            x, y = [0.0, *curve.x], [0.0, *curve.y]
            if curve.method == "federated" and curve.low and curve.high:
                axes.fill_between(curve.x, curve.low, curve.high, color=look.colour, alpha=0.16, linewidth=0)
            front = 3 if curve.method == "federated" else 2
            axes.plot(x, y, color=look.colour, linestyle=look.dash, zorder=front, label=_with_auroc(results, curve))
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="1 − specificity", ylabel="Sensitivity")
        axes.set_aspect("equal")
        axes.legend(loc="lower right", fontsize=8, handlelength=2.6)

    shown = {curve.method: curve for curve in curves}
    grid = shown.get("federated", curves[0])
    marks = every(range(len(grid.x)), 11)
    rows = tuple((number(grid.x[i]), *(_at(curve, grid.x[i]) for curve in curves)) for i in marks)
    alt = f"ROC curves for {task} on hospitals that never trained: " + "; ".join(
        _with_auroc(results, c) for c in curves
    )
    caption = "All held-out patients together. Shaded: pointwise 95% bootstrap band of the federated model."
    if grid.binning_error is not None:
        caption = f"From summed score histograms; binning may shift the AUROC by up to {number(grid.binning_error, 3)}."
    return Drawing(
        f"roc-{_slug(task)}",
        "ROC on held-out hospitals",
        caption,
        alt,
        draw(f"roc-{_slug(task)}", alt, _SQUARE, plot),
        ("1 − specificity", *(f"Sensitivity, {LOOKS[c.method].name.lower()}" for c in curves)),
        rows,
    )


def forest(results: Results, task: str) -> Drawing | None:
    """AUROC with intervals: all held-out patients, every held-out site, and every training site's own model."""
    rows = _forest_rows(results, task)
    if not rows:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        for height, (group, method, label, estimate) in enumerate(rows):
            if group:
                axes.text(0, height, label, transform=axes.get_yaxis_transform(), fontweight="bold", va="center")
                continue
            look = LOOKS[method]
            axes.text(-0.03, height, label, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8.5)
            text = _interval(estimate) if estimate.value is not None else "not estimable"
            axes.text(1.03, height, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)
            if estimate.value is None:
                continue
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [height, height], color=look.colour, linewidth=1.8)
            axes.plot([estimate.value], [height], color=look.colour, marker=look.marker, markersize=5.5)
        axes.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        ends = [end for _, _, _, e in rows for end in (e.value, e.low) if end is not None]
        axes.set(xlim=(min([0.4, *(end - 0.03 for end in ends)]), 1.0), ylim=(len(rows) - 0.4, -0.8), xlabel="AUROC")
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)

    alt = f"Forest plot of AUROC for {task}. " + "; ".join(
        f"{label}: {_interval(estimate)}" for group, _, label, estimate in rows if not group
    )
    table: list[tuple[str, ...]] = []
    where = ""
    for group, _, label, estimate in rows:
        if group and estimate.reason == _HEADING:
            where = label
        else:
            table.append((label, "all", *_three(estimate)) if group else (where, label, *_three(estimate)))
    return Drawing(
        f"forest-{_slug(task)}",
        "AUROC by hospital",
        "Points with 95% intervals (stratified bootstrap over patients), in no order of merit. Dashed: chance.",
        alt,
        draw(f"forest-{_slug(task)}", alt, (5.2, 0.5 + 0.21 * len(rows)), plot),
        ("Patients", "Model", "AUROC", "95% low", "95% high", "Note"),
        tuple(table),
    )


def decision(results: Results, task: str) -> Drawing | None:
    """Net benefit of acting on the federated model, against acting on everyone or on no one."""
    model = [c for c in _curves(results, "decision", task) if c.method == "federated"]
    everyone = [c for c in _curves(results, "decision_all", task) if c.method == "federated"]
    if not model or not everyone:
        return None
    look, top = LOOKS["federated"], max(*model[0].y, *everyone[0].y, 0.05)

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=INK, linewidth=0.8, label="No one")
        axes.plot(everyone[0].x, everyone[0].y, color=MUTED, linestyle=(0, (4, 2)), linewidth=1.2, label="Everyone")
        axes.plot(model[0].x, model[0].y, color=look.colour, label="Federated model")
        axes.set(ylim=(-0.25 * top, 1.08 * top), xlabel="Threshold probability", ylabel="Net benefit")
        axes.legend(loc="upper right", fontsize=8.5)

    marks = every(range(len(model[0].x)), 10)
    rows = tuple((number(model[0].x[i]), number(model[0].y[i], 3), number(everyone[0].y[i], 3)) for i in marks)
    alt = f"Decision curve for {task}: net benefit of the model and of calling everyone positive, by threshold."
    return Drawing(
        f"decision-{_slug(task)}",
        "Decision curve",
        "Net benefit of acting on the model's call, against acting on everyone or on no one. The threshold says how "
        "much a false alarm weighs: at 0.2, four false alarms are worth one true finding. Where the model's line is on "
        "top, acting on it is the best of the three.",
        alt,
        draw(f"decision-{_slug(task)}", alt, (4.2, 3.2), plot),
        ("Threshold", "Model", "Everyone"),
        rows,
    )


def _forest_rows(results: Results, task: str) -> list[tuple[bool, Method, str, Estimate]]:
    """(is a heading, method, label, estimate) from top to bottom; a heading's method and estimate say nothing."""
    blank = Estimate.not_estimable(_HEADING)
    methods = [m for m in METHODS if task in results.held_out.get(m, {})]
    if not methods:
        return []
    rows: list[tuple[bool, Method, str, Estimate]] = [(True, "federated", "All held-out patients", blank)]
    rows += [(False, m, LOOKS[m].name, results.held_out[m][task].pooled) for m in methods]
    compared = [m for m in methods if m in _COMPARED]
    bare: dict[str, Estimate] = {}
    for site in results.held_out_sites:
        here = [(m, results.held_out[m][task].sites.get(site)) for m in compared]
        found = [(m, estimate) for m, estimate in here if estimate is not None]
        if any(estimate.value is not None for _, estimate in found):
            rows.append((True, "federated", f"{site} (never trained)", blank))
            rows += [(False, m, LOOKS[m].name, estimate) for m, estimate in found]
        elif found:
            bare[site] = found[0][1]
    if bare:
        more = f" and {len(bare) - _NAMED} more" if len(bare) > _NAMED else ""
        rows.append(
            (
                True,
                "federated",
                f"Too few patients for an AUROC: {', '.join([*bare][:_NAMED])}{more}",
                next(iter(bare.values())),
            )
        )
    own = results.local_models.get(task, {})
    if own:
        rows.append((True, "federated", "Each hospital's own model, all held-out patients", blank))
        rows += [(False, "local_median", f"{site} alone", estimate) for site, estimate in own.items()]
    return rows


def _curves(results: Results, kind: str, task: str) -> list[Curve]:
    return [curve for curve in results.curves if curve.kind == kind and curve.task == task]


def _with_auroc(results: Results, curve: Curve) -> str:
    held_out: Any = results.held_out.get(curve.method, {}).get(curve.task)
    return LOOKS[curve.method].name + (f" {number(held_out.pooled.value)}" if held_out else "")


def _at(curve: Curve, x: float) -> str:
    nearest = min(range(len(curve.x)), key=lambda i: abs(curve.x[i] - x))
    return number(curve.y[nearest])


def _interval(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"not estimable ({estimate.reason})"
    if estimate.low is None:
        return number(estimate.value)
    return f"{number(estimate.value)} ({number(estimate.low)}–{number(estimate.high)})"


def _three(estimate: Estimate) -> tuple[str, ...]:
    return (number(estimate.value, 3), number(estimate.low, 3), number(estimate.high, 3), estimate.reason or "")


def _slug(task: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in task.lower())
