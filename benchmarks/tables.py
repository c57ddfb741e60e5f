"""Write the documentation's tables from the JSON lines that the measuring commands printed.

    python -m benchmarks demo > demo.jsonl; python -m benchmarks.tables demo.jsonl [...]

``docs/results.md`` gets every figure, README.md the few between its ``figures`` marks, docs/performance.md those of
the performance suite and of the breakdown between its marks, docs/privacy-evidence.md those of the audits and of the
gate; with ``--evidence`` that page alone is written.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import evidence, suite

ROOT = Path(__file__).resolve().parent.parent
READING = ("<!-- reading -->", "<!-- /reading -->")
"""What stands between these marks in docs/results.md is written by hand and kept."""
MARKS = ("<!-- figures -->", "<!-- /figures -->")
SECTIONS = {
    "demo": ("The demo", "`make bench ONLY=demo`: a bare clone, two cores, eight sites and a server as processes."),
    "round": ("An empty round over mutual TLS", "`make bench ONLY=empty_round`: 0.8 M parameters, two cores."),
    "reading": (
        "Reading features",
        "`make bench ONLY=reading`: TRIDENT files in place against h5py, the store against `readinto`.",
    ),
    "ingest": ("Ingesting", "The same command: one process, TRIDENT files of 10,000 x 1,536 float16."),
    "memory": (
        "Memory",
        "`train_rss_mb`: `make bench ONLY=reading`, one epoch of gated attention straight from the store, no cache, "
        "2,048 patches a step; peak memory of the whole process; the slides are links to a few. The others: "
        "`make bench ONLY=memory`, one patient of 100,000 or 400,000 patches in a process of its own.",
    ),
    "train": ("Training against its peers", "`make bench ONLY=train`: see [performance](performance.md)."),
    "evaluate": ("Evaluation against its peers", "`make bench ONLY=evaluate`: see [performance](performance.md)."),
    "growth": ("Growth", "`make bench ONLY=growth`: log-log slopes of CPU-seconds."),
    "loader": ("Waiting for data", "`make bench ONLY=loader`: share of an epoch's wall time, no cache."),
    "secagg": (
        "Secure aggregation",
        "`make bench ONLY=secagg`: whole rounds in one process, all parties one after the other, no network. What the "
        "protocol promises: [secure-aggregation.md](secure-aggregation.md).",
    ),
    "secagg_processes": (
        "Secure sums over processes",
        "`make bench ONLY=secagg_processes`: a server and a process a site over mutual TLS, with gate and books; the "
        "same answer plain and secure. `N_gone`: sites that refuse the third step; a whole round with recovered masks.",
    ),
    "cold_start": ("Starting up", "`make bench ONLY=cold_start`: the whole process."),
    "gpu": ("On a GPU", "`make bench ONLY=gpu`: see [performance](performance.md)."),
    "check": ("The preflight", "`make bench ONLY=check`: the whole command."),
    "study-main": (
        "The study",
        "`make study ONLY=summary`: real expression, labels and hospitals of TCGA-BRCA, synthetic slides "
        "([study](study.md)). `loso` pools the six left-out sites, `external` is the cohort of 25 small ones. Means "
        "over seeds; intervals are a bootstrap over sites, patients and seeds. `finished`: share of the plan's cells.",
    ),
    "study-ablations": ("Ablations", "`make study ONLY=summary ARGS=ablations`: what each part is worth, on PR."),
    "study-crc": ("Real colorectal slides, as a study", "`make study ONLY=summary ARGS=crc`."),
    "study-privacy": (
        "What privacy costs",
        "`make study ONLY=summary ARGS=privacy`: the semi-real cohort with one slot a class, so that noise leaves "
        "something. `memory_8`: sums for the memory with noise, ε = 8 a training site at δ = 1e-5; `memory_weights_8`: "
        "weights by DP-SGD too; `share_memory_8`: no weights leave, and the median of the sites' own students is "
        "scored; `infinity`: the same without privacy; `noiseless`: the private path at ε = 10,000; "
        "`random_orthogonal`: a memory that no patient has moved; `.random_memory`: its slots replaced when scoring. "
        "`share_released`: of anchors and slots, those that any release moved. *Given the weights*: these leave "
        "without noise, so that for the run as a whole ε is infinite; the anchors' own ε needs no condition. "
        "`finished`: share of the plan's cells.",
    ),
    "staleness": (
        "Staleness of the memory",
        "`make bench ONLY=staleness`: the synthetic cohort, twice from the same start for each of eight seeds. What "
        "the figures mean: [method.md](method.md#staleness).",
    ),
    "crc": ("Real colorectal slides", "`make bench ONLY=crc`: two sites, real features, labels and expression."),
}
IN_README = (
    "demo.install_s",
    "demo.run_s",
    "demo.peak_rss_mb",
    "round.empty_s.3_sites",
    "round.empty_s.10_sites",
    "round.bytes_ratio",
    "train.vs_release",
    "train.rss_vs_release",
    "train.vs_clam",
    "train.vs_torchmil",
    "evaluate.vs_clam",
    "reading.trident_warm_vs_h5py",
    "memory.train_rss_mb.30gb",
    "memory.train_100k_gb",
    "check.again_s",
    "study-main.PR.loso.federated",
    "study-main.PR.loso.federated_to_pooled",
    "study-main.PR.loso.federated_minus_every_local",
    "study-main.PR.loso.federated_minus_control",
    "study-main.PR.loso.federated_minus_shuffled_within_class",
    "study-main.PR.loso.federated_minus_slot_matching_shuffled",
    "study-main.ODX.loso.federated",
    "study-main.ODX.loso.federated_minus_control",
    "study-main.ODX.loso.federated_minus_shuffled_within_class",
    "study-main.HER2.loso.federated",
    "study-main.HER2.loso.federated_minus_control",
)


def table(figures: list[dict[str, Any]]) -> str:
    """Figures as a Markdown table."""
    lines = ["| figure | value | 95% interval, or quartiles of the rounds | target | holds |", "|---|---|---|---|---|"]
    for one in figures:
        interval = " to ".join(f"{end:g}" for end in one.get("interval") or one.get("spread") or ())
        holds = "" if one.get("holds") is None else "yes" if one["holds"] else "**no**"
        value = "not estimable" if one["value"] is None else f"{one['value']:g} {one['unit']}"
        lines.append(f"| {one['figure']} | {value} | {interval} | {one.get('target') or ''} | {holds} |")
    return "\n".join(lines)


def _reading() -> str:
    page = ROOT / "docs" / "results.md"
    text = page.read_text("utf-8") if page.exists() else ""
    found = re.search(re.escape(READING[0]) + r".*?" + re.escape(READING[1]), text, flags=re.DOTALL)
    return found.group(0) if found else "\n".join(READING)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="files of JSON lines")
    parser.add_argument("--evidence", action="store_true", help="write docs/privacy-evidence.md and nothing else")
    args = parser.parse_args()
    figures = [
        json.loads(line) for path in args.files for line in path.read_text("utf-8").splitlines() if line.startswith("{")
    ]
    by_name = {one["figure"]: one for one in figures}
    evidence.fill(ROOT / "docs" / "privacy-evidence.md", by_name, table)
    if args.evidence:
        return 0
    parts = ["# Results", "", "Every number is printed by the command that stands above it.", "", _reading(), ""]
    for prefix, (title, how) in SECTIONS.items():
        mine = [one for one in figures if one["figure"].split(".")[0] == prefix]
        if mine:
            parts += [f"## {title}", "", how, "", table(mine), ""]
    (ROOT / "docs" / "results.md").write_text("\n".join(parts), "utf-8")
    chosen = [by_name[name] for name in IN_README if name in by_name]
    suite.fill(ROOT / "docs" / "performance.md", by_name)
    readme = ROOT / "README.md"
    block = f"{MARKS[0]}\n{table(chosen)}\n\nAll figures: [docs/results.md](docs/results.md).\n{MARKS[1]}"
    pattern = re.escape(MARKS[0]) + r".*?" + re.escape(MARKS[1])
    readme.write_text(re.sub(pattern, lambda _: block, readme.read_text("utf-8"), flags=re.DOTALL), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
