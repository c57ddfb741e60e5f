"""``momkd provision request | renew`` at a party, and ``sign`` at the keyholder."""

from __future__ import annotations

import argparse
from pathlib import Path

from momkd_fl.cli.frame import OK
from momkd_fl.cli.provision_passphrase import passphrase_of_options
from momkd_fl.errors import UserError
from momkd_fl.security.allowlist import read_allow_list
from momkd_fl.security.charter import CHARTER_FILE, read_charter
from momkd_fl.security.documents import same_digest, spoken
from momkd_fl.security.keystore import refuse_existing, write_new
from momkd_fl.security.party import hosts_of, party_of
from momkd_fl.security.pki import PARTY_DAYS, certify, private_key_of, write_certificate
from momkd_fl.security.seal import create_seal_key, seal_key_name
from momkd_fl.security.signing import PUBLIC_MODE, load_signing_key
from momkd_fl.security.signing_request import SigningRequest, check_party, create_keys, make_request, read_request


def run_request(args: argparse.Namespace) -> int:
    """Make keys and a request; the key that seals files is in no request, and a renewal leaves it as it is."""
    path = args.folder / f"{args.party}.request.json"
    check_party(args.party, args.kind, tuple(args.hosts))
    refuse_existing(path)
    seal_key = args.folder / seal_key_name(args.party)
    refuse_existing(seal_key)
    keys = create_keys(args.folder, args.party, passphrase_of_options(args))
    create_seal_key(seal_key)
    return _hand_over(path, make_request(args.party, args.kind, tuple(args.hosts), *keys))


def run_renew(args: argparse.Namespace) -> int:
    """Make a request that the keys in use sign, too."""
    party, passphrase = party_of(args.certificate), passphrase_of_options(args)
    hosts = hosts_of(args.certificate) if args.hosts is None else tuple(args.hosts)
    tls = private_key_of(args.certificate, args.keys / f"{party.name}.key", passphrase)
    signing = load_signing_key(args.keys / f"{party.name}.sign.key")
    folder = args.new_keys or args.keys
    path = args.out or folder / f"{party.name}.renewal.json"
    refuse_existing(path)
    if args.new_keys is None:
        return _hand_over(path, make_request(party.name, party.kind, hosts, tls, signing))
    keys = create_keys(args.new_keys, party.name, passphrase)
    return _hand_over(path, make_request(party.name, party.kind, hosts, *keys, signing))


def run_sign(args: argparse.Namespace) -> int:
    """Certify a request whose sender is established.

    Raises
    ------
    UserError
        ``request-unconfirmed``, and what the request, the root and the list give rise to.
    """
    request = read_request(args.request)
    known = args.allow_list is not None and _known(request, args.root, args.allow_list)
    compared = args.digest is not None and same_digest(args.digest, request.request_digest())
    if not known and not compared:
        raise UserError(
            "request-unconfirmed",
            f"{args.request}: nothing shows that '{request.name}' sent it. Give as --digest what the party reads to "
            "you by telephone, at least 32 digits; at a renewal, --list with the list that has the key the request is "
            "signed with.",
        )
    path, days = args.out / f"{request.name}.crt", PARTY_DAYS if args.days is None else args.days
    args.out.mkdir(parents=True, exist_ok=True)
    write_certificate(path, certify(request, args.root, days=days, passphrase=passphrase_of_options(args)))
    named = f" for {', '.join(request.hosts)}" if request.hosts else ""
    print(f"{path}: '{request.name}', {request.kind}{named}, good for {days} days.")
    print("Put it on the allow-list with 'momkd provision allow', and send it back.")
    return OK


def _known(request: SigningRequest, root: Path, path: Path) -> bool:
    """Whether a signing key that the list has under that name signed the request."""
    allow_list = read_allow_list(path)
    allow_list.check(read_charter(root / CHARTER_FILE, root / "ca.crt"), str(path))
    listed = allow_list.party(request.name)
    return (
        listed is not None
        and listed.kind == request.kind
        and listed.signing_key in (request.signing_key, request.previous_key)
    )


def _hand_over(path: Path, request: SigningRequest) -> int:
    write_new(path, request.text(), PUBLIC_MODE)
    print(f"Send {path} to the consortium's keyholder. The private keys stay where they are.")
    print(f"Its digest, to be read by telephone: {spoken(request.request_digest())}")
    return OK
