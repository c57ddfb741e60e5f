"""``momkd withdraw --site config.yaml --patient ID``: from the next round on, this patient takes no part."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from momkd_fl.cli.frame import OK


def withdraw_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``momkd withdraw``."""
    parser.add_argument("--site", type=Path, required=True, metavar="CONFIG", help="the site's configuration file")
    parser.add_argument("--patient", required=True, metavar="ID", help="the patient's id as in the label table")
    parser.add_argument("--reason", default="", help="for the site's own list; it never leaves the site")
    parser.epilog = (
        "A running client takes it up with its next message. What has left already cannot be called back: "
        "docs/withdrawal.md."
    )


def run_withdraw(args: argparse.Namespace) -> int:
    """Put the patient on the site's list, then drop what is stored of the patient.

    The list first: whatever stops the command after that, the patient is out.

    Raises
    ------
    UserError
        ``withdraw-unknown``, ``withdrawals-unreadable``, and what the site's files give rise to.
    """
    from momkd_fl.config.base import load
    from momkd_fl.config.site import SiteConfig
    from momkd_fl.data.load import slides_of
    from momkd_fl.data.withdrawal import drop_from_store, withdraw, withdrawn_file
    from momkd_fl.federation.site_outputs import forget_predictions
    from momkd_fl.federation.vault import open_vault

    site = load(args.site, SiteConfig)
    vault = open_vault(site.seal)
    slides = slides_of(site, args.patient)
    path = withdrawn_file(site)
    new = withdraw(path, args.patient, args.reason, slides, datetime.now(UTC).date())
    stored = 0 if site.data.store is None else drop_from_store(site.data.store, [str(slide) for slide in slides])
    rows = forget_predictions(site.state_dir, args.patient, vault)
    print(f"The patient {'was put on' if new else 'was already on'} the list {path}.")
    print(f"{stored} ingested slide(s) and {rows} row(s) of predictions were deleted; source files are never touched.")
    print("From the next message of a run on, no batch, sum, score or report has this patient.")
    print("Weights, sums and scores that have left stay as they are, and the spent budget stays spent.")
    return OK
