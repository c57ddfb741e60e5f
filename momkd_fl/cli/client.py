"""``momkd-client --site config.yaml``: one hospital's part in a federation."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from momkd_fl.cli.frame import OK, Parser, run_command


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``momkd-client``; exit status 0 when the run finished, 2 for a mistake to mend."""
    parser = Parser(
        "momkd-client",
        "Take part in a federation as one site. Connections are outbound only; features, labels, genes and patient "
        "ids stay here. The client waits for the server, rejoins after a restart, and ends when the run is over.",
    )
    parser.add_argument("--site", required=True, type=Path, metavar="CONFIG", help="the site's configuration file")
    args = parser.parse_args(argv)

    def action(stop: threading.Event) -> int:
        from momkd_fl.config.base import load
        from momkd_fl.config.site import SiteConfig

        config = load(args.site, SiteConfig)
        from momkd_fl.federation.client import run_site  # imports torch

        run_site(config, stop)
        return OK

    return run_command("momkd-client", action)


if __name__ == "__main__":
    sys.exit(main())
