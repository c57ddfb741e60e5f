"""What happened by round, drawn: convergence, memory health, the memory's map."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from momkd_fl.evaluation.report_svg import INK, LOOKS, MUTED, PAPER, Drawing, draw, every, number
from momkd_fl.evaluation.results import Results, SlotShare

Series = list[tuple[str, list[float | None]]]


def convergence(results: Results) -> Drawing | None:
    """Validation AUROC and loss of the training sites, by round, and the round that was kept."""
    auroc: list[float | None] = [r.validation_auroc for r in results.rounds]
    loss: list[float | None] = [r.validation_loss for r in results.rounds]
    kept = sorted({one.round for one in results.selection.values()})
    said = f"Round {', '.join(map(str, kept))} was kept (vertical line). " if kept else ""
    return _by_round(
        results,
        "convergence",
        "Convergence",
        f"{said}On the training sites' validation patients; held-out hospitals have no say in it.",
        [("Validation AUROC", auroc), ("Validation loss", loss)],
        kept,
    )


def memory_health(results: Results) -> Drawing | None:
    """Slot movement and effective slots by round: a memory that stands still or collapses shows here."""
    memory = [r.memory for r in results.rounds]
    moved: list[float | None] = [m.slot_movement_rad if m else None for m in memory]
    slots: list[float | None] = [m.effective_slots if m else None for m in memory]
    return _by_round(
        results,
        "memory",
        "Memory health",
        "Mean angle each slot moved, and how many slots of a class are in effective use. "
        "A memory at 0 rad is frozen; one with a single effective slot has collapsed.",
        [("Movement (rad)", moved), ("Effective slots", slots)],
        [],
    )


def memory_map(results: Results, task: str) -> Drawing | None:
    """How each class's patients spread over its slots, by modality."""
    shares = [share for share in results.memory_map if share.task == task]
    if not shares:
        return None
    lines = list(dict.fromkeys((s.modality, s.label) for s in shares))
    slots = sorted({s.slot for s in shares})

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        for s in shares:
            row = lines.index((s.modality, s.label))
            corner = (slots.index(s.slot) - 0.47, row - 0.46)
            shade = 0.06 + 0.6 * s.share
            axes.add_patch(Rectangle(corner, 0.94, 0.92, color=LOOKS["federated"].colour, alpha=shade, linewidth=0))
            axes.text(slots.index(s.slot), row, f"{100 * s.share:.0f}%", ha="center", va="center", color=INK)
        axes.set(xlim=(-0.55, len(slots) - 0.45), ylim=(len(lines) - 0.45, -0.55), xlabel="Memory slot")
        axes.set_xticks(range(len(slots)), [str(slot + 1) for slot in slots])
        axes.set_yticks(range(len(lines)), [f"{label}\n{modality}" for modality, label in lines])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    alt = f"Share of each class's assignment by memory slot for {task}, histology and genomics."
    width = 1.4 + 0.55 * max(len(slots), 5)
    return Drawing(
        f"memory-map-{task.lower()}",
        "Memory map",
        "How each class's patients spread over its memory slots at the end, by modality. Even use is healthy; a slot "
        "that holds everything has swallowed its neighbours.",
        alt,
        draw(f"memory-map-{task.lower()}", alt, (width, 0.75 + 0.42 * len(lines)), plot),
        ("Modality", "Class", "Slot", "Share"),
        tuple(_slot_row(share) for share in shares),
    )


def _by_round(results: Results, key: str, title: str, caption: str, series: Series, kept: list[int]) -> Drawing | None:
    """One small panel per series that has any value, over the rounds."""
    series = [(name, values) for name, values in series if any(v is not None for v in values)]
    if not series:
        return None
    numbers = [one.round for one in results.rounds]
    look = LOOKS["federated"]

    def plot(figure: Figure) -> None:
        panels = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, values) in zip(panels, series, strict=True):
            for chosen in kept:
                axes.axvline(chosen, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
            shown = [float("nan") if v is None else v for v in values]
            axes.plot(
                numbers,
                shown,
                color=look.colour,
                marker="o",
                markersize=3.5,
                markeredgecolor=PAPER,
                markeredgewidth=0.4,
            )
            axes.set_title(name, loc="left", fontsize=9, color=INK)
            if name.startswith(("Movement", "Effective")):
                axes.set_ylim(bottom=0)
        panels[-1].set_xlabel("Round")
        panels[-1].set_xticks(every(numbers, 10))

    ends = "; ".join(f"{name} from {number(_first(v), 3)} to {number(_first(v[::-1]), 3)}" for name, v in series)
    alt = f"{title} over {len(numbers)} rounds: {ends}."
    columns = [[number(value, 3) for value in values] for _, values in series]
    return Drawing(
        key,
        title,
        caption,
        alt,
        draw(key, alt, (4.2, 0.5 + 1.45 * len(series)), plot),
        ("Round", *(name for name, _ in series)),
        tuple((str(n), *cells) for n, *cells in zip(numbers, *columns, strict=True)),
    )


def _first(values: list[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _slot_row(share: SlotShare) -> tuple[str, ...]:
    return (share.modality, share.label, str(share.slot + 1), f"{100 * share.share:.0f}%")
