"""``momkd seal | unseal``: a party's files that lie in the clear are sealed; the owner of a sealed file reads it."""

from __future__ import annotations

import argparse
from pathlib import Path

from momkd_fl.cli.frame import OK
from momkd_fl.errors import UserError


def seal_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``momkd seal``."""
    party = parser.add_mutually_exclusive_group(required=True)
    party.add_argument("--site", type=Path, metavar="CONFIG", help="the site's configuration file")
    party.add_argument("--config", type=Path, metavar="FEDERATION", help="the coordinator's file")
    parser.epilog = (
        "Once, when 'seal' comes into a configuration that was used without: what lies in the clear is sealed and its "
        "clear copy deleted. The party's process must not run. A deleted file may still be found on the disk."
    )


def run_seal(args: argparse.Namespace) -> int:
    """Seal what a party has in the clear.

    Raises
    ------
    UserError
        ``seal-key-missing``, and as :class:`~momkd_fl.federation.vault.Vault`.
    """
    from momkd_fl.config.base import load
    from momkd_fl.config.federation import FederationConfig
    from momkd_fl.config.site import SiteConfig
    from momkd_fl.federation.sealing import seal_coordinator, seal_site

    done = (
        seal_site(load(args.site, SiteConfig))
        if args.site is not None
        else seal_coordinator(load(args.config, FederationConfig))
    )
    for path in done:
        print(f"{path}: sealed.")
    if not done:
        print("Nothing lies in the clear that would be sealed.")
    return OK


def unseal_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``momkd unseal``."""
    parser.add_argument("file", type=Path, help="the sealed file")
    parser.add_argument("--out", type=Path, required=True, help="where to write its content (mode 0600)")
    keys = parser.add_mutually_exclusive_group(required=True)
    keys.add_argument("--key-file", type=Path, metavar="FILE", help="file of mode 0600 with the sealing key")
    keys.add_argument("--key-env", metavar="VARIABLE", help="environment variable with the sealing key")
    parser.epilog = "It says what the file was sealed as: kind, run and round are part of the seal."


def run_unseal(args: argparse.Namespace) -> int:
    """Write the content of a sealed file.

    Raises
    ------
    UserError
        ``sealed-missing``, or as security/seal.py and :func:`~momkd_fl.security.keystore.write_new`.
    """
    from momkd_fl.security.keystore import PRIVATE_MODE, write_new
    from momkd_fl.security.seal import seal_key_from_environment, seal_key_from_file, unseal

    key = seal_key_from_file(args.key_file) if args.key_file else seal_key_from_environment(args.key_env)
    try:
        blob = args.file.read_bytes()
    except OSError as problem:
        raise UserError(
            "sealed-missing", f"{args.file}: cannot be read ({problem.strerror}). Check the path."
        ) from None
    sealed, content = unseal(key, blob, str(args.file))
    write_new(args.out, content, PRIVATE_MODE)
    print(f"{args.out}: {sealed.spoken()}. It is not encrypted any more.")
    return OK
