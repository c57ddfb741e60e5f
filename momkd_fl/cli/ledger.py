"""``momkd ledger verify | show | export``: what left this site, for the person who answers for it."""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from momkd_fl.cli.frame import OK
from momkd_fl.errors import UserError

if TYPE_CHECKING:
    from momkd_fl.security.ledger import LedgerHead, Verified


def ledger_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``momkd ledger``."""
    commands = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=argparse.ArgumentParser
    )
    for action, said in (
        ("verify", "check that no line was changed, taken out, put in, moved or cut off"),
        ("show", "verify, then print one line a message"),
        ("export", "verify, then write all messages as CSV or JSON"),
    ):
        command = commands.add_parser(action, help=said)
        command.add_argument("--ledger", type=Path, required=True, help="the site's ledger")
        command.add_argument(
            "--public-key", type=Path, default=None, metavar="PEM", help="the site's .sign.pub as the consortium has it"
        )
        command.add_argument(
            "--head",
            action="append",
            default=[],
            metavar="LINES:DIGEST",
            help="a head that coordinator or a peer holds (repeatable); without one, cut-off lines do not show",
        )
        if action == "export":
            command.add_argument("--out", type=Path, required=True, help="file to write: .csv or .json")
        command.epilog = "Exit status: 0 the ledger holds together, 2 it does not."


def run_ledger(args: argparse.Namespace) -> int:
    """Verify, then do what was asked.

    Raises
    ------
    UserError
        As :func:`~momkd_fl.security.ledger.verify`; ``ledger-head-form``; ``ledger-export`` for another file name.
    """
    from momkd_fl.security.ledger import verify
    from momkd_fl.security.signing import load_public_key

    key = None if args.public_key is None else load_public_key(args.public_key)
    found = verify(args.ledger, key, [_head(text) for text in args.head])
    if args.action == "show":
        _show(found)
    elif args.action == "export":
        _export(found, args.out)
    _say(found, args)
    return OK


def _say(found: Verified, args: argparse.Namespace) -> None:
    """What was checked, and what could not be, on stderr: stdout is for the messages."""
    from momkd_fl.security.signing import fingerprint

    say = [f"{args.ledger}: site {found.site}, {len(found.entries)} messages; every line is signed and in its place."]
    if args.public_key is None:
        say.append(
            f"The key was not compared with the one on record: {fingerprint(found.key)}. Give --public-key to be sure "
            "that nobody wrote the ledger anew."
        )
    if not args.head:
        say.append("No head was given: lines cut off at the end would not show. Ask the coordinator or a peer for one.")
    say.append(f"Head: {found.head.lines}:{found.head.digest}")
    print("\n".join(say), file=sys.stderr)


def _show(found: Verified) -> None:
    for entry in found.entries:
        budget = (
            "no budget"
            if entry.epsilon_spent is None
            else f"ε spent {entry.epsilon_spent:.3f}, left {entry.epsilon_left or 0.0:.3f}"
        )
        print(
            f"{entry.time}  {entry.run}  round {entry.round}  {entry.kind}  {entry.bytes} bytes  "
            f"{entry.digest[:12]}…  {budget}"
        )


def _export(found: Verified, out: Path) -> None:
    from momkd_fl.security.ledger import Entry

    rows = [asdict(entry) for entry in found.entries]
    if out.suffix == ".json":
        out.write_text(json.dumps({"site": found.site, "messages": rows}, indent=1) + "\n", "utf-8")
    elif out.suffix == ".csv":
        with out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Entry)])
            writer.writeheader()
            writer.writerows(rows)
    else:
        raise UserError("ledger-export", f"{out}: the name must end in .csv or .json, which says how to write it.")


def _head(text: str) -> LedgerHead:
    from momkd_fl.security.ledger import LedgerHead

    match = re.fullmatch(r"([0-9]{1,12}):([0-9a-f]{64})", text)
    if match is None:
        raise UserError(
            "ledger-head-form", f"'{text}' is not a head: it is a number of lines, a colon and 64 hexadecimal digits."
        )
    return LedgerHead(int(match[1]), match[2])
