"""The allow-list at both ends: what a site holds the coordinator against, and whom the coordinator lets in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from momkd_fl.config.base import secret
from momkd_fl.config.site import Connection as ConnectionSettings
from momkd_fl.config.site import Consortium, SiteConfig, Tls
from momkd_fl.data.check import Finding
from momkd_fl.errors import UserError
from momkd_fl.federation.sum_keys import Peers
from momkd_fl.federation.transport import Proxy
from momkd_fl.security.allowlist import AllowList, parse_allow_list, read_allow_list
from momkd_fl.security.charter import read_charter
from momkd_fl.security.held_list import HeldList
from momkd_fl.security.keystore import read_passphrase
from momkd_fl.security.party import party_in, party_of, tls_key_sha256
from momkd_fl.security.pki import expiry
from momkd_fl.security.signing import load_signing_key
from momkd_fl.telemetry.logs import JsonLog
from momkd_fl.telemetry.metrics import ClientMetrics, ServerMetrics

LOOK_EVERY_S: Final = 5.0
WARN_DAYS: Final = {"certificate": 30.0, "root": 180.0, "allow-list": 14.0, "contract": 14.0}
"""From when on it is said that a credential ends."""
_RENEWAL: Final = {"contract": "Set 'expires' in it anew, and sign it ('momkd policy sign')."}
_OF_KEYHOLDERS: Final = "Ask whoever keeps the consortium's keys for a new one."


def passphrase_of(tls: Tls) -> bytes | None:
    """The passphrase of the private key, from the environment or from a file; None where neither is named.

    Raises
    ------
    UserError
        ``secret-missing``, ``passphrase-short``, or as :func:`~momkd_fl.security.keystore.read_private`.
    """
    if tls.passphrase_file is not None:
        return read_passphrase(tls.passphrase_file)
    return secret(tls.passphrase_env, "the private key's passphrase")


def proxy_of(connection: ConnectionSettings) -> Proxy | None:
    """The proxy on the way to the coordinator, if there is one (raises UserError ``secret-missing``)."""
    if connection.proxy is None:
        return None
    found = secret(connection.proxy_auth_env, "user:password for the proxy")
    if found is None:
        return Proxy(connection.proxy)
    user, _, password = found.decode().partition(":")
    return Proxy(connection.proxy, (user, password))


class Membership:
    """A site's view: who it is, and the newest allow-list that it has seen.

    Attributes
    ----------
    changed : callable
        Told of the list that counts, before each session.

    Raises
    ------
    UserError
        Of security/charter.py, security/held_list.py and security/allowlist.py; ``site-name-mismatch``.
    """

    def __init__(self, consortium: Consortium, tls: Tls, site: str) -> None:
        self._held = HeldList(consortium.seen, read_charter(consortium.charter, tls.ca))
        self._certificate, self._party = tls.certificate, party_of(tls.certificate)
        self._coordinator: bytes | None = None
        self.changed: Callable[[AllowList], None] = lambda allow_list: None
        if self._party.name != site:
            raise UserError(
                "site-name-mismatch",
                f"{tls.certificate}: is the certificate of '{self._party.name}', the site's file says '{site}'. "
                "Correct one of the two.",
            )
        brought, seen = read_allow_list(consortium.allow_list), self._held.newest()
        where = str(consortium.allow_list)
        self.allow_list = self._held.offer(brought if seen is None or brought.version >= seen.version else seen, where)
        self.allow_list.refuse_outsider(self._party, "site", str(tls.certificate))

    def meet(self, shown: bytes | None, offered: bytes | None) -> None:
        """Take the list that the coordinator hands out, if it is not older, and hold the coordinator against it.

        Parameters
        ----------
        shown : bytes or None
            The server's certificate, DER, from the connection.
        offered : bytes or None
            The list; None where the server has none, and the one at hand counts until it ends.

        Raises
        ------
        UserError
            As the class; ``allowlist-not-listed`` for this site or for the coordinator.
        """
        where = "The allow-list that the coordinator hands out"
        newest = self.allow_list if offered is None else parse_allow_list(offered, where)
        self.allow_list = self._held.offer(newest, where)
        self.changed(self.allow_list)
        self.allow_list.refuse_outsider(self._party, "site", str(self._certificate))
        server = x509.load_der_x509_certificate(shown or b"")
        coordinator = party_in(server, Path("the coordinator's certificate"))
        self.allow_list.refuse_outsider(coordinator, "server", "The coordinator")
        self._coordinator = bytes.fromhex(coordinator.signing_key)

    def peers(self) -> Peers:
        """Whose signatures count in a secure sum: the coordinator that was met, and the sites now on the list."""
        if self._coordinator is None:
            raise UserError(
                "sum-coordinator-unmet", "A secure sum was begun before the coordinator's certificate was seen."
            )
        return Peers(self._coordinator, self.allow_list.identities())


class Admission:
    """The coordinator's view: which members are let in, by the newest list in its file.

    The file is looked at again while the server runs: a revoked site's next request is refused. A file that does not
    hold, or is older, is told of and not taken: the list before counts until it ends.

    Parameters
    ----------
    keys : mapping
        TLS public key by member, from the federation's file.

    Attributes
    ----------
    tell : callable
        Told of every list that was not taken.
    changed : callable
        Told of every list that was.

    Raises
    ------
    UserError
        Of security/charter.py, security/held_list.py and security/allowlist.py.
    """

    def __init__(self, consortium: Consortium, tls: Tls, keys: Mapping[str, EllipticCurvePublicKey]) -> None:
        self._path = consortium.allow_list
        self._held = HeldList(consortium.seen, read_charter(consortium.charter, tls.ca))
        self._keys = {site: tls_key_sha256(key) for site, key in keys.items()}
        self._own = party_of(tls.certificate)
        self._looked, self._state = time.monotonic(), self._file_state()
        self.tell: Callable[[UserError], None] = lambda mistake: None
        self.changed: Callable[[AllowList], None] = lambda allow_list: None
        self.allow_list = self._held.offer(read_allow_list(self._path), str(self._path))
        self.allow_list.refuse_outsider(self._own, "server", str(tls.certificate))

    def admits(self, site: str) -> bool:
        """Whether the site is let in now, with the key that the federation's file gives it."""
        self._look_again()
        current = self.allow_list
        return (
            datetime.now(UTC) < current.expires
            and current.admits(self._own.name, "server", self._own.tls_key_sha256)
            and current.admits(site, "site", self._keys[site])
        )

    def outsiders(self) -> list[str]:
        """Members that are not let in now."""
        return [site for site in self._keys if not self.admits(site)]

    def content(self) -> bytes:
        """The list for the sites."""
        return self.allow_list.text()

    def _look_again(self) -> None:
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked, state = time.monotonic(), self._file_state()
        if state == self._state:
            return
        self._state = state
        try:
            self.allow_list = self._held.offer(read_allow_list(self._path), str(self._path))
        except UserError as mistake:
            self.tell(mistake)
        else:
            self.changed(self.allow_list)

    def _file_state(self) -> tuple[int, int, int] | None:
        try:
            state = self._path.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_size, state.st_ino


def expiries(tls: Tls, allow_list: AllowList, contract: date | None = None) -> dict[str, datetime]:
    """When each credential of a party ends, by the words of telemetry's ``CREDENTIALS``.

    ``contract`` is the last day of a site's contract (UTC); a coordinator has none.
    """
    found = {"certificate": expiry(tls.certificate), "root": expiry(tls.ca), "allow-list": allow_list.expires}
    if contract is not None:
        found["contract"] = datetime.combine(contract + timedelta(days=1), time_of_day.min, UTC)
    return found


def ending(ends: Mapping[str, datetime]) -> dict[str, float]:
    """Days left of each credential that should be renewed by now."""
    left = {name: (end - datetime.now(UTC)).total_seconds() / 86400 for name, end in ends.items()}
    return {name: days for name, days in left.items() if days < WARN_DAYS[name]}


def show_ends(ends: Mapping[str, datetime], metrics: ClientMetrics | ServerMetrics) -> None:
    """Days left in the metrics, of the credentials that count now."""
    for credential, end in ends.items():
        metrics.expires(credential, end)


def tell_of_ends(
    ends: Mapping[str, datetime], say: Callable[[str], None], log: JsonLog, metrics: ClientMetrics | ServerMetrics
) -> None:
    """Show all ends in the metrics; say and log those that are near."""
    show_ends(ends, metrics)
    for credential, days in ending(ends).items():
        say(f"The {credential} ends in {days:.0f} days. {_RENEWAL.get(credential, _OF_KEYHOLDERS)}")
        log.event("credential_ending", level="warning", credential=credential, days_left=round(days, 1))


def refuse_other_signer(signing_key: Path, certificate: Path, where: str) -> None:
    """Raise UserError ``signing-key-other`` unless the certificate, and so the list, names the key that signs."""
    if load_signing_key(signing_key).public_key().public_bytes_raw().hex() != party_of(certificate).signing_key:
        raise UserError(
            "signing-key-other",
            f"{signing_key}: is not the signing key that {certificate} names, so nobody could tell who signed. Set "
            f"{where} to the key that was made with the certificate's request.",
        )


def membership_findings(site: SiteConfig) -> Iterator[Finding]:
    """Whether the site is on the allow-list, and how long list and root hold."""
    if site.consortium is None or site.tls is None:
        yield Finding(
            "allow-list", "WARN", "The section 'consortium' is missing; momkd-client needs it.",
            "Add it; 'momkd simulate' does without.",
        )  # fmt: skip
        return
    try:
        current = Membership(site.consortium, site.tls, site.site).allow_list
        if site.egress is not None:
            refuse_other_signer(site.egress.signing_key, site.tls.certificate, "egress.signing_key")
    except UserError as mistake:
        yield Finding("allow-list", "FAIL", mistake.sentence, code=mistake.code)
        return
    late = ending(expiries(site.tls, current))
    sentence = f"Version {current.version} names this site with these keys, and holds until {current.expires:%Y-%m-%d}."
    if "allow-list" in late:
        yield Finding("allow-list", "WARN", sentence, "Ask the consortium's keyholder for a newer list.")
    else:
        yield Finding("allow-list", "PASS", sentence)
    if "root" in late:
        yield Finding("root", "WARN", f"{site.tls.ca} ends in {late['root']:.0f} days.", "A new root takes its place.")
