"""Changed messages of every kind: refused with a code, or read as exactly what is written; never anything else.

Half of the messages are changed as they travel, half inside and signed anew, so that the parsers behind the signature
are reached too. (``make audit ONLY=fuzz``.)
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.secagg_round import Consortium, rehearse
from momkd_fl.secagg import messages, wire
from momkd_fl.secagg.aggregator import Step
from momkd_fl.secagg.encoding import Encoding
from momkd_fl.secagg.manifest import Manifest, Segment, read_manifest
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.wire import Envelope, Kind

READERS: Mapping[Kind, Callable[[Envelope, Manifest], object]] = {
    Kind.ANNOUNCEMENT: messages.Announcement.read,
    Kind.ROSTER: messages.Blobs.read,
    Kind.SHARES: messages.Shares.read,
    Kind.DELIVERY: messages.Delivery.read,
    Kind.MASKED: messages.Masked.read,
    Kind.SURVIVORS: messages.Survivors.read,
    Kind.CONSENT: messages.Consent.read,
    Kind.CONSENTS: messages.Blobs.read,
    Kind.UNMASKING: messages.Unmasking.read,
}


@dataclass(frozen=True)
class Fuzzed:
    """How many messages were read, how many refused with which code; ``wrong``: neither, by what happened."""

    read: int
    refused: Mapping[str, int]
    wrong: Mapping[str, int]


@dataclass(frozen=True)
class Recorded:
    """One message of each kind, of a round of four sites."""

    consortium: Consortium
    manifest: Manifest
    digest: bytes
    messages: tuple[bytes, ...]

    @staticmethod
    def new() -> Recorded:
        """A round with a gated segment, of which one site drops out before its vector."""
        consortium = Consortium.of(4)
        holders = ("S00", "S01", "S02")
        weights = Segment("weights", 8, Encoding(24, 64.0))
        genomic = Segment("genomic", 2, Encoding(0, 1e6), holders)
        manifest = consortium.manifest((weights, genomic))
        values = {
            site: {"weights": np.full(8, 0.5), "genomic": np.full(2, 3.0 if site in holders else 0.0)}
            for site in consortium.sites
        }
        round_ = replace(rehearse(consortium, manifest, values), keep=True)
        round_.run({"S03": Step.VECTORS})
        by_kind = {wire.open_envelope(message, None, 1 << 20).kind: message for message in round_.messages}
        _, digest = read_manifest(by_kind[Kind.MANIFEST], consortium.coordinator.public_key().public_bytes_raw())
        return Recorded(consortium, manifest, digest, tuple(by_kind[kind] for kind in Kind))

    def key(self, sender: str) -> Ed25519PrivateKey:
        return self.consortium.coordinator if sender == wire.COORDINATOR else self.consortium.sites[sender]

    def read(self, message: bytes, kind: Kind) -> None:
        """Parse as a party would; AssertionError where what was read is not what was written."""
        if kind == Kind.MANIFEST:
            manifest, _ = read_manifest(message, self.key(wire.COORDINATOR).public_key().public_bytes_raw())
            assert manifest.signed(self.key(wire.COORDINATOR)) == message
            return
        envelope = messages.open_message(message, kind, self.manifest, self.digest)
        if envelope.sender != wire.COORDINATOR and envelope.sender not in self.consortium.sites:
            raise SecAggError("sender-unknown")
        envelope.verify(self.key(envelope.sender).public_key().public_bytes_raw())
        found = READERS[kind](envelope, self.manifest)
        assert b"".join(found.body()) == bytes(envelope.body)  # type: ignore[attr-defined]


def fuzz(count: int, seed: int, progress: Callable[[int], object] = lambda done: None) -> Fuzzed:
    """So many changed messages of every kind in turn; the same seed changes the same bytes."""
    recorded, rng = Recorded.new(), random.Random(seed)
    read, refused, wrong = 0, Counter[str](), Counter[str]()
    for number in range(count):
        kind = Kind(number % len(Kind) + 1)
        message = changed(recorded, recorded.messages[kind - 1], kind, rng)
        try:
            recorded.read(message, kind)
            read += 1
        except SecAggError as problem:
            refused[problem.code] += 1
        except Exception as problem:
            wrong[f"{kind.name} {type(problem).__name__}"] += 1
        if (number + 1) % 50_000 == 0:
            progress(number + 1)
    return Fuzzed(read, refused, wrong)


def changed(recorded: Recorded, message: bytes, kind: Kind, rng: random.Random) -> bytes:
    """One message with one to four changes; every second one signed again by its sender."""
    if rng.random() < 0.5:
        return mutated(message, rng)
    envelope = wire.open_envelope(message, kind, 1 << 20)
    body = mutated(bytes(envelope.body), rng)
    return wire.close_envelope(kind, envelope.manifest, envelope.sender, [body], recorded.key(envelope.sender))


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bits turned over, numbers made large or small, bytes cut out, put in, doubled, or cut off."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(found) + 1), rng.choice((1, 2, 4, 8))
        operation = rng.randrange(6)
        if operation == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif operation == 1:
            found[at : at + size] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size
        elif operation == 2:
            del found[at : at + size]
        elif operation == 3:
            found[at:at] = rng.randbytes(size)
        elif operation == 4:
            other = rng.randrange(len(found) + 1)
            found[at:at] = found[other : other + 16]
        elif rng.random() < 0.3:
            del found[at:]
    return bytes(found)
