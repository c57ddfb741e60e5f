"""Where a step of ``momkd provision`` finds the passphrase of the keys that it makes or uses."""

from __future__ import annotations

import argparse

from momkd_fl.config.base import secret
from momkd_fl.security.keystore import check_passphrase, read_passphrase


def passphrase_of_options(args: argparse.Namespace) -> bytes | None:
    """The passphrase; None where none is named.

    Raises
    ------
    UserError
        ``secret-missing``, ``passphrase-short``, or as :func:`~momkd_fl.security.keystore.read_private`.
    """
    if args.passphrase_file is not None:
        return read_passphrase(args.passphrase_file)
    found = secret(args.passphrase_env, "the keys' passphrase")
    return None if found is None else check_passphrase(found, f"Environment variable {args.passphrase_env}")
