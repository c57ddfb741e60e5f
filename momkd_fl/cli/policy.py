"""``momkd policy write | explain | sign``: the contract of a site, for who answers for it."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from momkd_fl.cli.frame import OK
from momkd_fl.errors import UserError

DAYS = 180


def policy_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``momkd policy``."""
    commands = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=argparse.ArgumentParser
    )
    write = commands.add_parser("write", help="begin a contract, the signing key and the books that the site lacks")
    write.add_argument("--site", type=Path, required=True, metavar="CONFIG", help="the site's configuration file")
    write.add_argument(
        "--coordinator", type=Path, required=True, metavar="PEM", help="the coordinator's certificate, checked with it"
    )
    write.add_argument("--run", action="append", required=True, help="name of a run to take part in (repeatable)")
    write.add_argument("--task", action="append", required=True, help="task to answer for, of data.tasks (repeatable)")
    write.add_argument(
        "--expires", type=date.fromisoformat, default=None, metavar="DAY", help=f"last day; default: in {DAYS} days"
    )
    write.epilog = "What it writes withholds small numbers and is not signed: read it, change it, then sign it."
    explain = commands.add_parser("explain", help="say a contract in sentences")
    explain.add_argument("policy", type=Path, help="the contract")
    sign = commands.add_parser("sign", help="say a contract in sentences, then sign it as it is")
    sign.add_argument("policy", type=Path, help="the contract")
    sign.add_argument("--key", type=Path, required=True, metavar="PEM", help="Ed25519 private key of who signs")


def run_policy(args: argparse.Namespace) -> int:
    """Do what was asked.

    Raises
    ------
    UserError
        ``policy-exists``, ``policy-task``, ``egress-missing``, and what files and keys give rise to.
    """
    return {"write": _write, "explain": _explain, "sign": _sign}[args.action](args)


def _explain(args: argparse.Namespace) -> int:
    from momkd_fl.config.policy import policy_from
    from momkd_fl.config.policy_sentences import sentences
    from momkd_fl.security.detached import read_file, signature_path

    policy = policy_from(read_file(args.policy), args.policy)
    print("\n".join(sentences(policy)))
    if not signature_path(args.policy).exists():
        print("It is not signed: nothing leaves under it yet.", file=sys.stderr)
    return OK


def _sign(args: argparse.Namespace) -> int:
    from momkd_fl.security.detached import sign_file
    from momkd_fl.security.signing import fingerprint, load_signing_key

    _explain(args)
    key = load_signing_key(args.key)
    target = sign_file(args.policy, key)
    print(f"Signed with the key {fingerprint(key.public_key())}: {target}", file=sys.stderr)
    return OK


def _write(args: argparse.Namespace) -> int:
    from momkd_fl.config.base import load
    from momkd_fl.config.policy import policy_text
    from momkd_fl.config.site import SiteConfig
    from momkd_fl.federation.books import Books
    from momkd_fl.federation.contract import contract_for
    from momkd_fl.federation.vault import open_vault
    from momkd_fl.security.keystore import write_new
    from momkd_fl.security.pki import certificate_sha256
    from momkd_fl.security.signing import PUBLIC_MODE, load_signing_key

    site = load(args.site, SiteConfig)
    if site.egress is None:
        raise UserError(
            "egress-missing",
            f"{args.site}: the section 'egress' is missing. Add it: it says where contract, key and books are to be.",
        )
    unknown = [task for task in args.task if task not in site.data.tasks]
    if unknown:
        raise UserError(
            "policy-task",
            f"{args.site}: 'data.tasks' has no '{unknown[0]}', but {', '.join(site.data.tasks)}. Name one of those.",
        )
    expires = args.expires or datetime.now(UTC).date() + timedelta(days=DAYS)
    sha256 = certificate_sha256(args.coordinator)
    policy = contract_for(
        site.site, site.role, coordinator_sha256=sha256, runs=args.run, tasks=args.task, expires=expires
    )
    if site.egress.policy.exists():
        raise UserError(
            "policy-exists", f"{site.egress.policy}: exists already. Change it there, or move it away yourself."
        )
    if not site.egress.signing_key.exists():
        _create_key(site.egress.signing_key)
    if not site.egress.ledger.exists() and not site.egress.odometer.exists():
        vault = open_vault(site.seal)
        Books.create(site.egress, load_signing_key(site.egress.signing_key), site.site, policy.budget, vault)
    write_new(site.egress.policy, policy_text(policy).encode(), PUBLIC_MODE)
    print(f"Written: {site.egress.policy}. Read it with 'momkd policy explain', change it, and sign it.")
    return OK


def _create_key(path: Path) -> None:
    from momkd_fl.security.signing import create_signing_key

    if not path.name.endswith(".sign.key"):
        raise UserError(
            "signing-key-name", f"{path}: a key that is made here ends in '.sign.key'. Change egress.signing_key."
        )
    create_signing_key(path.parent, path.name.removesuffix(".sign.key"))
