"""Certificates: what they hold, what a TLS library makes of them, and every mistake told in a sentence."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from momkd_fl.errors import UserError
from momkd_fl.security.keystore import load_private_key
from momkd_fl.security.pki import (
    check_certificate,
    create_root,
    issue_server,
    issue_site,
    private_key_of,
    public_key_of,
)


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def pair(consortium: Path, party: str) -> tuple[Path, Path]:
    return consortium / party / f"{party}.crt", consortium / party / f"{party}.key"


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    """A TLS handshake in memory, each side checking the other; raises what either side raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    ends[1].write(b"hello")
    assert ends[0].read(5) == b"hello"


def context(purpose: int, consortium: Path, party: str, ca: Path | None = None) -> ssl.SSLContext:
    made = ssl.SSLContext(purpose)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_verify_locations(ca or consortium / "root" / "ca.crt")
    made.load_cert_chain(*pair(consortium, party))
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def test_root(consortium: Path) -> None:
    root = read(consortium / "root" / "ca.crt")
    basic = root.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = root.extensions.get_extension_for_class(x509.KeyUsage)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "trial"
    root.verify_directly_issued_by(root)


@pytest.mark.parametrize(
    ("party", "purpose"), [("server", ExtendedKeyUsageOID.SERVER_AUTH), ("north", ExtendedKeyUsageOID.CLIENT_AUTH)]
)
def test_party(consortium: Path, party: str, purpose: x509.ObjectIdentifier) -> None:
    certificate = read(pair(consortium, party)[0])
    extensions = certificate.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == party
    assert isinstance(certificate.signature_hash_algorithm, SHA384)
    assert isinstance(public_key_of(pair(consortium, party)[0]).curve, ec.SECP384R1)
    assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=59)
    check_certificate(pair(consortium, party)[0], consortium / "root" / "ca.crt")


def test_hosts_are_names_or_addresses(consortium: Path) -> None:
    names = read(pair(consortium, "server")[0]).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


def test_private_keys_are_for_their_owner(consortium: Path) -> None:
    keys = sorted(consortium.rglob("*.key"))
    assert [key.name for key in keys] == [
        "north.key",
        "north.sign.key",
        "ca.key",
        "server.key",
        "server.sign.key",
    ]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert {stat.S_IMODE(key.parent.stat().st_mode) for key in keys} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in consortium.rglob("*.crt")} == {0o644}
    assert (
        len({load_private_key(key, None).private_numbers().private_value for key in keys if ".sign." not in key.name})
        == 3
    )
    assert private_key_of(*pair(consortium, "north"), None).public_key() == public_key_of(pair(consortium, "north")[0])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_mutual_tls(consortium: Path, host: str) -> None:
    server = context(ssl.PROTOCOL_TLS_SERVER, consortium, "server")
    handshake(server, context(ssl.PROTOCOL_TLS_CLIENT, consortium, "north"), host)


def test_tls_refuses_other_hosts_roles_and_roots(consortium: Path, tmp_path: Path) -> None:
    server = context(ssl.PROTOCOL_TLS_SERVER, consortium, "server")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, context(ssl.PROTOCOL_TLS_CLIENT, consortium, "north"), "example.org")
    posing = context(ssl.PROTOCOL_TLS_SERVER, consortium, "north")
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(posing, context(ssl.PROTOCOL_TLS_CLIENT, consortium, "north"), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(server, context(ssl.PROTOCOL_TLS_CLIENT, consortium, "server"), "localhost")
    create_root(tmp_path, "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, context(ssl.PROTOCOL_TLS_CLIENT, consortium, "north", tmp_path / "ca.crt"), "localhost")


def test_party_named_as_the_consortium(tmp_path: Path) -> None:
    create_root(tmp_path / "root", "server")
    issue_server(tmp_path / "server", tmp_path / "root", "server", ["localhost"])
    issue_site(tmp_path / "north", tmp_path / "root", "north")
    certificate = read(pair(tmp_path, "server")[0])
    assert certificate.subject != certificate.issuer, "it would look as if it had signed itself"
    server = context(ssl.PROTOCOL_TLS_SERVER, tmp_path, "server")
    handshake(server, context(ssl.PROTOCOL_TLS_CLIENT, tmp_path, "north"), "localhost")


def test_expired_names_file_and_date(consortium: Path) -> None:
    certificate, ca = pair(consortium, "north")[0], consortium / "root" / "ca.crt"
    end = read(certificate).not_valid_after_utc
    check_certificate(certificate, ca, now=end)
    with pytest.raises(UserError) as caught:
        check_certificate(certificate, ca, now=end + timedelta(seconds=1))
    assert caught.value.code == "certificate-expired"
    assert str(certificate) in caught.value.sentence
    assert f"{end:%Y-%m-%d %H:%M}" in caught.value.sentence
    with pytest.raises(UserError, match="certificate-expired") as caught:
        check_certificate(certificate, ca, now=read(ca).not_valid_after_utc + timedelta(days=1))
    assert str(ca) in caught.value.sentence, "an expired root is the root's matter"


def test_not_yet_valid_names_file_and_dates(tmp_path: Path, consortium: Path) -> None:
    ca = consortium / "root" / "ca.crt"
    certificate = tmp_path / "later.crt"
    begin = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    certificate.write_bytes(signed(consortium, ec.generate_private_key(ec.SECP384R1()), begin))
    check_certificate(certificate, ca, now=begin)
    with pytest.raises(UserError) as caught:
        check_certificate(certificate, ca)
    assert caught.value.code == "certificate-not-yet-valid"
    assert str(certificate) in caught.value.sentence
    assert f"{begin:%Y-%m-%d %H:%M}" in caught.value.sentence
    with pytest.raises(UserError, match="certificate-not-yet-valid"):
        check_certificate(pair(consortium, "north")[0], ca, now=datetime(2000, 1, 1, tzinfo=UTC))


def signed(consortium: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, begin: datetime) -> bytes:
    """A certificate by the consortium's root such as our own code would not make."""
    root = read(consortium / "root" / "ca.crt")
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=9))
    )
    return builder.sign(load_private_key(consortium / "root" / "ca.key", None), SHA384()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("kind", ["p256", "rsa"])
def test_wrong_curve(tmp_path: Path, consortium: Path, kind: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "p256" else rsa.generate_private_key(65537, 2048)
    certificate = tmp_path / "odd.crt"
    certificate.write_bytes(signed(consortium, key, datetime.now(UTC)))
    for check in (public_key_of, lambda path: check_certificate(path, consortium / "root" / "ca.crt")):
        with pytest.raises(UserError, match="P-384") as caught:
            check(certificate)
        assert caught.value.code == "certificate-wrong-curve"
        assert str(certificate) in caught.value.sentence


@pytest.mark.parametrize("name", ["trial", "other"])
def test_wrong_root(tmp_path: Path, consortium: Path, name: str) -> None:
    create_root(tmp_path, name)  # the same name does not make it the same root
    with pytest.raises(UserError) as caught:
        check_certificate(pair(consortium, "north")[0], tmp_path / "ca.crt")
    assert caught.value.code == "certificate-wrong-ca"
    assert str(pair(consortium, "north")[0]) in caught.value.sentence
    assert str(tmp_path / "ca.crt") in caught.value.sentence


def test_party_in_the_root_s_place(consortium: Path) -> None:
    with pytest.raises(UserError, match="certificate-not-a-root"):
        check_certificate(pair(consortium, "north")[0], pair(consortium, "server")[0])


def test_changed_certificate_is_not_the_root_s(tmp_path: Path, consortium: Path) -> None:
    der = bytearray(read(pair(consortium, "north")[0]).public_bytes(Encoding.DER))
    der[der.find(b"north")] ^= 1
    changed = tmp_path / "changed.crt"
    changed.write_bytes(x509.load_der_x509_certificate(bytes(der)).public_bytes(Encoding.PEM))
    with pytest.raises(UserError, match="certificate-wrong-ca"):
        check_certificate(changed, consortium / "root" / "ca.crt")


def test_what_is_no_certificate(tmp_path: Path, consortium: Path) -> None:
    der = tmp_path / "binary.crt"
    der.write_bytes(read(pair(consortium, "north")[0]).public_bytes(Encoding.DER))
    broken = tmp_path / "broken.crt"
    broken.write_bytes(pair(consortium, "north")[0].read_bytes()[:200])
    cases = [
        (der, "certificate-not-pem"),
        (broken, "certificate-not-pem"),
        (pair(consortium, "north")[1], "certificate-not-pem"),
        (tmp_path / "absent.crt", "certificate-missing"),
        (tmp_path, "certificate-unreadable"),
    ]
    for path, code in cases:
        for check in (public_key_of, lambda path: check_certificate(pair(consortium, "north")[0], path)):
            with pytest.raises(UserError) as caught:
                check(path)
            assert caught.value.code == code
            assert str(path) in caught.value.sentence


def test_key_of_another_certificate(consortium: Path) -> None:
    certificate, key = pair(consortium, "north")[0], pair(consortium, "server")[1]
    with pytest.raises(UserError) as caught:
        private_key_of(certificate, key, None)
    assert caught.value.code == "key-of-another-certificate"
    assert str(certificate) in caught.value.sentence
    assert str(key) in caught.value.sentence


def test_nothing_is_overwritten(consortium: Path) -> None:
    before = {path: path.read_bytes() for path in consortium.rglob("*") if path.is_file()}
    root = consortium / "root"
    for make in (
        lambda: create_root(root, "trial"),
        lambda: issue_server(consortium / "server", root, "server", ["localhost"]),
        lambda: issue_site(consortium / "north", root, "north"),
        lambda: issue_site(root, root, "ca"),
    ):
        with pytest.raises(UserError, match="key-exists"):
            make()
    assert {path: path.read_bytes() for path in consortium.rglob("*") if path.is_file()} == before


def test_lone_certificate_keeps_the_key_from_being_made(tmp_path: Path, consortium: Path) -> None:
    (tmp_path / "south.crt").write_text("precious")
    with pytest.raises(UserError, match="key-exists"):
        issue_site(tmp_path, consortium / "root", "south")
    assert os.listdir(tmp_path) == ["south.crt"]


@pytest.mark.parametrize("name", ["", "../north", "a/b", ".hidden", "-rf", "a b", "north\n", "x" * 65, "münchen"])
def test_names_that_are_no_file_name(tmp_path: Path, consortium: Path, name: str) -> None:
    with pytest.raises(UserError, match="name-invalid"):
        issue_site(tmp_path / "out", consortium / "root", name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb"])
def test_names_that_are_no_consortium(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="name-invalid"):
        create_root(tmp_path, name)


@pytest.mark.parametrize(
    "host", ["", "https://a.org", "a.org:443", "*.a.org", "a..org", "-a.org", "a_b.org", "münchen.de", "[::1]"]
)
def test_hosts_that_are_none(tmp_path: Path, consortium: Path, host: str) -> None:
    with pytest.raises(UserError, match="host-invalid") as caught:
        issue_server(tmp_path, consortium / "root", "server", ["localhost", host])
    assert repr(host) in caught.value.sentence
    assert os.listdir(tmp_path) == []


def test_server_without_a_host(tmp_path: Path, consortium: Path) -> None:
    with pytest.raises(UserError, match="host-invalid"):
        issue_server(tmp_path, consortium / "root", "server", [])


def test_days(tmp_path: Path, consortium: Path) -> None:
    issue_site(tmp_path, consortium / "root", "brief", days=1)
    left = read(tmp_path / "brief.crt").not_valid_after_utc - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(days=1)
    for days in (0, -1, 3651, 10**9):
        with pytest.raises(UserError, match="certificate-days"):
            issue_site(tmp_path, consortium / "root", "long", days=days)


def test_root_with_another_root_s_key(tmp_path: Path, consortium: Path) -> None:
    create_root(tmp_path / "root", "other")
    shutil.copy(consortium / "root" / "ca.crt", tmp_path / "root" / "ca.crt")
    with pytest.raises(UserError, match="key-of-another-certificate"):
        issue_site(tmp_path / "south", tmp_path / "root", "south")


def test_folder_that_cannot_be_made(tmp_path: Path, consortium: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="key-not-written"):
        issue_site(tmp_path / "file" / "south", consortium / "root", "south")
