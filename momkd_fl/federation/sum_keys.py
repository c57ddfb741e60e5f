"""Who signs in a secure sum, and whose signatures count, on either side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Peers:
    """Raw Ed25519 public keys: of the coordinator, and of the sites on the consortium's allow-list by name."""

    coordinator: bytes
    identities: Mapping[str, bytes]


@dataclass(frozen=True)
class SumKeys:
    """What a party signs with, and whom it knows now: the list may change while a run goes on."""

    identity: Ed25519PrivateKey = field(repr=False)
    peers: Callable[[], Peers]
