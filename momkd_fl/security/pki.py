"""The consortium's certificates: one root, one certificate and one EC P-384 key per party.

The same key serves TLS and Flower's node authentication, and the certificate also names the party's Ed25519 key. The
root signs parties only (path length 0); a server's certificate is good for serving, a site's for calling, and neither
for the other.
"""

from __future__ import annotations

import ipaddress
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
from momkd_fl.security.signing_request import (
    Kind,
    SigningRequest,
    check_party,
    create_keys,
    is_address,
    make_request,
)

ROOT_DAYS = 3650
PARTY_DAYS = 825
CLOCK_SKEW = timedelta(hours=1)
"""A new certificate is valid this much before it was made: hospitals' clocks differ."""

SIGNING_URI = "urn:momkd:ed25519:"
"""Before the Ed25519 key in a certificate's alternative names, a URI (RFC 5280, section 4.2.1.6)."""

PURPOSES = {"site": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}


def create_root(folder: Path, name: str, passphrase: bytes | None = None) -> None:
    """Make the consortium's root: ``ca.crt`` and ``ca.key`` (mode 0600, encrypted where there is a passphrase).

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
        _begin(subject, subject, key.public_key(), ROOT_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    _write_pair(folder, "ca", builder.sign(key, SHA384()), key, passphrase)


def certify(
    request: SigningRequest, ca_folder: Path, *, days: int = PARTY_DAYS, passphrase: bytes | None = None
) -> x509.Certificate:
    """The certificate that a request asks for; whose request it is, the keyholder has established.

    Parameters
    ----------
    request : SigningRequest
    ca_folder : Path
        Where ``ca.crt`` and ``ca.key`` are.
    days : int
        Validity.
    passphrase : bytes or None
        Of ``ca.key``.

    Raises
    ------
    UserError
        As :meth:`SigningRequest.check`; ``certificate-days``; what is wrong with the root's certificate (as
        :func:`check_certificate`) or key (as :func:`private_key_of`).
    """
    request.check()
    root, root_key = _signer(ca_folder, request.name, days, passphrase)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(SIGNING_URI + request.signing_key)]
    names += [
        x509.IPAddress(ipaddress.ip_address(host)) if is_address(host) else x509.DNSName(host) for host in request.hosts
    ]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, request.name)])
    builder = (
        _begin(subject, root.subject, request.public_tls_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([PURPOSES[request.kind]]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
    )
    return builder.sign(root_key, SHA384())


def write_certificate(path: Path, certificate: x509.Certificate) -> None:
    """Write it as PEM; raises UserError ``key-exists`` or ``key-not-written``."""
    write_new(path, certificate.public_bytes(Encoding.PEM), 0o644)


def issue_server(folder: Path, ca_folder: Path, name: str, hosts: list[str], *, days: int = PARTY_DAYS) -> None:
    """Make a server's keys and its certificate in one place, as a trial does.

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
        As :func:`certify`; ``key-exists`` or ``key-not-written``.
    """
    _issue(folder, ca_folder, name, "server", tuple(hosts), days)


def issue_site(folder: Path, ca_folder: Path, name: str, *, days: int = PARTY_DAYS) -> None:
    """Make a site's keys and its certificate in one place (raises as :func:`issue_server`)."""
    _issue(folder, ca_folder, name, "site", (), days)


def public_key_of(certificate: Path) -> EllipticCurvePublicKey:
    """The public key in a PEM certificate.

    Raises
    ------
    UserError
        ``certificate-missing``, ``certificate-unreadable``, ``certificate-not-pem`` or ``certificate-wrong-curve``.
    """
    return curve_key(load_certificate(certificate), certificate)


def certificate_sha256(certificate: Path) -> str:
    """SHA-256 of the certificate's DER form, 64 hexadecimal digits: what a site's contract names.

    Raises
    ------
    UserError
        As :func:`public_key_of`.
    """
    return load_certificate(certificate).fingerprint(SHA256()).hex()


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
    party = load_certificate(certificate)
    curve_key(party, certificate)
    try:
        party.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise UserError(
            "certificate-wrong-ca",
            f"{certificate}: was not signed by the root in {ca}. Use the root certificate that the consortium handed "
            "out, or have this party's certificate issued by it.",
        ) from None
    _check_dates(party, certificate, now)


def expiry(certificate: Path) -> datetime:
    """When a certificate ends, UTC (raises as :func:`public_key_of`)."""
    return load_certificate(certificate).not_valid_after_utc


def days_left(certificate: Path) -> float:
    """Days until a certificate ends; negative once it has (raises as :func:`public_key_of`)."""
    return (expiry(certificate) - datetime.now(UTC)).total_seconds() / 86400.0


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


def _issue(folder: Path, ca_folder: Path, name: str, kind: Kind, hosts: tuple[str, ...], days: int) -> None:
    check_party(name, kind, hosts)
    refuse_existing(folder / f"{name}.crt")
    _signer(ca_folder, name, days, None)  # what is wrong with the root shows before a key is written
    keys = create_keys(folder, name)
    write_certificate(folder / f"{name}.crt", certify(make_request(name, kind, hosts, *keys), ca_folder, days=days))


def _signer(
    ca_folder: Path, name: str, days: int, passphrase: bytes | None
) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    root_file = ca_folder / "ca.crt"
    root = _load_root(root_file, None)
    key = private_key_of(root_file, ca_folder / "ca.key", passphrase)
    left = (root.not_valid_after_utc - datetime.now(UTC)).days
    if not 1 <= days <= left:
        raise UserError(
            "certificate-days",
            f"{name}: a certificate may be valid for 1 day to the {left} days that the root in {root_file} has left, "
            f"not {days}.",
        )
    return root, key


def _begin(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
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


def _write_pair(
    folder: Path, name: str, certificate: x509.Certificate, key: EllipticCurvePrivateKey, passphrase: bytes | None
) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(
            "key-not-written", f"{folder}: the folder cannot be made ({problem.strerror}). Choose another."
        ) from None
    refuse_existing(folder / f"{name}.crt")
    write_private_key(folder / f"{name}.key", key, passphrase)
    write_new(folder / f"{name}.crt", certificate.public_bytes(Encoding.PEM), 0o644)


def load_certificate(path: Path) -> x509.Certificate:
    """The first certificate in a PEM file; nobody has checked it yet.

    Raises
    ------
    UserError
        ``certificate-missing``, ``certificate-unreadable`` or ``certificate-not-pem``.
    """
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
    root = load_certificate(path)
    curve_key(root, path)
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


def curve_key(certificate: x509.Certificate, path: Path) -> EllipticCurvePublicKey:
    """Its key; raises UserError ``certificate-wrong-curve`` unless that is on P-384."""
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
