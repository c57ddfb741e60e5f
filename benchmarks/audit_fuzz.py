"""Changed messages by the million: refused, or read as what they say; none crashes, takes long or takes memory.

A control that must be found out: readers that forget a check.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable

from benchmarks import fuzz_messages, fuzz_secagg
from benchmarks.figures import Figure, at_least, at_most
from momkd_fl.federation import messages
from momkd_fl.secagg.wire import Reader

EACH, EACH_QUICK = 333_334, 1_000
SLOWEST_S, GROWN_MB = 0.25, 128.0


def figures(quick: bool) -> list[Figure]:
    """Of each of three readers: how many messages were neither read nor refused, the slowest one, memory."""
    count = EACH_QUICK if quick else EACH
    found = []
    for name in ("site", "coordinator"):
        fuzz_messages.fuzz(name, 500, seed=1)  # what is loaded and made once is none of the messages' memory
        before = _peak_mb()
        result = fuzz_messages.fuzz(name, count, 0, _progress(name, count))
        grown = _peak_mb() - before
        print(f"{name}: read {result.read}; refused {result.refused}; wrong {result.wrong}", file=sys.stderr)
        found += [
            Figure(f"audit.fuzz.{name}.messages", count, "messages"),
            Figure(f"audit.fuzz.{name}.read", result.read, "messages"),
            at_most(f"audit.fuzz.{name}.neither_read_nor_refused", sum(result.wrong.values()), "messages", 0),
            at_most(f"audit.fuzz.{name}.slowest_cpu_s", result.slowest_s, "s", SLOWEST_S),
            at_most(f"audit.fuzz.{name}.memory_grown_mb", grown, "MB", GROWN_MB),
        ]
    secagg = fuzz_secagg.fuzz(count, 0, _progress("secagg", count))
    print(f"secagg: read {secagg.read}; refused {secagg.refused}; wrong {secagg.wrong}", file=sys.stderr)
    found += [
        Figure("audit.fuzz.secagg.messages", count, "messages"),
        Figure("audit.fuzz.secagg.read", secagg.read, "messages"),
        at_most("audit.fuzz.secagg.neither_read_nor_refused", sum(secagg.wrong.values()), "messages", 0),
    ]
    return found + _controls()


def _controls() -> list[Figure]:
    """Readers with a check taken out: the fuzzing has to find messages that are neither read nor refused."""
    end, decode = Reader.end, messages._decode
    try:
        Reader.end = lambda reader: None  # type: ignore[method-assign]
        messages._decode = lambda array, where: array.numpy()
        wrong = {
            "secagg": fuzz_secagg.fuzz(2000, 1).wrong,
            "site": fuzz_messages.fuzz("site", 1500, 1).wrong,
            "coordinator": fuzz_messages.fuzz("coordinator", 1500, 1).wrong,
        }
    finally:
        Reader.end, messages._decode = end, decode  # type: ignore[method-assign]
    return [
        at_least(f"audit.fuzz.{name}.control.check_left_out", sum(each.values()), "messages", 1)
        for name, each in wrong.items()
    ]


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _progress(name: str, count: int) -> Callable[[int], object]:
    return lambda done: print(f"{name}: {done} of {count} messages", file=sys.stderr, flush=True)
