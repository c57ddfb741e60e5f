"""``momkd-server --config federation.yaml``: the coordinator of one federated run."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from momkd_fl.cli.frame import OK, Parser, run_command


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``momkd-server``; exit status 0 when the run finished, 2 for a mistake to mend."""
    parser = Parser(
        "momkd-server",
        "Coordinate one federated run: wait for the listed sites, run the rounds, evaluate at the sites that never "
        "trained, and write the report. A run that was interrupted goes on where it stopped.",
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FEDERATION", help="the federation's file")
    parser.add_argument(
        "--fresh", action="store_true", help="start anew; an earlier run's checkpoint is kept under another name"
    )
    parser.add_argument("--plain", action="store_true", help="plain lines instead of the live view")
    args = parser.parse_args(argv)

    def action(stop: threading.Event) -> int:
        from momkd_fl.config.base import load
        from momkd_fl.config.federation import FederationConfig

        config = load(args.config, FederationConfig)
        from momkd_fl.federation.server import run_server  # imports torch

        run_server(config, stop, fresh=args.fresh, plain=args.plain or None)
        return OK

    return run_command("momkd-server", action)


if __name__ == "__main__":
    sys.exit(main())
