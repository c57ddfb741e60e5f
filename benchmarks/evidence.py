"""docs/privacy-evidence.md from the figures of ``make audit`` and of the gate's benchmark."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MARKS = ("<!-- audit -->", "<!-- /audit -->")
Lines = list[dict[str, Any]]
SECTIONS = {
    "audit.release": (
        "Differencing with a canary",
        "`make audit ONLY=release`: 6,000 releases with the canary and 6,000 without, through the site's own code, for "
        "each line. The attacker knows everybody else and the canary's direction. Lower bounds at 99% confidence.",
    ),
    "audit.memory": (
        "Membership in one release of the memory",
        "`make audit ONLY=memory`: 40 patients, 128 shadows, each over a random half; likelihood ratios of the best "
        "linear guess. The bound is the Gaussian mechanism's own trade-off at ε = 8.",
    ),
    "audit.student": (
        "Membership in a student",
        "`make audit ONLY=student`: a hospital of 1,500 small bags with a clear signal, a gated-attention student of "
        "1,700 weights, 32 shadows. The attack is on 60 training patients with turned labels, each in half of the "
        "shadows; everybody else is in all of them. `control` trains 3,000 steps and overfits; `same_steps` has the "
        "100 steps of the student with noise. `utility` is the AUROC on patients left out, mean of shadows; under "
        "0.6 an attack's figure would say nothing.",
    ),
    "audit.slot": ("A slot that one patient forms", "`make audit ONLY=slot`: 5,000 releases."),
    "audit.gradient": (
        "The classifier's input from one update",
        "`make audit ONLY=gradient`: one patient a step, dL/dW over dL/db, beside the mean of other patients.",
    ),
    "audit.fuzz": (
        "Changed messages",
        "`make audit ONLY=fuzz`: a million messages changed by bits, cuts, splices, types, lengths and depth, a third "
        "of them of secure aggregation, the others at a site and at the coordinator; half are packed anew after the "
        "change. Each is read as what it is, or refused with a code. `control`: readers with a check left out.",
    ),
    "audit.leaks": (
        "Leak scan",
        "`make audit ONLY=leaks`: a server and three sites as processes over TLS. Ids, gene values and patches as text "
        "and as float16, float32, float64 in: what sites sent, before encryption; logs and screens; /metrics of all "
        "processes; what the coordinator keeps; models and plans at sites; contract, ledger, odometer, publications, "
        "peers' heads. `control`: one of each kind put into that place; `leaking_site`: a site that sends them.",
    ),
    "audit.policy": (
        "Lines of the contract and deny-tests",
        "`make audit ONLY=policy`: each line has a test in which it alone stops a message that leaves without it.",
    ),
    "gate": (
        "What the gate costs",
        "`make bench ONLY=gate`: a `train` reply of 1 M parameters, books on disk with 300 earlier lines; beyond what "
        "a reply costs without a gate.",
    ),
}


def page_part(figures: Lines, table: Callable[[Lines], str]) -> str:
    """One heading and table for each audit that was run; what was not is said to be missing."""
    parts: list[str] = []
    for prefix, (title, how) in SECTIONS.items():
        mine = [one for one in figures if one["figure"].startswith(prefix + ".")]
        parts += [f"## {title}", "", how, "", table(mine) if mine else "Not measured yet.", ""]
    return "\n".join(parts).rstrip()


def fill(page: Path, by_name: Mapping[str, dict[str, Any]], table: Callable[[Lines], str]) -> None:
    """Write the part between the page's marks, unless no audit is among the figures."""
    figures = list(by_name.values())
    if not any(one["figure"].startswith("audit.") for one in figures):
        return
    block = f"{MARKS[0]}\n{page_part(figures, table)}\n{MARKS[1]}"
    pattern = re.escape(MARKS[0]) + r".*?" + re.escape(MARKS[1])
    page.write_text(re.sub(pattern, lambda _: block, page.read_text("utf-8"), flags=re.DOTALL), "utf-8")
