"""``momkd provision``: the consortium's keys, certificates and allow-list, each made where it belongs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from momkd_fl.cli.frame import OK
from momkd_fl.cli.provision_kit import kit_options, run_kit
from momkd_fl.cli.provision_list import list_options, run_allow, run_countersign, run_revoke, run_show
from momkd_fl.cli.provision_party import party_options, run_renew, run_request, run_sign
from momkd_fl.cli.provision_passphrase import passphrase_of_options, passphrase_options
from momkd_fl.errors import UserError
from momkd_fl.security.allowlist import ALLOW_LIST_FILE, revise
from momkd_fl.security.charter import CHARTER_FILE, make_charter
from momkd_fl.security.documents import spoken
from momkd_fl.security.keystore import write_new
from momkd_fl.security.party import party_of
from momkd_fl.security.pki import create_root, issue_server, issue_site
from momkd_fl.security.signing import PUBLIC_MODE, create_signing_key, load_public_key

KEYHOLDER = "keyholder"


def provision_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``momkd provision``."""
    parser.add_argument("--out", type=Path, help="for a trial: folder for everybody's keys, made in one place")
    parser.add_argument("--name", default="consortium", help="for a trial: name of the consortium")
    parser.add_argument("--host", action="append", help="for a trial: name or address of the server (repeatable)")
    parser.add_argument("--site", action="append", help="for a trial: name of a site (repeatable)")
    parser.epilog = (
        "In a consortium every party makes its own keys: 'keyholder' and 'init' by the consortium, 'request' and "
        "'renew' by a site or the coordinator, 'sign', 'allow', 'revoke', 'countersign' and 'kit' by the keyholder."
    )
    steps = parser.add_subparsers(dest="step", metavar="STEP", parser_class=argparse.ArgumentParser)
    init = steps.add_parser("init", help="make the consortium's root and charter, on a machine that is never online")
    init.add_argument("--out", type=Path, required=True, dest="folder", help="folder of the root, to be kept offline")
    init.add_argument("--name", required=True, dest="consortium", help="name of the consortium")
    init.add_argument(
        "--keyholder", action="append", default=[], metavar="NAME=PUB",
        help="a member who signs allow-lists, with its .sign.pub (repeatable); default: one keyholder, made here",
    )  # fmt: skip
    init.add_argument("--threshold", type=int, default=1, metavar="K", help="how many of them must sign a list")
    passphrase_options(init)
    holder = steps.add_parser("keyholder", help="make the signing key of a member who signs allow-lists")
    holder.add_argument("--name", required=True, dest="member", help="name of the member")
    holder.add_argument("--out", type=Path, required=True, dest="folder", help="folder of the key")
    passphrase_options(holder)
    party_options(steps)
    list_options(steps)
    kit_options(steps)


def run_provision(args: argparse.Namespace) -> int:
    """One step, or everybody's keys in one place for a trial.

    Raises
    ------
    UserError
        ``provision-step``, and what keys, certificates and files give rise to.
    """
    steps: dict[str, Callable[[argparse.Namespace], int]] = {
        "init": _init,
        "keyholder": _keyholder,
        "request": run_request,
        "renew": run_renew,
        "sign": run_sign,
        "allow": run_allow,
        "revoke": run_revoke,
        "countersign": run_countersign,
        "show": run_show,
        "kit": run_kit,
    }
    if args.step is not None:
        return steps[args.step](args)
    if args.out is None or not args.host or not args.site:
        raise UserError(
            "provision-step",
            "Name a step (see 'momkd provision --help'), or, for a trial, all of --out, --host and --site.",
        )
    make_trial(args.out, args.name, args.host, args.site)
    print(
        f"Keys and certificates are in {args.out}. Keep {args.out / 'root'} offline; hand each site its own folder, "
        f"root/ca.crt, {CHARTER_FILE} and {ALLOW_LIST_FILE}."
    )
    return OK


def make_trial(out: Path, name: str, hosts: list[str], sites: list[str]) -> None:
    """Root, charter, allow-list, and the keys and certificates of the server and of all sites, below ``out``."""
    root = out / "root"
    create_root(root, name)
    key = create_signing_key(root, KEYHOLDER)
    issue_server(out / "server", root, "server", hosts)
    for site in sites:
        issue_site(out / site, root, site)
    charter = make_charter(name, root / "ca.crt", {KEYHOLDER: key.public_key()}, 1)
    parties = [party_of(out / party / f"{party}.crt") for party in ("server", *sites)]
    write_new(out / CHARTER_FILE, charter.text(), PUBLIC_MODE)
    write_new(
        out / ALLOW_LIST_FILE, revise(charter, None, allow=parties, days=366).signed(KEYHOLDER, key).text(), PUBLIC_MODE
    )


def _keyholder(args: argparse.Namespace) -> int:
    create_signing_key(args.folder, args.member, passphrase_of_options(args))
    print(
        f"Keep {args.folder / args.member}.sign.key offline; send {args.member}.sign.pub to whoever makes the charter."
    )
    return OK


def _init(args: argparse.Namespace) -> int:
    folder, passphrase = args.folder, passphrase_of_options(args)
    holders = dict(_keyholder_option(text) for text in args.keyholder)
    if passphrase is None:
        print("The root key is not encrypted: name a passphrase, or keep its disk in a safe.", file=sys.stderr)
    create_root(folder, args.consortium, passphrase)
    if not holders:
        create_signing_key(folder, KEYHOLDER, passphrase)
        holders = {KEYHOLDER: folder / f"{KEYHOLDER}.sign.pub"}
    keys = {name: load_public_key(path) for name, path in holders.items()}
    charter = make_charter(args.consortium, folder / "ca.crt", keys, args.threshold)
    write_new(folder / CHARTER_FILE, charter.text(), PUBLIC_MODE)
    print(f"Root and charter are in {folder}: keep the folder offline, and hand out ca.crt and {CHARTER_FILE}.")
    print(f"Allow-lists need {charter.threshold} of {len(keys)} signatures. Digest of the charter, to be read to each")
    print(f"party by telephone: {spoken(charter.digest())}")
    return OK


def _keyholder_option(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise UserError("provision-step", f"--keyholder {text!r}: write NAME=FILE, the file being its .sign.pub.")
    return name, Path(path)
