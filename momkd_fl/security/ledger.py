"""What left this site: an append-only file of signed lines, each holding the digest of the one before.

The signature shows who wrote a line, the chain that none is missing between two others, and heads that coordinator and
peers hold that none is missing at the end. A line is canonical JSON: there is one way to write it, and no other is
accepted. It names messages by digest, never a patient.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from momkd_fl.errors import UserError
from momkd_fl.security.keystore import PRIVATE_MODE, write_new
from momkd_fl.security.signing import fingerprint

FIRST: Final = "0" * 64
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KIND: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One message that left, or was stopped.

    Attributes
    ----------
    time : UTC, ISO 8601 to the second
    run, round, kind : of the message
    digest : SHA-256 of the payload, hexadecimal
    bytes : size of the payload
    epsilon_spent, epsilon_left : of the site's budget after it; None where no budget applies
    """

    time: str
    run: str
    round: int
    kind: str
    digest: str
    bytes: int
    epsilon_spent: float | None
    epsilon_left: float | None

    def __post_init__(self) -> None:
        """Refuse whatever has room for a name or a path: ValueError."""
        moment = datetime.fromisoformat(self.time)
        if moment.utcoffset() != UTC.utcoffset(None) or len(self.time) != 25:
            raise ValueError("time is not UTC to the second")
        if not (_NAME.fullmatch(self.run) and _KIND.fullmatch(self.kind) and _DIGEST.fullmatch(self.digest)):
            raise ValueError("run, kind or digest is not of its form")
        if not all(type(number) is int and number >= 0 for number in (self.round, self.bytes)):
            raise ValueError("round and bytes are whole numbers from 0")
        for epsilon in (self.epsilon_spent, self.epsilon_left):
            if epsilon is not None and not (type(epsilon) is float and 0 <= epsilon < float("inf")):
                raise ValueError("epsilon is a finite number from 0, or None")


@dataclass(frozen=True)
class LedgerHead:
    """Number of lines, the first included, and digest of the last: what others hold."""

    lines: int
    digest: str


@dataclass(frozen=True)
class Verified:
    """A ledger that holds together; ``key`` is the one that its first line names and that signed every line."""

    site: str
    key: Ed25519PublicKey
    entries: tuple[Entry, ...]
    heads: tuple[LedgerHead, ...]

    @property
    def head(self) -> LedgerHead:
        """The last one."""
        return self.heads[-1]


class Ledger:
    """A site's ledger, open for writing: by one process, until :meth:`close`.

    Parameters
    ----------
    heads : iterable of LedgerHead
        Held by coordinator and peers; a ledger that they do not fit is not continued.

    Raises
    ------
    UserError
        ``ledger-in-use``, or as :func:`verify`.
    """

    def __init__(self, path: Path, key: Ed25519PrivateKey, heads: Iterable[LedgerHead] = ()) -> None:
        self._path, self._key = path, key
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as problem:
            raise _unreadable(path, problem) from None
        try:
            self._lock()
            self._cut_unfinished_line()
            self.head = verify(path, key.public_key(), heads).head
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path, key: Ed25519PrivateKey, site: str) -> Ledger:
        """Begin a ledger; raises UserError ``ledger-exists`` where there is one."""
        if not _NAME.fullmatch(site):
            raise ValueError(f"{site!r} is not a site's name")
        if os.path.lexists(path):
            raise UserError("ledger-exists", f"{path}: exists already. A ledger is continued, never begun again.")
        path.parent.mkdir(parents=True, exist_ok=True)
        first = {"format": "momkd-ledger-1", "site": site, "key": key.public_key().public_bytes_raw().hex()}
        write_new(path, _line(key, FIRST, 1, first), PRIVATE_MODE)
        return cls(path, key)

    def append(self, entry: Entry) -> LedgerHead:
        """Sign one line and return when it is on the disk; the new head is for coordinator and peers.

        Raises
        ------
        UserError
            ``ledger-not-written``; then nothing may be sent, and the ledger must be opened anew.
        """
        line = _line(self._key, self.head.digest, self.head.lines + 1, asdict(entry))
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fsync(self._descriptor)
        except OSError as problem:
            self.close()
            raise UserError(
                "ledger-not-written",
                f"{self._path}: the disk did not take the line ({problem.strerror}), so nothing was sent. Make room "
                "on the disk.",
            ) from None
        self.head = LedgerHead(self.head.lines + 1, hashlib.sha256(line).hexdigest())
        return self.head

    def close(self) -> None:
        """Let another process write; a closed ledger takes no more lines."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                "ledger-in-use",
                f"{self._path}: another process of this site writes it. Stop that one first, or give each its own.",
            ) from None

    def _cut_unfinished_line(self) -> None:
        """A process that died while it wrote has not sent what the line was about."""
        text = self._path.read_bytes()
        end = text.rfind(b"\n") + 1
        if 0 < end < len(text):
            os.ftruncate(self._descriptor, end)
        os.fsync(self._descriptor)


def verify(path: Path, key: Ed25519PublicKey | None = None, heads: Iterable[LedgerHead] = ()) -> Verified:
    """Read a ledger and check every line.

    Parameters
    ----------
    key : Ed25519PublicKey or None
        The one the consortium has on record. None trusts the key that the file names, which shows damage but not a
        ledger that somebody wrote anew with a key of their own.
    heads : iterable of LedgerHead
        Held by coordinator and peers.

    Raises
    ------
    UserError
        ``ledger-missing``; ``ledger-damaged`` for a line that is not one; ``ledger-key`` for another key than ``key``;
        ``ledger-order`` for a line deleted, inserted or moved; ``ledger-signature`` for an edited line;
        ``ledger-truncated`` for one that heads say is missing; ``ledger-forked`` where heads have seen another line.
    """
    lines = _read(path)
    content = _content(path, 1, lines[0])
    try:
        named = Ed25519PublicKey.from_public_bytes(bytes.fromhex(content["entry"]["key"]))
        site = str(content["entry"]["site"])
    except (KeyError, ValueError, TypeError):
        raise _damaged(path, 1) from None
    if key is not None and key != named:
        raise UserError(
            "ledger-key",
            f"{path}: was written with the key {fingerprint(named)[:16]}…, not with {fingerprint(key)[:16]}…, which is "
            "on record for this site. The site has another key now, or somebody wrote the ledger anew.",
        )
    previous, entries, seen = FIRST, [], []
    for number, line in enumerate(lines, start=1):
        content = _content(path, number, line)
        _check_line(path, number, line, content, previous, named)
        if number > 1:
            entries.append(_entry(path, number, content["entry"]))
        previous = hashlib.sha256(line).hexdigest()
        seen.append(LedgerHead(number, previous))
    _check_heads(path, seen, heads)
    return Verified(site, named, tuple(entries), tuple(seen))


def _check_line(
    path: Path, number: int, line: bytes, content: dict[str, Any], previous: str, key: Ed25519PublicKey
) -> None:
    if content["previous"] != previous or content["line"] != number:
        raise UserError(
            "ledger-order",
            f"{path}: line {number} does not follow the line before it. A line was taken out, put in, moved, or the "
            "line before was changed.",
        )
    signature = content.pop("signature")
    try:
        key.verify(bytes.fromhex(signature), _canonical(content))
    except (InvalidSignature, ValueError, TypeError):
        raise UserError(
            "ledger-signature",
            f"{path}: line {number} was changed after it was signed, or signed with another key.",
        ) from None
    if line != _canonical(content | {"signature": signature}) + b"\n":
        raise _damaged(path, number)


def _check_heads(path: Path, seen: list[LedgerHead], heads: Iterable[LedgerHead]) -> None:
    for head in heads:
        if head.lines > len(seen):
            raise UserError(
                "ledger-truncated",
                f"{path}: has {len(seen)} lines, but others have seen line {head.lines}. Lines were cut off, or an "
                "old copy was put back.",
            )
        if head.lines < 1 or seen[head.lines - 1] != head:
            raise UserError(
                "ledger-forked",
                f"{path}: others have seen another line {head.lines}. The ledger was written anew from there on.",
            )


def _read(path: Path) -> list[bytes]:
    try:
        text = path.read_bytes()
    except OSError as problem:
        raise _unreadable(path, problem) from None
    lines = text.split(b"\n")
    if lines[-1] or len(lines) < 2:
        raise _damaged(path, len(lines))
    return [line + b"\n" for line in lines[:-1]]


def _content(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
        if content.keys() != {"line", "previous", "entry", "signature"}:
            raise ValueError
    except (ValueError, AttributeError):
        raise _damaged(path, number) from None
    return dict(content)


def _entry(path: Path, number: int, content: Any) -> Entry:
    try:
        return Entry(**{field.name: content.pop(field.name) for field in fields(Entry)}, **content)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _damaged(path, number) from None


def _unreadable(path: Path, problem: OSError) -> UserError:
    return UserError("ledger-missing", f"{path}: cannot be read ({problem.strerror}). Name the site's ledger.")


def _damaged(path: Path, number: int) -> UserError:
    return UserError("ledger-damaged", f"{path}: line {number} is not a whole line of a ledger.")


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _line(key: Ed25519PrivateKey, previous: str, number: int, entry: dict[str, Any]) -> bytes:
    content = {"line": number, "previous": previous, "entry": entry}
    return _canonical(content | {"signature": key.sign(_canonical(content)).hex()}) + b"\n"
