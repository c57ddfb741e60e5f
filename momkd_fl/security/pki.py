"""The consortium's certificates: one root, one certificate and one EC P-384 key per party.

The same key serves TLS and Flower's node authentication. The root signs parties only (path length 0); a server's
certificate is good for serving, a site's for calling, and neither for the other.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from momkd_fl.errors import UserError
from momkd_fl.security.keystore import load_private_key, refuse_existing, write_new, write_private_key

ROOT_DAYS = 3650
PARTY_DAYS = 825
CLOCK_SKEW = timedelta(hours=1)
"""A new certificate is valid this much before it was made: hospitals' clocks differ."""

_PARTY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


def create_root(folder: Path, name: str) -> None:
    """Make the consortium's root: ``ca.crt`` and ``ca.key`` (mode 0600) in ``folder``.

    Raises
    ------
    UserError
        ``key-exists``, ``key-not-written`` or ``name-invalid``.
    """
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise UserError("name-invalid", f"{name!r}: the name of a consortium has 1 to 64 printable characters.")
    # the organisational unit keeps the root's subject apart from that of a party with the consortium's name
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "root")]
    )
    key = generate_private_key(SECP384R1())
    builder = (
        _begin(subject, subject, key, ROOT_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    _write_pair(folder, "ca", builder.sign(key, SHA384()), key)


def issue_server(folder: Path, ca_folder: Path, name: str, hosts: list[str], *, days: int = PARTY_DAYS) -> None:
    """Make the server's ``<name>.crt`` and ``<name>.key`` (mode 0600) in ``folder``, signed by the root.

    Parameters
    ----------
    folder, ca_folder : Path
        Where to write; where ``ca.crt`` and ``ca.key`` are.
    name : str
        Common name and file name.
    hosts : list of str
        DNS names and IP addresses that sites reach the server at; they check them.
    days : int
        Validity.

    Raises
    ------
    UserError
        ``host-invalid``, or as :func:`issue_site`.
    """
    if not hosts:
        raise UserError(
            "host-invalid", f"{name}: a server's certificate needs at least one host name or IP address of the server."
        )
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    _issue(folder, ca_folder, name, days, ExtendedKeyUsageOID.SERVER_AUTH, names)


def issue_site(folder: Path, ca_folder: Path, name: str, *, days: int = PARTY_DAYS) -> None:
    """Make a site's ``<name>.crt`` and ``<name>.key`` (mode 0600) in ``folder``, signed by the root.

    Raises
    ------
    UserError
        ``name-invalid``, ``key-exists``, ``key-not-written``, ``certificate-days``; what is wrong with the root's
        certificate (as :func:`check_certificate`) or key (as :func:`private_key_of`).
    """
    _issue(folder, ca_folder, name, days, ExtendedKeyUsageOID.CLIENT_AUTH, None)


def public_key_of(certificate: Path) -> EllipticCurvePublicKey:
    """The public key in a PEM certificate.

    Raises
    ------
    UserError
        ``certificate-missing``, ``certificate-unreadable``, ``certificate-not-pem`` or ``certificate-wrong-curve``.
    """
    return _curve_key(_load(certificate), certificate)


def certificate_sha256(certificate: Path) -> str:
    """SHA-256 of the certificate's DER form, 64 hexadecimal digits: what a site's contract names.

    Raises
    ------
    UserError
        As :func:`public_key_of`.
    """
    return _load(certificate).fingerprint(SHA256()).hex()


def check_certificate(certificate: Path, ca: Path, now: datetime | None = None) -> None:
    """Refuse a certificate that the other side would refuse, in words.

    Parameters
    ----------
    certificate, ca : Path
        The party's certificate and the consortium root's (PEM).
    now : datetime with a time zone, optional
        Default: the clock.

    Raises
    ------
    UserError
        ``certificate-expired``, ``certificate-not-yet-valid`` (for either file), ``certificate-wrong-ca``,
        ``certificate-not-a-root``, or as :func:`public_key_of`.
    """
    root = _load_root(ca, now)
    party = _load(certificate)
    _curve_key(party, certificate)
    try:
        party.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise UserError(
            "certificate-wrong-ca",
            f"{certificate}: was not signed by the root in {ca}. Use the root certificate that the consortium handed "
            "out, or have this party's certificate issued by it.",
        ) from None
    _check_dates(party, certificate, now)


def days_left(certificate: Path) -> float:
    """Days until a certificate ends; negative once it has (raises as :func:`public_key_of`)."""
    return (_load(certificate).not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86400.0


def private_key_of(certificate: Path, private_key: Path, passphrase: bytes | None) -> EllipticCurvePrivateKey:
    """The private key that belongs to a certificate.

    Raises
    ------
    UserError
        ``key-of-another-certificate``, or as :func:`public_key_of` and
        :func:`~momkd_fl.security.keystore.load_private_key`.
    """
    public = public_key_of(certificate)
    key = load_private_key(private_key, passphrase)
    if key.public_key() != public:
        raise UserError(
            "key-of-another-certificate",
            f"{private_key}: does not belong to the certificate {certificate}. Set tls.private_key and "
            "tls.certificate to files that were made together.",
        )
    return key


def _issue(
    folder: Path,
    ca_folder: Path,
    name: str,
    days: int,
    purpose: x509.ObjectIdentifier,
    hosts: x509.SubjectAlternativeName | None,
) -> None:
    if not _PARTY_NAME.fullmatch(name):
        raise UserError(
            "name-invalid",
            f"{name!r}: a party's name has 1 to 64 letters, digits, '_', '.' or '-' and begins with a letter or digit.",
        )
    root_file = ca_folder / "ca.crt"
    root = _load_root(root_file, None)
    root_key = private_key_of(root_file, ca_folder / "ca.key", None)
    left = (root.not_valid_after_utc - datetime.now(UTC)).days
    if not 1 <= days <= left:
        raise UserError(
            "certificate-days",
            f"{name}: a certificate may be valid for 1 day to the {left} days that the root in {root_file} has left, "
            f"not {days}.",
        )
    key = generate_private_key(SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _begin(subject, root.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
    )
    if hosts is not None:
        builder = builder.add_extension(hosts, critical=False)
    _write_pair(folder, name, builder.sign(root_key, SHA384()), key)


def _begin(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in host.split(".")):
        raise UserError(
            "host-invalid",
            f"{host!r}: is neither a DNS name nor an IP address. Write it without https://, port or wildcard.",
        )
    return x509.DNSName(host)


def _write_pair(folder: Path, name: str, certificate: x509.Certificate, key: EllipticCurvePrivateKey) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(
            "key-not-written", f"{folder}: the folder cannot be made ({problem.strerror}). Choose another."
        ) from None
    refuse_existing(folder / f"{name}.crt")
    write_private_key(folder / f"{name}.key", key)
    write_new(folder / f"{name}.crt", certificate.public_bytes(Encoding.PEM), 0o644)


def _load(path: Path) -> x509.Certificate:
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            "certificate-missing", f"{path}: there is no such certificate file. Check the path in the configuration."
        ) from None
    except OSError as problem:
        raise UserError(
            "certificate-unreadable", f"{path}: the certificate cannot be read ({problem.strerror}). Mend its rights."
        ) from None
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise UserError(
            "certificate-not-pem",
            f"{path}: is not a certificate in PEM form. It must hold '-----BEGIN CERTIFICATE-----'; ask for it again.",
        ) from None


def _load_root(path: Path, now: datetime | None) -> x509.Certificate:
    root = _load(path)
    _curve_key(root, path)
    try:
        is_root = root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_root = False
    if not is_root:
        raise UserError(
            "certificate-not-a-root",
            f"{path}: is the certificate of a party, not of the consortium's root. Set tls.ca to the root's ca.crt.",
        )
    _check_dates(root, path, now)
    return root


def _curve_key(certificate: x509.Certificate, path: Path) -> EllipticCurvePublicKey:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise UserError(
            "certificate-wrong-curve",
            f"{path}: its key is not an elliptic-curve key on P-384. Have a new key and certificate issued.",
        )
    return key


def _check_dates(certificate: x509.Certificate, path: Path, now: datetime | None) -> None:
    now = (now or datetime.now(UTC)).astimezone(UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        raise UserError(
            "certificate-expired",
            f"{path}: the certificate expired at {end:%Y-%m-%d %H:%M} UTC. Ask whoever keeps the consortium's root key "
            "for a new one.",
        )
    if now < begin:
        raise UserError(
            "certificate-not-yet-valid",
            f"{path}: the certificate is valid from {begin:%Y-%m-%d %H:%M} UTC only, and this machine's clock says "
            f"{now:%Y-%m-%d %H:%M} UTC. Set the clock right, or wait.",
        )
