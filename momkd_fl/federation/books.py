"""A site's books behind the gate: signing key, ledger, odometer and publications, opened together or not at all."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from momkd_fl.config import policy as contracts
from momkd_fl.config.site import Egress
from momkd_fl.errors import UserError
from momkd_fl.federation.anchor import Anchor
from momkd_fl.federation.messages import TRAIN
from momkd_fl.federation.publications import Publications
from momkd_fl.federation.vault import CLEAR, Vault
from momkd_fl.federation.witnesses import Witnesses
from momkd_fl.privacy.accountant import Charge
from momkd_fl.privacy.odometer import Budget, Debit, Odometer, Receipt
from momkd_fl.security import ledger as ledgers
from momkd_fl.security.ledger import Entry, Ledger

WITHDRAWAL: Final = "withdrawal"
"""Kind of a ledger's line that stands for no message: a patient was withdrawn."""
NO_RUN: Final = "none"
PEERS_FILE: Final = "peers.json"
"""Beside the ledger: what this site holds of other sites' books."""


@dataclass
class Books:
    """What a site keeps about what left it. Only one process holds them at a time (the ledger's lock).

    Attributes
    ----------
    sent : how many messages left, by (run, kind), over all time
    withdrawn : digests of the patients who were withdrawn, see :func:`withdrawal_digest`
    rounds : newest round that was trained for, by run
    """

    key: Ed25519PrivateKey
    ledger: Ledger
    odometer: Odometer
    publications: Publications
    witnesses: Witnesses
    sent: dict[tuple[str, str], int]
    withdrawn: set[str]
    rounds: dict[str, int]
    _where: Egress
    _seen: set[Anchor]

    @classmethod
    def create(
        cls, where: Egress, key: Ed25519PrivateKey, site: str, budget: contracts.Budget, vault: Vault = CLEAR
    ) -> None:
        """Begin all three, once, when a site is set up (raises UserError ``ledger-exists``, ``odometer-exists``)."""
        Ledger.create(where.ledger, key, site).close()
        Odometer.create(where.odometer, odometer_key(key), _budget(budget))
        Publications.create(where.publications, vault)

    @classmethod
    def open(cls, where: Egress, key: Ed25519PrivateKey, budget: contracts.Budget, vault: Vault = CLEAR) -> Books:
        """Open what :meth:`create` has made.

        Raises
        ------
        UserError
            As :class:`~momkd_fl.security.ledger.Ledger`, :class:`~momkd_fl.privacy.odometer.Odometer` and
            ``publications-unreadable``, ``peers-unreadable``: nothing leaves before all of them can be read.
        """
        odometer = Odometer(where.odometer, odometer_key(key), _budget(budget))
        publications = Publications(where.publications, vault)
        witnesses = Witnesses(where.ledger.with_name(PEERS_FILE))
        ledger = Ledger(where.ledger, key)
        sent: dict[tuple[str, str], int] = {}
        rounds: dict[str, int] = {}
        withdrawn = set()
        for entry in ledgers.verify(where.ledger, key.public_key()).entries:
            sent[entry.run, entry.kind] = sent.get((entry.run, entry.kind), 0) + 1
            if entry.kind == TRAIN.name:
                rounds[entry.run] = max(entry.round, rounds.get(entry.run, 0))
            if entry.kind == WITHDRAWAL:
                withdrawn.add(entry.digest)
        return cls(key, ledger, odometer, publications, witnesses, sent, withdrawn, rounds, where, set())

    @property
    def public_key(self) -> bytes:
        """Raw public key, by which other sites know these books."""
        return self.key.public_key().public_bytes_raw()

    @property
    def anchor(self) -> Anchor:
        """Heads of ledger and odometer now."""
        return Anchor(self.ledger.head, self.odometer.head)

    def must_continue(self, held: Anchor) -> None:
        """Refuse to go on from books that are older than, or other than, what others have seen.

        Raises
        ------
        UserError
            ``odometer-rolled-back``, ``ledger-truncated``, ``ledger-forked``.
        """
        if held in self._seen:
            return
        self.odometer.must_continue([held.odometer])
        ledgers.verify(self._where.ledger, self.key.public_key(), [held.ledger])
        self._seen.add(held)

    def debit(self, attempt: str, digest: str, charges: tuple[Charge, ...]) -> Receipt:
        """Spend what a message costs, all of it or nothing, durably, before it leaves; with () say what is spent."""
        if not charges:
            return self.odometer.receipt
        numbered = enumerate(charges, start=1)
        return self.odometer.debit(*(Debit(f"{attempt}/{number}", digest, charge) for number, charge in numbered))

    def enter(self, run: str, round: int, kind: str, digest: str, size: int, receipt: Receipt) -> None:
        """One signed line, on disk when this returns."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.ledger.append(Entry(now, run, round, kind, digest, size, receipt.epsilon_spent, receipt.epsilon_left))
        self.sent[run, kind] = self.sent.get((run, kind), 0) + 1
        self._seen.add(self.anchor)

    def enter_withdrawn(self, patients: Collection[str]) -> None:
        """A line for each withdrawn patient that has none yet; a patient of the ledger must still be on the list.

        Raises
        ------
        UserError
            ``withdrawals-lost``, and as :meth:`~momkd_fl.security.ledger.Ledger.append`.
        """
        digests = {withdrawal_digest(self.key, patient) for patient in patients}
        if self.withdrawn - digests:
            raise UserError(
                "withdrawals-lost",
                f"The ledger has {len(self.withdrawn)} withdrawn patient(s), and {len(self.withdrawn - digests)} of "
                "them are not on the site's list (withdrawn.jsonl in state_dir), so that nothing leaves. Put the "
                "newest copy of that file back.",
            )
        for digest in sorted(digests - self.withdrawn):
            self.enter(NO_RUN, 0, WITHDRAWAL, digest, 0, self.odometer.receipt)
            self.withdrawn.add(digest)

    def close(self) -> None:
        """Let another process of the site open them."""
        self.ledger.close()


def withdrawal_digest(key: Ed25519PrivateKey, patient: str) -> str:
    """What the ledger says of a withdrawn patient: only who has the site's key can make it, or match it with an id."""
    derived = HKDF(SHA256(), 32, salt=None, info=b"momkd withdrawal 1").derive(key.private_bytes_raw())
    return hmac.new(derived, patient.encode(), "sha256").hexdigest()


def odometer_key(key: Ed25519PrivateKey) -> bytes:
    """The odometer's secret, from the site's signing key: one key to keep, two uses that cannot be mistaken."""
    derived = HKDF(SHA256(), 32, salt=None, info=b"momkd odometer 1").derive(key.private_bytes_raw())
    return bytes(derived)


def _budget(budget: contracts.Budget) -> Budget:
    return Budget(budget.epsilon, budget.delta)
