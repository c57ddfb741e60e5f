"""What ``momkd-client --help`` costs: CPU-seconds of the whole process, the median of seven.

python -m benchmarks cold_start [--repeats 7]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import print_figures
from benchmarks.interleaved import middle, middle_at_most

CPU_S = 0.3


def once(command: list[str]) -> tuple[float, float]:
    """CPU-seconds (user and system) and wall seconds of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - started


def main() -> int:
    """Entry point; exit status 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a smoke run: two times")
    args = parser.parse_args()
    command = [str(Path(sys.executable).with_name("momkd-client")), "--help"]
    once(command)  # the first reads the files from the disk
    cpu, wall = zip(*(once(command) for _ in range(2 if args.quick else args.repeats)), strict=True)
    figures = [
        middle_at_most("cold_start.help_cpu_s", cpu, "CPU-s", CPU_S),
        middle("cold_start.help_wall_s", wall, "s"),
    ]
    print(f"'momkd-client --help' took {figures[0].value:.2f} CPU-seconds, the median of {len(cpu)}.", file=sys.stderr)
    return print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
