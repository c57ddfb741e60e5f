"""``momkd-client --site config.yaml``: one hospital's part in a federation."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from momkd_fl.cli.frame import FAILED, OK, Parser, run_command

if TYPE_CHECKING:
    from momkd_fl.config.site import SiteConfig


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``momkd-client``; exit status 0 when the run finished, 2 for a mistake to mend."""
    parser = Parser(
        "momkd-client",
        "Take part in a federation as one site. Connections are outbound only; features, labels, genes and patient "
        "ids stay here. The client waits for the server, rejoins after a restart, and ends when the run is over.",
    )
    parser.add_argument("--site", required=True, type=Path, metavar="CONFIG", help="the site's configuration file")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="send nothing and connect to nobody: write the messages of a first round to disk, to be looked at",
    )
    parser.add_argument(
        "--federation", type=Path, default=None, metavar="CONFIG", help="for --dry-run: the coordinator's file"
    )
    parser.add_argument("--out", type=Path, default=Path("dry-run"), help="for --dry-run: a folder that is not there")
    args = parser.parse_args(argv)

    def action(stop: threading.Event) -> int:
        from momkd_fl.config.base import load
        from momkd_fl.config.site import SiteConfig

        config = load(args.site, SiteConfig)
        if args.dry_run:
            return _dry_run(config, args.federation, args.out)
        from momkd_fl.federation.client import run_site  # imports torch

        run_site(config, stop)
        return OK

    return run_command("momkd-client", action)


def _dry_run(site: SiteConfig, federation: Path | None, out: Path) -> int:
    """Status 0: the contract lets all of it go; 1: it or the site refuses some, as the sentences say."""
    from momkd_fl.config.base import load
    from momkd_fl.config.federation import FederationConfig
    from momkd_fl.federation.dry_run import dry_run, settings_for  # imports torch

    def say(sentence: str) -> None:
        print(f"[{site.site}] {sentence}", file=sys.stderr, flush=True)

    settings = settings_for(site) if federation is None else load(federation, FederationConfig)
    refused = dry_run(site, settings, out, say)
    print(f"Nothing was sent. What would have been is in {out}: summary.txt to read, and the exact bytes beside it.")
    if refused:
        print(f"Refused at this site: {', '.join(refused)}. The sentences above say why.")
    return FAILED if refused else OK


if __name__ == "__main__":
    sys.exit(main())
