"""What a site knows after each step; secrets leave the state as soon as no later step needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from momkd_fl.secagg import messages, wire
from momkd_fl.secagg.manifest import Manifest, Policy
from momkd_fl.secagg.messages import Announcement
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.wire import Kind


@dataclass(frozen=True)
class Round:
    """What a site knows from joining to the end."""

    manifest: Manifest
    digest: bytes
    policy: Policy
    identity: Ed25519PrivateKey = field(repr=False)

    @property
    def site(self) -> str:
        return self.policy.site

    def write(self, kind: Kind, body: list[wire.Buffer]) -> bytes:
        """A signed message of this site."""
        return wire.close_envelope(kind, self.digest, self.site, body, self.identity)

    def read(self, message: bytes, kind: Kind) -> wire.Envelope:
        """The coordinator's message, verified."""
        envelope = messages.open_message(message, kind, self.manifest, self.digest)
        if envelope.sender != wire.COORDINATOR:
            raise SecAggError("sender-unknown", envelope.sender)
        envelope.verify(self.policy.coordinator)
        return envelope

    def read_peer(self, message: bytes, kind: Kind) -> wire.Envelope:
        """A site's message that the coordinator passed on, verified against the allow-list."""
        envelope = messages.open_message(message, kind, self.manifest, self.digest)
        if envelope.sender not in self.manifest.participants:
            raise SecAggError("sender-unknown", envelope.sender)
        envelope.verify(self.policy.identities[envelope.sender])
        return envelope


@dataclass(frozen=True)
class Joined:
    """Keys are announced."""

    round: Round
    mask_private: bytes = field(repr=False)
    seal_private: bytes = field(repr=False)
    seeds: tuple[bytes, ...] = field(repr=False)
    announcement: bytes


@dataclass(frozen=True)
class Dealt:
    """Shares are dealt; ``shares`` are this site's of its own secrets."""

    round: Round
    mask_private: bytes = field(repr=False)
    seal_private: bytes = field(repr=False)
    seeds: tuple[bytes, ...] = field(repr=False)
    roster: bytes
    keys: Mapping[str, Announcement]
    neighbours: tuple[str, ...]
    shares: bytes = field(repr=False)


@dataclass(frozen=True)
class Masked:
    """The masked vector is sent; of the secrets, only shares of the dealers' are left, by dealer."""

    round: Round
    dealers: tuple[str, ...]
    shares: Mapping[str, bytes] = field(repr=False)
    dealers_digest: bytes


@dataclass(frozen=True)
class Consented:
    """One set of survivors is signed."""

    round: Round
    dealers: tuple[str, ...]
    shares: Mapping[str, bytes] = field(repr=False)
    survivors: tuple[str, ...]
    statement: bytes


@dataclass(frozen=True)
class Finished:
    """Shares are released; nothing secret is left, and nothing more is said in this round."""

    round: Round


State = Joined | Dealt | Masked | Consented | Finished
