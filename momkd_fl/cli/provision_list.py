"""``momkd provision allow | revoke | countersign`` at the keyholders, and ``show`` for everybody."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from momkd_fl.cli.frame import OK
from momkd_fl.cli.provision_passphrase import passphrase_of_options
from momkd_fl.errors import UserError
from momkd_fl.security.allowlist import LIST_DAYS, AllowList, read_allow_list, revise
from momkd_fl.security.charter import CHARTER_FILE, Charter, read_charter
from momkd_fl.security.documents import FORMATS, format_of, spoken
from momkd_fl.security.keystore import write_new
from momkd_fl.security.party import party_of
from momkd_fl.security.pki import check_certificate
from momkd_fl.security.signing import PUBLIC_MODE, load_signing_key
from momkd_fl.security.signing_request import read_request


def run_allow(args: argparse.Namespace) -> int:
    """Make the next list with these parties as well."""
    charter = _charter(args.root)
    for path in args.certificates:
        check_certificate(path, args.root / "ca.crt")
    parties = [party_of(path) for path in args.certificates]
    made = revise(charter, _previous(args), allow=parties, days=LIST_DAYS if args.days is None else args.days)
    return _sign(args, charter, made)


def run_revoke(args: argparse.Namespace) -> int:
    """Make the next list without these parties."""
    charter = _charter(args.root)
    return _sign(
        args,
        charter,
        revise(charter, _previous(args), revoke=args.names, days=LIST_DAYS if args.days is None else args.days),
    )


def run_countersign(args: argparse.Namespace) -> int:
    """Add one keyholder's signature to a list, after having shown it."""
    charter, made = _charter(args.root), read_allow_list(args.made)
    made.check_charter(charter, str(args.made))
    signed = _with_signature(args, charter, made)
    draft = args.made.with_name(f".{args.made.name}.{os.getpid()}.next")
    write_new(draft, signed.text(), PUBLIC_MODE)
    os.replace(draft, args.made)
    return _say(args.made, charter, signed)


def run_show(args: argparse.Namespace) -> int:
    """Say what a document holds, and whether it holds."""
    charter = _charter(args.root)
    kind = format_of(args.document)
    if kind == FORMATS["charter"]:
        shown = read_charter(args.document, args.root / "ca.crt")
        holders = ", ".join(sorted(shown.keyholders))
        print(f"Charter of '{shown.consortium}': {shown.threshold} of {holders} sign an allow-list.")
        print(f"Digest: {spoken(shown.digest())}")
        return OK
    if kind == FORMATS["request"]:
        request = read_request(args.document)
        print(f"Request of '{request.name}', {request.kind} {' '.join(request.hosts)}".rstrip() + ".")
        print(f"Digest: {spoken(request.request_digest())}")
        return OK
    return _say(args.document, charter, read_allow_list(args.document))


def _charter(root: Path) -> Charter:
    return read_charter(root / CHARTER_FILE, root / "ca.crt")


def _previous(args: argparse.Namespace) -> AllowList | None:
    return None if args.previous is None else read_allow_list(args.previous)


def _sign(args: argparse.Namespace, charter: Charter, made: AllowList) -> int:
    signed = _with_signature(args, charter, made)
    write_new(args.made, signed.text(), PUBLIC_MODE)
    return _say(args.made, charter, signed)


def _with_signature(args: argparse.Namespace, charter: Charter, made: AllowList) -> AllowList:
    key = load_signing_key(args.key, passphrase_of_options(args))
    public = key.public_key().public_bytes_raw().hex()
    names = [name for name, listed in charter.keyholders.items() if listed == public]
    if not names:
        raise UserError(
            "keyholder-unknown",
            f"{args.key}: is the key of none of the charter's keyholders ({', '.join(sorted(charter.keyholders))}). "
            "Use the key that the charter was made with.",
        )
    return made.signed(names[0], key)


def _say(path: Path, charter: Charter, made: AllowList) -> int:
    signers = sorted(charter.signed_by(made.body(), made.signatures))
    print(f"{path}: version {made.version}, until {made.expires:%Y-%m-%d}. In: {_named(made)}.")
    if made.revoked:
        print(f"Revoked keys: {', '.join(f'{one.name} (version {one.version})' for one in made.revoked)}.")
    print(f"Signed by {', '.join(signers) or 'nobody'}; {charter.threshold} must. {_next(charter, signers)}")
    print(f"Digest: {spoken(made.body_digest())}")
    return OK


def _named(made: AllowList) -> str:
    return ", ".join(f"{one.name} ({one.kind})" for one in made.parties) or "nobody"


def _next(charter: Charter, signers: Sequence[str]) -> str:
    if len(signers) < charter.threshold:
        return "Pass it on to the next: 'momkd provision countersign'."
    return "Send it to the coordinator and to every site."
