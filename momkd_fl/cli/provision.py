"""``momkd provision``: the consortium's keys, certificates and allow-list, each made where it belongs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from momkd_fl.errors import UserError


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
    _passphrase_options(init)
    holder = steps.add_parser("keyholder", help="make the signing key of a member who signs allow-lists")
    holder.add_argument("--name", required=True, dest="member", help="name of the member")
    holder.add_argument("--out", type=Path, required=True, dest="folder", help="folder of the key")
    _passphrase_options(holder)
    _party_options(steps)
    _list_options(steps)
    _kit_options(steps)


def run_provision(args: argparse.Namespace) -> int:
    """One step, or everybody's keys in one place for a trial.

    Raises
    ------
    UserError
        ``provision-step``, and what keys, certificates and files give rise to.
    """
    from momkd_fl.cli import provision_kit, provision_list, provision_party, provision_root

    steps = {
        "init": provision_root.run_init,
        "keyholder": provision_root.run_keyholder,
        "request": provision_party.run_request,
        "renew": provision_party.run_renew,
        "sign": provision_party.run_sign,
        "allow": provision_list.run_allow,
        "revoke": provision_list.run_revoke,
        "countersign": provision_list.run_countersign,
        "show": provision_list.run_show,
        "kit": provision_kit.run_kit,
    }
    if args.step is not None:
        return steps[args.step](args)
    if args.out is None or not args.host or not args.site:
        raise UserError(
            "provision-step",
            "Name a step (see 'momkd provision --help'), or, for a trial, all of --out, --host and --site.",
        )
    return provision_root.run_trial(args)


def _party_options(steps: Any) -> None:
    """Add the three steps."""
    request = steps.add_parser("request", help="at a party: make its two keys, and a request with their public halves")
    request.add_argument("--name", required=True, dest="party", help="the party's name in the consortium")
    request.add_argument("--kind", choices=["site", "server"], default="site", help="hospital, or coordinator")
    request.add_argument("--host", action="append", default=[], dest="hosts", help="of a server (repeatable)")
    request.add_argument("--out", type=Path, required=True, dest="folder", help="folder of the keys; they stay there")
    _passphrase_options(request)
    renew = steps.add_parser("renew", help="at a party: ask for a new certificate, for the same keys or for new ones")
    renew.add_argument("--certificate", type=Path, required=True, help="the certificate that is to be followed")
    renew.add_argument("--keys", type=Path, required=True, help="folder of the keys in use")
    renew.add_argument("--host", action="append", default=None, dest="hosts", help="of a server; default: as before")
    renew.add_argument("--new-keys", type=Path, default=None, metavar="FOLDER", help="make new keys there")
    renew.add_argument("--out", type=Path, default=None, help="the request; default: beside the keys")
    _passphrase_options(renew)
    sign = steps.add_parser("sign", help="at the keyholder: certify a request")
    sign.add_argument("request", type=Path, help="the request of a party")
    sign.add_argument("--root", type=Path, required=True, help="folder of the root")
    sign.add_argument("--out", type=Path, required=True, help="folder of the certificate")
    sign.add_argument("--days", type=int, default=None, help="how long it is valid; default: 825")
    sign.add_argument("--digest", default=None, help="the request's digest as the party reads it by telephone")
    sign.add_argument("--list", type=Path, default=None, dest="allow_list", help="at a renewal, instead of --digest")
    _passphrase_options(sign)


def _list_options(steps: Any) -> None:
    """Add the steps."""
    allow = steps.add_parser("allow", help="at a keyholder: the next allow-list, with more parties or more time")
    allow.add_argument("certificates", type=Path, nargs="*", metavar="CERTIFICATE", help="of the parties to let in")
    revoke = steps.add_parser("revoke", help="at a keyholder: the next allow-list, without parties and their keys")
    revoke.add_argument("names", nargs="+", metavar="NAME", help="the parties to shut out")
    for step in (allow, revoke):
        step.add_argument("--list", type=Path, default=None, dest="previous", help="the newest list; none: the first")
        step.add_argument("--out", type=Path, required=True, dest="made", help="the new list's file")
        step.add_argument("--days", type=int, default=None, help="how long it is good; default: 90")
    countersign = steps.add_parser("countersign", help="at another keyholder: add a signature to a list")
    countersign.add_argument("made", type=Path, metavar="LIST", help="the list; it is written again with the signature")
    for step in (allow, revoke, countersign):
        step.add_argument("--root", type=Path, required=True, help="folder of ca.crt and consortium.json")
        step.add_argument("--key", type=Path, required=True, help="the keyholder's .sign.key")
        _passphrase_options(step)
    show = steps.add_parser("show", help="say what a list, a charter or a request holds, and its digest")
    show.add_argument("document", type=Path, help="the file")
    show.add_argument("--root", type=Path, required=True, help="folder of ca.crt and consortium.json")


def _kit_options(steps: Any) -> None:
    """Add the step."""
    kit = steps.add_parser("kit", help="at the keyholder: a site's start-up folder, without its private keys")
    kit.add_argument("--certificate", type=Path, required=True, help="the site's certificate")
    kit.add_argument("--server-certificate", type=Path, required=True, help="the coordinator's certificate")
    kit.add_argument("--root", type=Path, required=True, help="folder of ca.crt and consortium.json")
    kit.add_argument("--list", type=Path, required=True, dest="allow_list", help="the newest allow-list")
    kit.add_argument("--url", required=True, help="the coordinator's address, https://host:port")
    kit.add_argument("--proxy", default=None, help="the site's proxy, http://host:port")
    kit.add_argument("--role", choices=["train", "evaluate"], default="train", help="what the site does")
    kit.add_argument("--run", default="*", help="name of the run that the policy's template names")
    kit.add_argument("--out", type=Path, required=True, dest="folder", help="the folder, which must not exist yet")


def _passphrase_options(parser: argparse.ArgumentParser) -> None:
    """Two ways to give one; there is no third that would leave it in a shell's history."""
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--passphrase-env", metavar="VARIABLE", help="environment variable with the keys' passphrase")
    ways.add_argument(
        "--passphrase-file", type=Path, metavar="FILE", help="file of mode 0600 with it in the first line"
    )
