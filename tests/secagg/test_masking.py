"""The primitives against their standards' vectors, and masks that cancel."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

from momkd_fl.secagg import masking, wire
from momkd_fl.secagg.refusal import SecAggError


def test_x25519_of_rfc_7748():
    found = masking.shared_secret(
        bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"),
        bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"),
    )
    assert found.hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"


def test_diffie_hellman_of_rfc_7748():
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert masking.public_of(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert masking.public_of(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert masking.shared_secret(alice, masking.public_of(bob)).hex() == shared
    assert masking.shared_secret(bob, masking.public_of(alice)).hex() == shared


RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
        "655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aee"
        "b00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d"
        "c027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("private", "public", "message", "signature"), RFC_8032)
def test_ed25519_of_rfc_8032(private: str, public: str, message: str, signature: str):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert wire.signed_by(bytes.fromhex(public), bytes.fromhex(signature), bytes.fromhex(message))
    assert not wire.signed_by(bytes.fromhex(public), bytes.fromhex(signature), bytes.fromhex(message) + b"\0")
    assert not wire.signed_by(bytes(31), bytes.fromhex(signature), bytes.fromhex(message))


def test_hkdf_of_rfc_5869():
    found = masking.hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert found.hex() == ("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    assert masking.hkdf(b"\x0b" * 22, b"", b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def test_the_stream_is_aes_256_of_a_counter_from_zero():
    key, length = os.urandom(32), 20_001  # more than two chunks, and not a whole number of them
    vector = np.zeros(length, np.uint64)
    masking.add_mask(vector, key, 1)
    counters = b"".join(number.to_bytes(16, "big") for number in range(length // 2 + 1))
    stream = Cipher(AES256(key), ECB()).encryptor().update(counters)
    assert vector.astype("<u8").tobytes() == stream[: 8 * length]


def test_aes_256_of_nothing_under_the_key_of_zeros():
    vector = np.zeros(2, np.uint64)
    masking.add_mask(vector, bytes(32), 1)
    assert vector.astype("<u8").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@pytest.mark.parametrize("n", range(3, 11))
def test_pair_masks_cancel_and_without_one_site_they_do_not(n: int):
    names = [f"S{number}" for number in range(n)]
    private = {name: os.urandom(32) for name in names}
    public = {name: masking.public_of(key) for name, key in private.items()}
    vectors = {name: np.full(9, place, np.uint64) for place, name in enumerate(names)}
    for site in names:
        for peer in names:
            if peer != site:
                key = masking.pair_key(private[site], public[peer], bytes(32), site, peer)
                masking.add_mask(vectors[site], key, 1 if site < peer else -1)
    total = np.sum(list(vectors.values()), axis=0, dtype=np.uint64)
    assert total.tolist() == [n * (n - 1) // 2] * 9
    assert not np.any(total - vectors["S0"] == n * (n - 1) // 2)


def test_a_key_is_of_one_round_pair_and_purpose():
    a, b = os.urandom(32), os.urandom(32)
    public = masking.public_of(b)
    keys = {
        masking.pair_key(a, public, bytes(32), "A", "B"),
        masking.pair_key(a, public, b"\1" * 32, "A", "B"),
        masking.pair_key(a, public, bytes(32), "A", "C"),
        masking.derive(masking.shared_secret(a, public), bytes(32), "seal", "A", "B"),
        masking.derive(masking.shared_secret(a, public), bytes(32), "pair mask", "AB", ""),
        masking.self_key(a, bytes(32), "A", "x"),
        masking.self_key(a, bytes(32), "A", "y"),
        masking.self_key(a, bytes(32), "B", "x"),
    }
    assert len(keys) == 8
    assert masking.pair_key(b, masking.public_of(a), bytes(32), "B", "A") in keys


SMALL_ORDER = [  # of RFC 7748, section 6.1, and of order 8
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
]


@pytest.mark.parametrize("public", SMALL_ORDER)
def test_a_weak_key_is_refused(public: bytes):
    with pytest.raises(SecAggError) as problem:
        masking.check_public(public, "A")
    assert (problem.value.code, problem.value.site) == ("key-weak", "A")
    masking.check_public(masking.public_of(os.urandom(32)), "A")


@pytest.mark.parametrize(
    "change",
    ["nothing", "bit", "context", "sender", "receiver", "cut off", "nonce alone", "empty"],
)
def test_a_sealed_share_opens_for_its_receiver_and_round_only(change: str):
    a, b = os.urandom(32), os.urandom(32)
    sealed = masking.seal(b"share", a, masking.public_of(b), b"round 1", "A", "B", os.urandom(12))
    given = {"bit": sealed[:-1] + bytes([sealed[-1] ^ 1]), "cut off": sealed[:-1], "nonce alone": sealed[:12]}
    context = b"round 2" if change == "context" else b"round 1"
    sender, receiver = ("C" if change == "sender" else "A"), ("C" if change == "receiver" else "B")
    content = b"" if change == "empty" else given.get(change, sealed)
    if change == "nothing":
        assert masking.unseal(content, b, masking.public_of(a), context, sender, receiver) == b"share"
        return
    with pytest.raises(SecAggError) as problem:
        masking.unseal(content, b, masking.public_of(a), context, sender, receiver)
    assert problem.value.code == "share-not-opened"
