"""Matplotlib to inline SVG that follows the page's colours, in light and dark, and reads without the picture.

Figures are drawn in placeholder colours which become CSS variables, so the page's stylesheet alone decides how they
look. Text stays text, ids are unique in the page, and the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from momkd_fl.evaluation.results import Method

INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
_VARIABLES: Final = {INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper"}
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "momkd-fl",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # a task or site name may hold a dollar sign
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Look:
    """How one method is drawn: never by colour alone."""

    name: str
    variable: str
    colour: str
    marker: str
    dash: Any


LOOKS: Final[dict[Method, Look]] = {
    "federated": Look("Federated", "federated", "#060606", "o", "-"),
    "pooled": Look("Pooled data", "pooled", "#070707", "s", (0, (5, 2))),
    "local_median": Look("One hospital (median)", "local", "#080808", "D", (0, (1, 1.5))),
    "local_best": Look("One hospital (best)", "local", "#080808", "d", (0, (3, 1.5))),
    "no_genomics_control": Look("Federated, no genomics", "control", "#090909", "^", (0, (4, 1.5, 1, 1.5))),
    "shuffled_within_class": Look("Genomics shuffled within class", "control", "#090909", "v", (0, (2, 1))),
    "shuffled_genomics": Look("Genomics shuffled over all", "control", "#090909", ">", (0, (2, 1, 1, 1))),
    "random_memory": Look("Memory randomised after training", "other", "#0b0b0b", "X", (0, (1, 1))),
    "random_slots": Look("Memory of random slots", "other", "#0b0b0b", "x", (0, (3, 1))),
    "label_slots": Look("Memory learnt from labels alone", "other", "#0b0b0b", "*", (0, (3, 1, 1, 1, 1, 1))),
    "attention_mil": Look("Plain attention MIL", "rival", "#0c0c0c", "P", (0, (6, 1, 1, 1))),
    "batch_cosine": Look("Batch distillation, cosine", "rival", "#0c0c0c", "<", (0, (5, 1))),
    "batch_mse": Look("Batch distillation, squared error", "rival", "#0c0c0c", "h", (0, (5, 1, 1, 1, 1, 1))),
    "class_prototypes": Look("Class prototypes alone", "rival", "#0c0c0c", "p", (0, (1, 2))),
    "out_of_fold_logits": Look("Out-of-fold logits", "rival", "#0c0c0c", "8", (0, (8, 2))),
}


@dataclass(frozen=True)
class Drawing:
    """A figure of the page: its caption, what it says in words, its SVG and the numbers behind it."""

    key: str
    title: str
    caption: str
    alt: str
    svg: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def draw(key: str, alt: str, size_in: tuple[float, float], plot: Callable[[Figure], None]) -> str:
    """Run ``plot`` on an empty figure of ``size_in`` (width, height; inches) and return its themed SVG."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size_in, layout="constrained")
        figure.patch.set_alpha(0.0)
        plot(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _themed(text.getvalue(), key, alt)


def _themed(svg: str, key: str, alt: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.S)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.S)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = re.sub(r"url\(#", f"url(#{key}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{key}-', body)
    for colour, variable in [*_VARIABLES.items(), *((look.colour, look.variable) for look in LOOKS.values())]:
        body = body.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]+"', body)
    assert box is not None  # matplotlib always writes it
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {box.group()} role="img" aria-label="{_attribute(alt)}">'
    return opening + body[body.index(">") + 1 :].strip()


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def number(value: float | None, digits: int = 2) -> str:
    """A number as the page prints it, with a true minus; an em dash where there is none."""
    return "—" if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def every(values: Sequence[int], at_most: int) -> list[int]:
    """At most so many of ``values``, evenly spread, as ticks."""
    step = -(-len(values) // at_most)
    return list(values[::step])
