"""Who is in the consortium: a list of names and keys, signed as the charter says, whose version only rises.

It is what a revocation list is not: a party that is not on it is out, and so is everybody once it has expired, so that
whoever withholds a newer list gains no more than the days that are left.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AwareDatetime, Field

from momkd_fl.errors import UserError
from momkd_fl.security.charter import Charter
from momkd_fl.security.documents import Digest, Document, Ed25519Key, Name, Signature, parse_document, read_document
from momkd_fl.security.party import Party
from momkd_fl.security.signing_request import Kind

LIST_DAYS: Final = 90
"""For how long a list is good: a withheld revocation works no longer than that."""

ALLOW_LIST_FILE: Final = "allow-list.json"
_FORMAT: Final = "momkd-allow-list-1"
_WHAT: Final = "an allow-list"


class Listed(Document):
    """A party that is in (fields as of :class:`~momkd_fl.security.party.Party`)."""

    name: Name
    kind: Kind
    tls_key_sha256: Digest
    signing_key: Ed25519Key


class Revoked(Document):
    """Keys that are out for good, since ``version``; the name may come back with others."""

    name: Name
    tls_key_sha256: Digest
    signing_key: Ed25519Key
    version: Annotated[int, Field(ge=1)]


class AllowList(Document):
    """One version of the list.

    Attributes
    ----------
    charter : digest of the charter that says whose signatures it needs
    version : 1 for the first
    signatures : by keyholder, over :meth:`body`
    """

    format: Literal["momkd-allow-list-1"] = _FORMAT
    charter: Digest
    version: Annotated[int, Field(ge=1)]
    issued: AwareDatetime
    expires: AwareDatetime
    parties: tuple[Listed, ...]
    revoked: tuple[Revoked, ...] = ()
    signatures: dict[Name, Signature] = Field(default_factory=dict)

    def body(self) -> bytes:
        """What the keyholders sign."""
        return b"momkd-allow-list-1\n" + self.canonical("signatures")

    def body_digest(self) -> str:
        """What tells two lists of one version apart, and two people compare; independent of the signatures."""
        return self.digest("signatures")

    def signed(self, keyholder: str, key: Ed25519PrivateKey) -> AllowList:
        """The same with one more signature."""
        signatures = {**self.signatures, keyholder: key.sign(self.body()).hex()}
        return self.model_copy(update={"signatures": signatures})

    def party(self, name: str) -> Listed | None:
        """The party of that name, None where it is not in."""
        return next((one for one in self.parties if one.name == name), None)

    def identities(self) -> dict[str, bytes]:
        """Raw Ed25519 public keys of the sites by name, as secure aggregation's policy takes them."""
        return {one.name: bytes.fromhex(one.signing_key) for one in self.parties if one.kind == "site"}

    def admits(self, name: str, kind: Kind, tls_key_sha256: str) -> bool:
        """Whether that party is in with that TLS key."""
        found = self.party(name)
        return found is not None and (found.kind, found.tls_key_sha256) == (kind, tls_key_sha256)

    def refuse_outsider(self, party: Party, kind: Kind, where: str) -> None:
        """Raise UserError ``allowlist-not-listed`` unless the party is in as that kind with exactly these keys."""
        found = self.party(party.name)
        if found is None:
            out = any(one.name == party.name for one in self.revoked)
            why = "was revoked" if out else "is not on it"
        elif not found.kind == party.kind == kind or (found.tls_key_sha256, found.signing_key) != (
            party.tls_key_sha256,
            party.signing_key,
        ):
            why = "is on it with other keys, or as another kind of party"
        else:
            return
        raise UserError(
            "allowlist-not-listed",
            f"{where}: '{party.name}' {why} (allow-list version {self.version}). Ask the consortium's keyholder for "
            "the newest list, or to be put on it.",
        )

    def check(self, charter: Charter, where: str, now: datetime | None = None) -> None:
        """Refuse a list that does not hold now.

        Raises
        ------
        UserError
            ``allowlist-other-consortium``, ``allowlist-unsigned``, ``allowlist-inconsistent`` or
            ``allowlist-expired``.
        """
        self._check_signed(charter, where)
        now = now or datetime.now(UTC)
        if now >= self.expires:
            raise UserError(
                "allowlist-expired",
                f"{where}: the allow-list (version {self.version}) ended at {self.expires:%Y-%m-%d %H:%M} UTC, so "
                "nobody is let in. Ask the consortium's keyholder for a new one.",
            )

    def check_charter(self, charter: Charter, where: str) -> None:
        """Raise UserError ``allowlist-other-consortium`` unless it was made for that charter."""
        if self.charter != charter.digest():
            raise UserError(
                "allowlist-other-consortium",
                f"{where}: was made for another charter than this party holds. Use the files that were handed out "
                "together.",
            )

    def _check_signed(self, charter: Charter, where: str) -> None:
        self.check_charter(charter, where)
        signers = charter.signed_by(self.body(), self.signatures)
        keys = {charter.keyholders[name] for name in signers}
        if len(keys) < charter.threshold:
            raise UserError(
                "allowlist-unsigned",
                f"{where}: {len(keys)} of the keyholders' signatures on it hold, {charter.threshold} are needed. Have "
                "it signed with 'momkd provision countersign', or ask for it again.",
            )
        tls, signing = {p.tls_key_sha256 for p in self.parties}, {p.signing_key for p in self.parties}
        out = {p.tls_key_sha256 for p in self.revoked} | {p.signing_key for p in self.revoked}
        names = {p.name for p in self.parties}
        if (tls | signing) & out or not len(names) == len(tls) == len(signing) == len(self.parties):
            raise UserError(
                "allowlist-inconsistent",
                f"{where}: a name or a key stands on it twice, or a revoked key is let in. Have a new one made.",
            )


def revise(
    charter: Charter,
    previous: AllowList | None,
    *,
    allow: Iterable[Party] = (),
    revoke: Iterable[str] = (),
    days: int = LIST_DAYS,
    now: datetime | None = None,
) -> AllowList:
    """The next version, without signatures; a party that is allowed again takes the place of its older keys.

    Raises
    ------
    UserError
        ``allowlist-unsigned`` and others of :meth:`AllowList.check` but its expiry, for ``previous``;
        ``allowlist-not-listed`` to revoke a stranger; ``allowlist-revoked`` to allow keys that were revoked;
        ``allowlist-days``.
    """
    if not 1 <= days <= 366:
        raise UserError("allowlist-days", f"An allow-list may be good for 1 to 366 days, not {days}.")
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    if previous is not None:
        previous._check_signed(charter, "The previous allow-list")
    version = 1 if previous is None else previous.version + 1
    parties = {} if previous is None else {one.name: one for one in previous.parties}
    revoked = [] if previous is None else list(previous.revoked)
    for name in revoke:
        if (leaving := parties.pop(name, None)) is None:
            raise UserError("allowlist-not-listed", f"'{name}' is not on the allow-list, so it cannot be revoked.")
        revoked.append(Revoked(**leaving.model_dump(exclude={"kind"}), version=version))
    out = {one.tls_key_sha256 for one in revoked} | {one.signing_key for one in revoked}
    for party in allow:
        if out & {party.tls_key_sha256, party.signing_key}:
            raise UserError(
                "allowlist-revoked",
                f"'{party.name}': a key of this certificate was revoked, and stays out. Have the party make new keys "
                "with 'momkd provision request'.",
            )
        parties[party.name] = Listed(
            name=party.name, kind=party.kind, tls_key_sha256=party.tls_key_sha256, signing_key=party.signing_key
        )
    return AllowList(
        charter=charter.digest(),
        version=version,
        issued=now,
        expires=now + timedelta(days=days),
        parties=tuple(parties[name] for name in sorted(parties)),
        revoked=tuple(revoked),
    )


def read_allow_list(path: Path) -> AllowList:
    """A list in a file, unchecked (raises as :func:`~momkd_fl.security.documents.read_document`)."""
    return read_document(path, AllowList, _WHAT)


def parse_allow_list(content: bytes, where: str) -> AllowList:
    """A list that somebody sent, unchecked (raises UserError ``document-invalid``)."""
    return parse_document(content, AllowList, where, _WHAT)
