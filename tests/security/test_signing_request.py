"""A request binds a name and two keys; any change to it, and any key put in for another, shows."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from momkd_fl.errors import UserError
from momkd_fl.security.documents import same_digest, spoken
from momkd_fl.security.keystore import load_private_key
from momkd_fl.security.party import party_in, party_of
from momkd_fl.security.pki import certify, write_certificate
from momkd_fl.security.signing_request import create_keys, make_request, read_request, tls_key_hex

KEYS = generate_private_key(SECP384R1()), Ed25519PrivateKey.generate()
OTHERS = generate_private_key(SECP384R1()), Ed25519PrivateKey.generate()


def code_of(call: object, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.code


def test_a_request_travels_in_a_file(tmp_path: Path) -> None:
    request = make_request("ash", "site", (), *KEYS)
    path = tmp_path / "ash.request.json"
    path.write_bytes(request.text())
    assert read_request(path) == request
    path.write_bytes(request.text().replace(b'"ash"', b'"oak"'))
    assert code_of(read_request, path) == "request-invalid"
    path.write_bytes(b"{}")
    assert code_of(read_request, path) == "document-invalid"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "oak"},
        {"kind": "server", "hosts": ("a.example",)},
        {"tls_key": tls_key_hex(OTHERS[0].public_key())},
        {"signing_key": OTHERS[1].public_key().public_bytes_raw().hex()},
        {"previous_key": OTHERS[1].public_key().public_bytes_raw().hex()},
        {"tls_key": tls_key_hex(generate_private_key(SECP256R1()).public_key())},
        {"tls_key": "00"},
        {"signature": ""},
        {"tls_signature": "00"},
    ],
)
def test_no_part_can_be_changed(change: dict[str, object]) -> None:
    request = make_request("ash", "site", (), *KEYS)
    request.check()
    assert code_of(request.model_copy(update=change).check) == "request-invalid"


def test_one_party_s_tls_key_cannot_be_paired_with_another_s_signing_key() -> None:
    mine, other = make_request("ash", "site", (), *KEYS), make_request("ash", "site", (), *OTHERS)
    forged = mine.model_copy(update={"signing_key": other.signing_key})
    signed = forged.model_copy(update={"signature": OTHERS[1].sign(forged.body()).hex()})
    assert code_of(signed.check) == "request-invalid", "the TLS key has not signed the other key"


def test_a_renewal_is_signed_with_the_previous_key_too() -> None:
    renewal = make_request("ash", "site", (), *OTHERS, KEYS[1])
    renewal.check()
    stranger = Ed25519PrivateKey.generate()
    forged = renewal.model_copy(update={"previous_signature": stranger.sign(renewal.body()).hex()})
    assert code_of(forged.check) == "request-invalid"


@pytest.mark.parametrize(
    ("name", "kind", "hosts", "code"),
    [
        ("../ash", "site", (), "name-invalid"),
        ("ash", "site", ("a.example",), "host-invalid"),
        ("hub", "server", (), "host-invalid"),
        ("hub", "server", ("https://a",), "host-invalid"),
        ("hub", "server", ("*.example",), "host-invalid"),
    ],
)
def test_names_that_no_certificate_should_carry(name: str, kind: str, hosts: tuple[str, ...], code: str) -> None:
    assert code_of(make_request, name, kind, hosts, *KEYS) == code


def test_the_certificate_names_the_party_and_both_keys(consortium: Path, tmp_path: Path) -> None:
    request = make_request("ash", "site", (), *KEYS)
    certificate = certify(request, consortium / "root", days=5)
    party = party_in(certificate, tmp_path)
    assert (party.name, party.kind, party.signing_key) == ("ash", "site", request.signing_key)
    assert certificate.public_key() == KEYS[0].public_key()
    write_certificate(tmp_path / "ash.crt", certificate)
    assert party_of(tmp_path / "ash.crt") == party
    hub = certify(make_request("hub", "server", ("a.example", "10.0.0.1"), *KEYS), consortium / "root")
    assert party_in(hub, tmp_path).kind == "server"
    assert code_of(party_of, consortium / "root" / "ca.crt") == "certificate-no-party"
    forged = request.model_copy(update={"signing_key": "00" * 32})
    assert code_of(certify, forged, consortium / "root") == "request-invalid"


def test_keys_are_made_at_the_party_and_may_be_encrypted(tmp_path: Path) -> None:
    create_keys(tmp_path, "ash", b"a long passphrase")
    for name in ("ash.key", "ash.sign.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert code_of(load_private_key, tmp_path / "ash.key", None) == "key-passphrase"
    assert code_of(load_private_key, tmp_path / "ash.key", b"another passphrase") == "key-passphrase"
    load_private_key(tmp_path / "ash.key", b"a long passphrase")


def test_a_digest_is_compared_over_enough_digits() -> None:
    digest = make_request("ash", "site", (), *KEYS).request_digest()
    assert same_digest(spoken(digest), digest)
    assert same_digest(digest.upper(), digest)
    assert not same_digest(digest[:31], digest), "too few digits to tell requests apart"
    assert not same_digest("0" * 32, digest)
