"""Keys and masks: X25519, HKDF-SHA256, and AES-256 in counter mode as the stream of masks.

Every derived key is used for one purpose, one round and one pair of sites: the manifest's digest is the salt, and
the purpose and the names are the information of HKDF (RFC 5869). So a counter that starts at zero never repeats.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from momkd_fl.secagg.refusal import SecAggError

KEY_BYTES = 32
DIGEST_BYTES = 32
NONCE_BYTES, TAG_BYTES = 12, 16
_CHUNK = 1 << 16  # keystream at a time, in bytes: it stays in the cache
_ZEROS = memoryview(bytes(_CHUNK))


def public_of(private: bytes) -> bytes:
    """The X25519 public key (32 bytes) of a private one (RFC 7748)."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def shared_secret(private: bytes, public: bytes, site: str = "") -> bytes:
    """The X25519 secret (32 bytes) of two sites; ``key-weak`` for a public key of small order."""
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise SecAggError("key-weak", site) from None


def check_public(public: bytes, site: str) -> None:
    """Raise ``key-weak`` for a public key that gives no secret with any private one."""
    shared_secret(bytes(range(KEY_BYTES)), public, site)


def derive(secret: bytes, salt: bytes, *information: str, size: int = KEY_BYTES) -> bytes:
    """A key from a secret by HKDF-SHA256; each piece of information is preceded by its length."""
    return hkdf(secret, salt, b"".join(bytes([len(piece)]) + piece.encode("ascii") for piece in information), size)


def hkdf(secret: bytes, salt: bytes, information: bytes, size: int) -> bytes:
    """HKDF-SHA256 of RFC 5869."""
    return HKDF(SHA256(), size, salt, information).derive(secret)


def seed_commitment(manifest: bytes, site: str, segment: str, seed: bytes) -> bytes:
    """What a site binds itself to for a self mask's seed; hides it, since a seed has 32 bytes of entropy."""
    return _commitment("seed", manifest, site, segment, secret=seed)


def share_commitment(roster: bytes, dealer: str, receiver: str, number: int, share: bytes) -> bytes:
    """What a dealer binds itself to for one share, so that a wrong one is noticed and named."""
    return _commitment("share", roster + number.to_bytes(2, "big"), dealer, receiver, secret=share)


def add_mask(vector: NDArray[np.uint64], key: bytes, sign: Literal[1, -1]) -> None:
    """Add (or subtract) the mask that ``key`` stands for, modulo 2^64, in place.

    The mask's numbers are the little-endian 8-byte words of AES-256-CTR's stream from counter 0.
    """
    stream = Cipher(AES256(key), CTR(bytes(16))).encryptor()
    buffer = bytearray(_CHUNK + 16)  # update_into wants a block more than it writes
    words = np.frombuffer(buffer, "<u8", count=_CHUNK // 8)
    combine = np.add if sign == 1 else np.subtract
    for start in range(0, len(vector), _CHUNK // 8):
        part = vector[start : start + _CHUNK // 8]
        stream.update_into(_ZEROS[: 8 * len(part)], buffer)
        combine(part, words[: len(part)], out=part)


def pair_key(private: bytes, public: bytes, manifest: bytes, site: str, peer: str) -> bytes:
    """The key of the mask between two sites: the same whichever of them computes it."""
    first, second = sorted((site, peer))
    return derive(shared_secret(private, public, peer), manifest, "pair mask", first, second)


def self_key(seed: bytes, manifest: bytes, site: str, segment: str) -> bytes:
    """The key of a site's own mask over one segment."""
    return derive(seed, manifest, "self mask", site, segment)


def seal(
    plain: bytes, private: bytes, public: bytes, context: bytes, sender: str, receiver: str, nonce: bytes
) -> bytes:
    """``nonce`` ‖ AES-256-GCM of ``plain`` for one receiver, bound to the context and both names."""
    key = derive(shared_secret(private, public, receiver), context, "seal", sender, receiver)
    return nonce + AESGCM(key).encrypt(nonce, plain, context + _pair(sender, receiver))


def unseal(sealed: bytes, private: bytes, public: bytes, context: bytes, sender: str, receiver: str) -> bytes:
    """What :func:`seal` closed; ``share-not-opened`` for anything else."""
    key = derive(shared_secret(private, public, sender), context, "seal", sender, receiver)
    nonce, closed = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    try:
        return AESGCM(key).decrypt(nonce, closed, context + _pair(sender, receiver))
    except (InvalidTag, ValueError):
        raise SecAggError("share-not-opened", sender) from None


def _pair(sender: str, receiver: str) -> bytes:
    return f"{sender}\0{receiver}".encode("ascii")


def _commitment(kind: str, context: bytes, *names: str, secret: bytes) -> bytes:
    described = b"".join(bytes([len(name)]) + name.encode("ascii") for name in (kind, *names))
    return hashlib.sha256(b"momkd-fl commitment" + described + context + secret).digest()
