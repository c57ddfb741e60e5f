"""``momkd provision kit``: a site's start-up folder, with everything but its private keys."""

from __future__ import annotations

import argparse
import re
import shutil
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from momkd_fl import __version__
from momkd_fl.cli.frame import OK
from momkd_fl.config.base import parse
from momkd_fl.config.site import Connection
from momkd_fl.errors import UserError
from momkd_fl.security.allowlist import ALLOW_LIST_FILE, read_allow_list
from momkd_fl.security.charter import CHARTER_FILE, read_charter
from momkd_fl.security.documents import spoken
from momkd_fl.security.party import hosts_of, party_of
from momkd_fl.security.pki import certificate_sha256, check_certificate, expiry

POLICY_DAYS = 180
UNIT, COMPOSE = "momkd-client.service", "client.yaml"
_WRITTEN = ("README.md", "site.yaml", "policy.template.yaml", UNIT, COMPOSE)


def run_kit(args: argparse.Namespace) -> int:
    """Check that the parts fit each other, and write the folder.

    Raises
    ------
    UserError
        ``kit-exists``, ``kit-wrong-host``, ``config-value``; and what certificates, charter and list give rise to.
    """
    values = _values(args)
    folder: Path = args.folder
    if folder.exists():
        raise UserError("kit-exists", f"{folder}: exists already. Choose another folder, or move it away.")
    (folder / "keys").mkdir(parents=True)
    for name in _WRITTEN:
        (folder / name).write_text(render(name, **values), "utf-8")
    shutil.copyfile(args.root / "ca.crt", folder / "keys" / "ca.crt")
    shutil.copyfile(args.certificate, folder / "keys" / f"{values['site']}.crt")
    shutil.copyfile(args.root / CHARTER_FILE, folder / CHARTER_FILE)
    shutil.copyfile(args.allow_list, folder / ALLOW_LIST_FILE)
    print(f"{folder}: for {values['site']}; nothing in it is secret. Read the charter's digest to them by telephone:")
    print(values["charter_digest"])
    return OK


def render(name: str, **values: Any) -> str:
    """One file of the kit."""
    text = files("momkd_fl.cli").joinpath("kit", name).read_text("utf-8")
    page = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False).from_string(text)
    return page.render({"version": __version__, "in_repository": False, **values})


def _values(args: argparse.Namespace) -> dict[str, Any]:
    ca = args.root / "ca.crt"
    charter = read_charter(args.root / CHARTER_FILE, ca)
    for certificate in (args.certificate, args.server_certificate):
        check_certificate(certificate, ca)
    party, server, allow_list = (
        party_of(args.certificate),
        party_of(args.server_certificate),
        read_allow_list(args.allow_list),
    )
    allow_list.check(charter, str(args.allow_list))
    allow_list.refuse_outsider(party, "site", str(args.certificate))
    allow_list.refuse_outsider(server, "server", str(args.server_certificate))
    found = {"url": args.url} | ({} if args.proxy is None else {"proxy": args.proxy})
    parse(found, Connection, Path("the command line"))
    host, port = _address(args.url)
    if host not in hosts_of(args.server_certificate):
        raise UserError(
            "kit-wrong-host",
            f"{args.url}: the coordinator's certificate is not for that host, but for "
            f"{', '.join(hosts_of(args.server_certificate))}. Sites would refuse it.",
        )
    return {
        "site": party.name,
        "consortium": charter.consortium,
        "role": args.role,
        "url": args.url,
        "host": host,
        "port": port,
        "proxy": args.proxy,
        "run": f'"{args.run}"',
        "expires": datetime.now(UTC).date() + timedelta(days=POLICY_DAYS),
        "coordinator_sha256": certificate_sha256(args.server_certificate),
        "certificate_end": f"{expiry(args.certificate):%Y-%m-%d}",
        "list_end": f"{allow_list.expires:%Y-%m-%d}",
        "charter_digest": spoken(charter.digest()),
    }


def _address(url: str) -> tuple[str, int]:
    """Host and port of a coordinator's address, whose form has been checked."""
    found = re.fullmatch(r"https://(.+?)(?::(\d+))?/?", url)
    host, port = found.groups() if found else ("", None)
    return host.strip("[]"), int(port or 443)
