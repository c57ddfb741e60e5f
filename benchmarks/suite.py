"""The table of docs/performance.md: what is measured, by which command, what is aimed at, and what came out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKS = ("<!-- suite -->", "<!-- /suite -->")
BREAKDOWN = ("<!-- breakdown -->", "<!-- /breakdown -->")
PENDING = "not measured yet"


@dataclass(frozen=True)
class Row:
    """One line; ``target`` stands in the table also before anything is measured."""

    what: str
    bench: str
    figure: str
    target: str


ROWS = (
    Row("train, MoMKD against the released MoMKD: CPU", "train", "train.vs_release", ">= 5 (stretch 7)"),
    Row("the same: peak memory over imports", "train", "train.rss_vs_release", "<= 1/6"),
    Row("train, gated attention against CLAM as shipped", "train", "train.vs_clam", ">= 2.0"),
    Row("against CLAM with bf16 autocast", "train", "train.vs_clam_autocast", ">= 1.25"),
    Row("against torchmil's ABMIL, batch 1", "train", "train.vs_torchmil", ">= 2.2"),
    Row("against torchmil's ABMIL, batch 3 padded", "train", "train.vs_torchmil.batch_3", ""),
    Row(
        "share of the matmul roof, gated attention fp32, reading its files", "train", "train.roof_gated_fp32", ">= 0.9"
    ),
    Row("the same, features in memory", "train", "train.roof_gated_fp32.in_memory", ""),
    Row(
        "share of the matmul roof, gated attention bf16, reading its files", "train", "train.roof_gated_bf16", ">= 0.65"
    ),
    Row("share of the matmul roof, MoMKD bf16, reading its store", "train", "train.roof_momkd_bf16", ">= 0.6"),
    Row("32 patients of 200 patches, packed against one at a time", "train", "train.small_bags", ">= 2"),
    Row("evaluation in bf16 against CLAM (fp32)", "evaluate", "evaluate.vs_clam", ">= 2"),
    Row("the same, both in fp32", "evaluate", "evaluate.vs_clam.fp32", ""),
    Row("evaluation against the released MoMKD", "evaluate", "evaluate.vs_release", ""),
    Row("reading TRIDENT files in place against h5py", "reading", "reading.trident_warm_vs_h5py", ">= 2.5"),
    Row("the store against raw readinto", "reading", "reading.store_vs_readinto", "<= 1.3"),
    Row("training from 3 GB of features: peak memory", "reading", "memory.train_rss_mb.3gb", "<= 1024 MB"),
    Row("training from 30 GB of features: peak memory", "reading", "memory.train_rss_mb.30gb", "<= 1024 MB, as 3 GB"),
    Row("training waits for its data: MoMKD from the store", "loader", "loader.waiting_share", "<= 0.1"),
    Row("one patient of 100,000 x 1,536: training", "memory", "memory.train_100k_gb", "<= 4 GB"),
    Row("one patient of 400,000 x 1,536: training", "memory", "memory.train_400k_gb", "<= 8 GB"),
    Row("evaluation of 100,000 patches: memory beyond the bag", "memory", "memory.evaluate_100k_over_bag_mb", ""),
    Row("evaluation of 400,000 patches: memory beyond the bag", "memory", "memory.evaluate_400k_over_bag_mb", ""),
    Row("empty round over TLS, 3 sites", "empty_round", "round.empty_s.3_sites", "<= 0.5 s"),
    Row("empty round over TLS, 10 sites", "empty_round", "round.empty_s.10_sites", "<= 1.5 s"),
    Row("server CPU of an empty round", "empty_round", "round.server_cpu_ms", "<= 50 ms per site"),
    Row("bytes on the wire by bytes of parameters, after 4 KB", "empty_round", "round.bytes_ratio", "<= 1.01"),
    Row("the gate, a round of 1 M parameters without noise", "gate", "gate.round_ms.no_noise", "<= 50 ms"),
    Row("the same with a private release of the memory", "gate", "gate.round_ms.release", "<= 50 ms"),
    Row("the same with DP-SGD", "gate", "gate.round_ms.dpsgd", "<= 50 ms"),
    Row("server memory at 3 sites", "empty_round", "round.server_rss_mb.3", ""),
    Row("server memory at 10 sites", "empty_round", "round.server_rss_mb.10", "slope <= 5% of a model"),
    Row("server memory at 30 sites", "empty_round", "round.server_rss_mb.30", "slope <= 5% of a model"),
    *(
        Row(f"growth with {axis}, {work}, {name}", "growth", f"growth.{work}.{name}.{axis}", "1 +- 0.05")
        for axis in ("patches", "patients")
        for work in ("train", "evaluate")
        for name in ("momkd", "gated_attention")
    ),
    Row("momkd-client --help", "cold_start", "cold_start.help_cpu_s", "<= 0.3 CPU-s"),
    *(
        Row(f"GPU, MoMKD, patients of 10,000 x {dim:,}", "gpu", f"gpu.momkd.{dim}.{name}", "")
        for dim in (1024, 1536)
        for name in ("patients_per_s.fast_8", "patients_per_s.plain", "computing.fast_8")
    ),
)


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as a Markdown table, from figures by name; what is not among them is pending."""
    lines = ["| what | `make bench ONLY=` | figure | target | measured |", "|---|---|---|---|---|"]
    for row in ROWS:
        measured = _measured(figures[row.figure]) if row.figure in figures else PENDING
        lines.append(f"| {row.what} | {row.bench} | {row.figure} | {row.target} | {measured} |")
    return "\n".join(lines)


def _measured(figure: Mapping[str, Any]) -> str:
    """Value, quartiles, and whether a target is missed."""
    spread = f" ({figure['spread'][0]:g} to {figure['spread'][1]:g})" if figure.get("spread") else ""
    missed = " **missed**" if figure.get("holds") is False else ""
    return f"{figure['value']:g}{spread}{missed}"


def breakdown(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """What a step's time goes into, an arm a line, from the figures of that name."""
    found: dict[str, dict[str, float]] = {}
    for name, figure in figures.items():
        kind, _, rest = name.partition(".")
        if kind == "breakdown":
            arm, part = rest.split(".")
            found.setdefault(arm, {})[part] = figure["value"]
    if not found:
        return ""
    parts = list(next(iter(found.values())))
    lines = [f"| step of | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"]
    for arm, share in found.items():
        lines.append(f"| {arm.replace('_', ' ')} | {' | '.join(f'{share[part]:.0%}' for part in parts)} |")
    return "\n".join(lines)


def fill(page: Path, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Write both tables between the page's marks."""
    text = page.read_text("utf-8")
    for (start, end), block in ((MARKS, table(figures)), (BREAKDOWN, breakdown(figures))):
        pattern = re.escape(start) + r".*?" + re.escape(end)
        text = re.sub(pattern, lambda _, block=f"{start}\n{block}\n{end}": block, text, flags=re.DOTALL)
    page.write_text(text, "utf-8")
