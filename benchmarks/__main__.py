"""``python -m benchmarks [NAME]``: run one measuring command, or all of them, one JSON line a figure."""

from __future__ import annotations

import importlib
import sys

NAMES = {
    "demo": "make demo on a bare clone: seconds of installation and run, peak memory",
    "empty_round": "an empty round over TLS: seconds, bytes, server CPU and memory",
    "study": "AUROC on sites that never trained, with every comparator (hours; a plan of studies/)",
    "gate": "what the gate adds to a round at a site of 1 M parameters, books on disk",
    "reading": "features in place against h5py, the store against readinto, ingesting, memory of 30 GB",
    "check": "momkd check on 1,000 slides: the first time and again",
    "train": "training against the released MoMKD, CLAM, torchmil and the matmul roof (needs benchmarks/peers.sh)",
    "breakdown": "what a training step's time goes into, by the profiler (needs benchmarks/peers.sh)",
    "evaluate": "one pass of evaluation against CLAM and the released MoMKD (needs benchmarks/peers.sh)",
    "growth": "slopes of CPU time against patches and patients",
    "memory": "training and evaluation of one patient of 100,000 and of 400,000 patches",
    "loader": "share of an epoch in which training waits for data",
    "cold_start": "CPU-seconds of momkd-client --help",
    "gpu": "patients a second on a GPU (status 2 where there is none)",
    "parity_release": "ours against the released MoMKD code, tensor by tensor (needs benchmarks/peers.sh)",
    "staleness": "what it costs that the memory is measured a round before it is used",
    "secagg": "secure aggregation: seconds, bytes, error and recovery of whole rounds in one process",
    "secagg_processes": "secure sums over processes: what a round costs more than a plain one, also with sites gone",
    "robust": "error of the step under an attack of -100 times by rule, and time of a robust middle at 1 M x 10",
    "crc": "real colorectal features and labels, two sites, both ways",
}


ALIASES = {"leave_one_site_out": "study"}
"""Names that commands had before."""


def main() -> int:
    """Entry point; exit status 1 if any figure misses its target, 2 for an unknown name or what cannot run here."""
    asked = [ALIASES.get(argument, argument) for argument in sys.argv[1:2] if not argument.startswith("-")]
    if asked and asked[0] not in NAMES:
        print(f"There is no benchmark '{asked[0]}'. There are:", file=sys.stderr)
        for name, meaning in NAMES.items():
            print(f"  {name:20} {meaning}", file=sys.stderr)
        return 2
    rest = sys.argv[1 + len(asked) :]
    status = 0
    for name in asked or NAMES:
        print(f"== {name}: {NAMES[name]}", file=sys.stderr, flush=True)
        sys.argv = [f"benchmarks {name}", *(rest if asked else [])]
        status = max(status, importlib.import_module(f"benchmarks.{name}").main())
    return status


if __name__ == "__main__":
    sys.exit(main())
