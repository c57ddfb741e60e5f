"""What a site has spent of its privacy budget, over all runs, on disk before anything is sent.

One line a debit, appended and never rewritten; each is sealed (AES-256-GCM, the digest of the line before it as
associated data). A debit counts once it can be read, and is acknowledged only when file and folder are synced: a
process killed at any moment may have spent what it did not send, never sent what it did not spend. Whoever puts an
older file back is found out by the heads that others hold (:meth:`Odometer.must_continue`).
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from momkd_fl.errors import UserError
from momkd_fl.privacy.accountant import Charge, GaussianReleases, PoissonSteps, joint_epsilon
from momkd_fl.privacy.disk import Disk, telling_of_disk

KEY_BYTES_MIN: Final = 32
_FIRST: Final = "0" * 64
_FORMAT: Final = "momkd-odometer-2"
_IN_CLEAR: Final = "momkd-odometer-1"
"""Lines of this format are readable JSON with a MAC. They are still taken, since what they count must not be forgotten,
and cannot be sealed afterwards, since others hold their digests; what is appended is sealed."""
_NONCE_BYTES: Final = 12


@dataclass(frozen=True)
class Budget:
    """The most a site lets any patient lose, over all runs together: its own, never the coordinator's."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Head:
    """Number of lines and digest of the last one: what coordinator and peers keep. It tells nothing else."""

    lines: int
    digest: str


@dataclass(frozen=True)
class Debit:
    """One message that is about to leave.

    Attributes
    ----------
    attempt : names this message for ever, e.g. ``run/round/kind/1``; a retry has the same, a repeated round another
    payload_sha256 : of what is sent; a retry sends the identical bytes
    charge : what it costs
    """

    attempt: str
    payload_sha256: str
    charge: Charge


@dataclass(frozen=True)
class Receipt:
    """What the gate may show: epsilon spent so far and left, and the chain's head."""

    epsilon_spent: float
    epsilon_left: float
    head: Head


class Odometer:
    """One site's budget on disk. Several processes of the site may hold it; each debit locks the file.

    Parameters
    ----------
    path : Path
        Made by :meth:`create`; there is no default, since a missing odometer must not read as "nothing spent".
    key : bytes
        At least 32 secret bytes, from the site's key store.
    budget : Budget
        From the site's contract.

    Raises
    ------
    UserError
        ``odometer-missing``, ``odometer-unreadable``, ``odometer-damaged``; :meth:`debit` also
        ``odometer-rolled-back``, ``odometer-attempt-reused``, ``odometer-not-written`` and ``budget-exhausted``.
    """

    def __init__(self, path: Path, key: bytes, budget: Budget, disk: Disk | None = None) -> None:
        if len(key) < KEY_BYTES_MIN:
            raise ValueError(f"the odometer's key has {len(key)} bytes; at least {KEY_BYTES_MIN} are needed")
        self._path, self._key, self.budget, self._disk = path, key, budget, disk or Disk()
        self._offset = 0
        self._digests: list[str] = []
        self._debits: dict[str, Debit] = {}
        with self._locked() as descriptor:
            self._disk.sync_folder(path.parent)
            self._catch_up(descriptor)

    @classmethod
    def create(cls, path: Path, key: bytes, budget: Budget, disk: Disk | None = None) -> Odometer:
        """Begin an odometer that has spent nothing; raises UserError ``odometer-exists`` if there is one already.

        To be called when a site is set up, never because the file is missing.
        """
        disk = disk or Disk()
        if os.path.lexists(path):
            raise UserError(
                "odometer-exists",
                f"{path}: exists already, and what it has counted must not be forgotten. Use it, or choose another "
                "folder for another site.",
            )
        first = {"format": _FORMAT, "odometer": os.urandom(16).hex()}
        draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
        with telling_of_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                disk.append(descriptor, _line(key, _FIRST, first))
                disk.sync(descriptor)
            finally:
                os.close(descriptor)
            disk.name(draft, path)
            disk.sync_folder(path.parent)
            disk.sync_folder(path.parent.parent)
        return cls(path, key, budget, disk)

    @property
    def head(self) -> Head:
        """The chain's head, to be anchored with coordinator and peers."""
        return Head(len(self._digests), self._digests[-1])

    @property
    def receipt(self) -> Receipt:
        """What is spent and left now."""
        spent = joint_epsilon((each.charge for each in self._debits.values()), self.budget.delta)
        return Receipt(spent, max(0.0, self.budget.epsilon - spent), self.head)

    def debit(self, *debits: Debit) -> Receipt:
        """Spend, durably; when this returns the message may leave. The same attempt again spends nothing.

        Several debits are one message's: they fit the budget together, or none is spent.

        Raises
        ------
        UserError
            ``budget-exhausted`` where they would pass the budget: then nothing is spent and nothing may leave.
        """
        with self._locked() as descriptor:
            self._catch_up(descriptor)
            new = [debit for debit in debits if self._is_new(debit)]
            if new:
                self._refuse_overdraft(new)
                lines, previous = [], self._digests[-1]
                for debit in new:
                    lines.append(_line(self._key, previous, _record(debit)))
                    previous = hashlib.sha256(lines[-1]).hexdigest()
                self._disk.append(descriptor, b"".join(lines))
                self._disk.sync(descriptor)
                for line in lines:
                    self._take(line)
            return self.receipt

    def _is_new(self, debit: Debit) -> bool:
        known = self._debits.get(debit.attempt)
        if known is not None and known != debit:
            raise UserError(
                "odometer-attempt-reused",
                f"{self._path}: attempt '{debit.attempt}' was charged before for another payload or another "
                "charge. A changed message is a new attempt, with new noise and a new debit.",
            )
        return known is None

    def must_continue(self, heads: Iterable[Head]) -> None:
        """Refuse to go on from a file that is older than, or another than, what others have seen of it.

        Raises
        ------
        UserError
            ``odometer-rolled-back``.
        """
        for head in heads:
            if head.lines > len(self._digests) or head.lines < 1 or self._digests[head.lines - 1] != head.digest:
                raise UserError(
                    "odometer-rolled-back",
                    f"{self._path}: holds {len(self._digests)} lines, but others have seen line {head.lines} of this "
                    "site's odometer, and it is not here. The file is an old copy or another one, and would spend "
                    "again what is spent. Put the newest file back; without it this site can take part no more.",
                )

    @contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UserError(
                "odometer-missing",
                f"{self._path}: there is no odometer, so what this site has spent is not known. Put it back from the "
                "site's newest copy; only a site that has never released anything may begin a new one.",
            ) from None
        except OSError as problem:
            raise UserError(
                "odometer-unreadable",
                f"{self._path}: cannot be opened ({problem.strerror}). It must be a file of the user who runs it.",
            ) from None
        try:
            with telling_of_disk(self._path):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield descriptor
        finally:
            os.close(descriptor)

    def _catch_up(self, descriptor: int) -> None:
        """Read what is new, and sync it: a line may have been written by a process that died before its sync.

        A last line without its end was never acknowledged, so that nothing was sent for it; it is cut off.
        """
        size = os.fstat(descriptor).st_size
        if size < self._offset:
            raise UserError(
                "odometer-rolled-back",
                f"{self._path}: has become shorter while in use. Put the newest file back; nothing is sent before.",
            )
        new = os.pread(descriptor, size - self._offset, self._offset)
        whole = new[: new.rfind(b"\n") + 1]
        if len(whole) < len(new):
            self._disk.truncate(descriptor, self._offset + len(whole))
        if new or not self._offset:
            self._disk.sync(descriptor)
        for line in whole.splitlines(keepends=True):
            self._take(line)
        if not self._digests:
            raise self._damaged(1)

    def _take(self, line: bytes) -> None:
        number = len(self._digests) + 1
        previous = self._digests[-1] if self._digests else _FIRST
        try:
            content = _opened(self._key, previous, line)
            debit = _debit(content) if self._digests else None
            if not self._digests and content["format"] not in (_FORMAT, _IN_CLEAR):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError, InvalidTag):
            raise self._damaged(number) from None
        self._offset += len(line)
        self._digests.append(hashlib.sha256(line).hexdigest())
        if debit is not None:
            self._debits[debit.attempt] = debit

    def _damaged(self, number: int) -> UserError:
        return UserError(
            "odometer-damaged",
            f"{self._path}: line {number} is not what this site wrote with this key, or not in its place. Nothing is "
            "sent. Check that the key is the site's, or put the newest copy of the file back.",
        )

    def _refuse_overdraft(self, debits: list[Debit]) -> None:
        charges = [each.charge for each in (*self._debits.values(), *debits)]
        after = joint_epsilon(charges, self.budget.delta)
        if after > self.budget.epsilon:
            raise UserError(
                "budget-exhausted",
                f"{self._path}: this release would bring the site to ε = {after:.3f} at δ = {self.budget.delta:g}; its "
                f"budget is {self.budget.epsilon:g}, of which {self.receipt.epsilon_spent:.3f} are spent. Nothing was "
                "sent, and the site leaves the run. Only the site can raise its budget, in its contract.",
            )


def _line(key: bytes, previous: str, content: dict[str, Any]) -> bytes:
    plain = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    nonce = os.urandom(_NONCE_BYTES)
    return b64encode(nonce + _cipher(key).encrypt(nonce, plain, previous.encode())) + b"\n"


def _opened(key: bytes, previous: str, line: bytes) -> dict[str, Any]:
    """The content of one line; anything but what this key wrote in this place raises ValueError or InvalidTag."""
    if line.startswith(b"{"):
        content = json.loads(line)["content"]
        if line != _clear_line(key, previous, content):
            raise ValueError
    else:
        raw = b64decode(line[:-1], validate=True)
        if line != b64encode(raw) + b"\n":
            raise ValueError
        content = json.loads(_cipher(key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], previous.encode()))
    return dict(content)


def _cipher(key: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, salt=None, info=_FORMAT.encode()).derive(key))


def _clear_line(key: bytes, previous: str, content: dict[str, Any]) -> bytes:
    """A line of the format in the clear."""
    body = json.dumps({"content": content, "previous": previous}, sort_keys=True, separators=(",", ":"))
    mac = hmac.new(key, body.encode(), hashlib.sha256).hexdigest()
    return (body[:-1] + f',"seal":"{mac}"}}\n').encode()


def _record(debit: Debit) -> dict[str, Any]:
    kind = "gaussian" if isinstance(debit.charge, GaussianReleases) else "poisson"
    return {"attempt": debit.attempt, "payload": debit.payload_sha256, "kind": kind, "charge": asdict(debit.charge)}


def _debit(content: dict[str, Any]) -> Debit:
    kinds: dict[str, type[GaussianReleases] | type[PoissonSteps]] = {
        "gaussian": GaussianReleases,
        "poisson": PoissonSteps,
    }
    return Debit(content["attempt"], content["payload"], kinds[content["kind"]](**content["charge"]))
