"""``momkd provision init | keyholder``, and everybody's keys in one place for a trial."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from momkd_fl.cli.frame import OK
from momkd_fl.cli.provision_passphrase import passphrase_of_options
from momkd_fl.errors import UserError
from momkd_fl.security.allowlist import ALLOW_LIST_FILE, revise
from momkd_fl.security.charter import CHARTER_FILE, check_threshold, make_charter
from momkd_fl.security.documents import spoken
from momkd_fl.security.keystore import write_new
from momkd_fl.security.party import party_of
from momkd_fl.security.pki import create_root, issue_server, issue_site
from momkd_fl.security.seal import create_seal_key, seal_key_name
from momkd_fl.security.signing import PUBLIC_MODE, create_signing_key, fingerprint, load_public_key

KEYHOLDER = "keyholder"


def run_trial(args: argparse.Namespace) -> int:
    """Make everybody's keys in one place."""
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
    for party in ("server", *sites):
        create_seal_key(out / party / seal_key_name(party))
    charter = make_charter(name, root / "ca.crt", {KEYHOLDER: key.public_key()}, 1)
    parties = [party_of(out / party / f"{party}.crt") for party in ("server", *sites)]
    write_new(out / CHARTER_FILE, charter.text(), PUBLIC_MODE)
    write_new(
        out / ALLOW_LIST_FILE, revise(charter, None, allow=parties, days=366).signed(KEYHOLDER, key).text(), PUBLIC_MODE
    )


def run_keyholder(args: argparse.Namespace) -> int:
    """Make one member's signing key."""
    create_signing_key(args.folder, args.member, passphrase_of_options(args))
    print(
        f"Keep {args.folder / args.member}.sign.key offline; send {args.member}.sign.pub to whoever makes the charter."
    )
    return OK


def run_init(args: argparse.Namespace) -> int:
    """Make root and charter (raises UserError ``provision-step``, ``charter-threshold``, and of keys)."""
    folder, passphrase = args.folder, passphrase_of_options(args)
    keys = {name: load_public_key(path) for name, path in map(_keyholder_option, args.keyholder)}
    check_threshold(args.threshold, {name: fingerprint(key) for name, key in keys.items()} or {"": ""}, "The charter")
    if passphrase is None:
        print("The root key is not encrypted: name a passphrase, or keep its disk in a safe.", file=sys.stderr)
    create_root(folder, args.consortium, passphrase)
    if not keys:
        keys = {KEYHOLDER: create_signing_key(folder, KEYHOLDER, passphrase).public_key()}
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
