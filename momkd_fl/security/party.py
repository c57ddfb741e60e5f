"""Who a certificate is for: a name, what it may do, and the keys that the allow-list must hold for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.x509.oid import NameOID

from momkd_fl.errors import UserError
from momkd_fl.security.pki import PURPOSES, SIGNING_URI, curve_key, load_certificate
from momkd_fl.security.signing_request import Kind, tls_key_hex


@dataclass(frozen=True)
class Party:
    """Who a certificate says it is for.

    Attributes
    ----------
    name, kind : of the party
    tls_key_sha256 : of the SubjectPublicKeyInfo of its TLS key, which is its Flower node's key
    signing_key : raw Ed25519 public key; hexadecimal
    """

    name: str
    kind: Kind
    tls_key_sha256: str
    signing_key: str


def party_of(path: Path) -> Party:
    """Who the certificate in a PEM file is for.

    Raises
    ------
    UserError
        ``certificate-no-party`` for one that was not made by :func:`certify`; or as :func:`public_key_of`.
    """
    return party_in(load_certificate(path), path)


def party_in(certificate: x509.Certificate, path: Path) -> Party:
    """As :func:`party_of`, of a certificate that has been read from ``path``."""
    key = curve_key(certificate, path)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        (purpose,) = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        (common,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        kind: Kind = "server" if purpose == PURPOSES["server"] else "site"
        signing = bytes.fromhex(uri.removeprefix(SIGNING_URI))
        if not uri.startswith(SIGNING_URI) or len(signing) != 32:
            raise ValueError
    except (x509.ExtensionNotFound, ValueError):
        raise UserError(
            "certificate-no-party",
            f"{path}: does not name a party's signing key. Have a certificate issued with 'momkd provision sign'.",
        ) from None
    return Party(str(common.value), kind, tls_key_sha256(key), signing.hex())


def tls_key_sha256(key: EllipticCurvePublicKey) -> str:
    """SHA-256 of a TLS key's SubjectPublicKeyInfo, hexadecimal."""
    return hashlib.sha256(bytes.fromhex(tls_key_hex(key))).hexdigest()


def hosts_of(path: Path) -> tuple[str, ...]:
    """DNS names and IP addresses in a certificate (raises as :func:`party_of`)."""
    party_of(path)
    names = load_certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    )
