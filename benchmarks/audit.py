"""``make audit [ONLY=name]``: attacks on the real release and the real site, each with a control that must succeed.

python -m benchmarks.audit [NAME] [--quick]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from benchmarks import audit_fuzz, audit_inversion, audit_leaks, audit_membership, audit_policy, audit_release
from benchmarks.figures import Figure, print_figures, without_targets

AUDITS: dict[str, tuple[str, Callable[[bool], list[Figure]]]] = {
    "release": ("differencing with a canary: a lower bound on ε beside the claim", audit_release.figures),
    "memory": ("membership from the memory's release, with and without noise", audit_membership.memory_figures),
    "student": ("membership from a student that has learnt something (long)", audit_membership.student_figures),
    "slot": ("a slot that one patient forms", audit_inversion.slot_figures),
    "gradient": ("the classifier's input from one update", audit_inversion.gradient_figures),
    "fuzz": ("a million changed messages, at a site, at the coordinator, of secure aggregation", audit_fuzz.figures),
    "leaks": ("planted ids, gene values and patches in everything a run leaves behind", audit_leaks.figures),
    "policy": ("lines of the contract and the tests that forbid by each", audit_policy.figures),
}


def main() -> int:
    """Entry point; exit status 1 where a claim or a control does not hold, 2 for an unknown name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=list(AUDITS), help="one audit; default: all of them")
    parser.add_argument("--quick", action="store_true", help="few runs: shows that it works, proves little")
    args = parser.parse_args()
    status = 0
    for name in [args.name] if args.name else AUDITS:
        what, make = AUDITS[name]
        print(f"== {name}: {what}", file=sys.stderr, flush=True)
        figures = make(args.quick)
        status = max(status, print_figures(without_targets(figures) if args.quick else figures))
    return status


if __name__ == "__main__":
    sys.exit(main())
