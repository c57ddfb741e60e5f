"""``momkd unseal``: the owner of a sealed file reads it."""

from __future__ import annotations

import argparse
from pathlib import Path

from momkd_fl.cli.frame import OK
from momkd_fl.errors import UserError


def unseal_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``momkd unseal``."""
    parser.add_argument("file", type=Path, help="the sealed file")
    parser.add_argument("--out", type=Path, required=True, help="where to write its content (mode 0600)")
    keys = parser.add_mutually_exclusive_group(required=True)
    keys.add_argument("--key-file", type=Path, metavar="FILE", help="file of mode 0600 with the sealing key")
    keys.add_argument("--key-env", metavar="VARIABLE", help="environment variable with the sealing key")
    parser.add_argument("--kind", required=True, help="what it is, such as checkpoint or memory-bank")
    parser.add_argument("--run", required=True, help="the run's identifier")
    parser.add_argument("--round", type=int, required=True, help="the round's number")
    parser.add_argument(
        "--version", type=int, default=1, dest="content_version", help="version of the content's format"
    )
    parser.epilog = "The file opens only as what it was sealed as: kind, run, round and version are part of the seal."


def run_unseal(args: argparse.Namespace) -> int:
    """Write the content of a sealed file.

    Raises
    ------
    UserError
        ``sealed-missing``, or as security/seal.py and :func:`~momkd_fl.security.keystore.write_new`.
    """
    from momkd_fl.security.keystore import PRIVATE_MODE, write_new
    from momkd_fl.security.seal import Sealed, seal_key_from_environment, seal_key_from_file, unseal

    key = seal_key_from_file(args.key_file) if args.key_file else seal_key_from_environment(args.key_env)
    try:
        blob = args.file.read_bytes()
    except OSError as problem:
        raise UserError(
            "sealed-missing", f"{args.file}: cannot be read ({problem.strerror}). Check the path."
        ) from None
    sealed = Sealed(args.kind, args.run, args.round, args.content_version)
    write_new(args.out, unseal(key, blob, sealed), PRIVATE_MODE)
    print(f"{args.out}: the {args.kind} of run '{args.run}', round {args.round}. It is not encrypted any more.")
    return OK
