"""A party's request to the consortium: both public keys, signed with both private ones, which never leave the party.

Each key signs the other, so that nobody can pair one party's TLS key with somebody else's signing key. That the
request is the party's own, two people establish by reading its digest to each other; or, at a renewal, the key on the
allow-list.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from pydantic import Field

from momkd_fl.errors import UserError
from momkd_fl.security.documents import Document, Ed25519Key, Name, Signature, read_document
from momkd_fl.security.keystore import write_private_key
from momkd_fl.security.signing import create_signing_key

Kind = Literal["site", "server"]
_FORMAT: Final = "momkd-request-1"
_PARTY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


class SigningRequest(Document):
    """What a party asks to have certified.

    Attributes
    ----------
    hosts : of a server: DNS names and IP addresses that sites reach it at
    tls_key : SubjectPublicKeyInfo of its EC P-384 key, DER, hexadecimal; also the Flower node's key
    signing_key : its raw Ed25519 public key, hexadecimal
    previous_key : at a renewal with new keys: the Ed25519 public key on the allow-list, which signs as well
    """

    format: Literal["momkd-request-1"] = _FORMAT
    name: Name
    kind: Kind
    hosts: tuple[str, ...] = ()
    tls_key: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){1,200}$")]
    signing_key: Ed25519Key
    previous_key: Ed25519Key | None = None
    tls_signature: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){0,120}$")] = ""
    signature: Signature | Literal[""] = ""
    previous_signature: Signature | Literal[""] = ""

    def body(self) -> bytes:
        """What is signed: the format's name makes it no other document's signature."""
        return b"momkd-request-1\n" + self.canonical("tls_signature", "signature", "previous_signature")

    def request_digest(self) -> str:
        """What two people compare; it does not depend on the signatures."""
        return self.digest("tls_signature", "signature", "previous_signature")

    def public_tls_key(self) -> EllipticCurvePublicKey:
        """The TLS key (raises UserError ``request-invalid``)."""
        try:
            key = load_der_public_key(bytes.fromhex(self.tls_key))
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
            raise _invalid(self.name)
        return key

    def check(self) -> None:
        """Refuse a request that its own keys, and the previous one if it names one, did not sign.

        Raises
        ------
        UserError
            ``request-invalid``, ``name-invalid`` or ``host-invalid``.
        """
        check_party(self.name, self.kind, self.hosts)
        try:
            self.public_tls_key().verify(bytes.fromhex(self.tls_signature), self.body(), ECDSA(SHA384()))
            _verify(self.signing_key, self.signature, self.body())
            if self.previous_key is not None:
                _verify(self.previous_key, self.previous_signature, self.body())
        except (InvalidSignature, ValueError):
            raise _invalid(self.name) from None


def make_request(
    name: str,
    kind: Kind,
    hosts: tuple[str, ...],
    tls: EllipticCurvePrivateKey,
    signing: Ed25519PrivateKey,
    previous: Ed25519PrivateKey | None = None,
) -> SigningRequest:
    """A request over keys that exist (raises UserError ``name-invalid`` or ``host-invalid``)."""
    check_party(name, kind, hosts)
    request = SigningRequest(
        name=name,
        kind=kind,
        hosts=hosts,
        tls_key=tls_key_hex(tls.public_key()),
        signing_key=signing.public_key().public_bytes_raw().hex(),
        previous_key=None if previous is None else previous.public_key().public_bytes_raw().hex(),
    )
    body = request.body()
    return request.model_copy(
        update={
            "tls_signature": tls.sign(body, ECDSA(SHA384())).hex(),
            "signature": signing.sign(body).hex(),
            "previous_signature": "" if previous is None else previous.sign(body).hex(),
        }
    )


def create_keys(
    folder: Path, name: str, passphrase: bytes | None = None
) -> tuple[EllipticCurvePrivateKey, Ed25519PrivateKey]:
    """Make a party's ``<name>.key``, ``<name>.sign.key`` (both 0600) and ``<name>.sign.pub`` in ``folder``.

    The passphrase, if there is one, encrypts the TLS key; the signing key signs each message unattended.

    Raises
    ------
    UserError
        ``key-exists`` or ``key-not-written``.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(
            "key-not-written", f"{folder}: the folder cannot be made ({problem.strerror}). Choose another."
        ) from None
    tls = generate_private_key(SECP384R1())
    write_private_key(folder / f"{name}.key", tls, passphrase)
    return tls, create_signing_key(folder, name)


def read_request(path: Path) -> SigningRequest:
    """A request whose signatures hold (raises UserError of :func:`read_document` and :meth:`SigningRequest.check`)."""
    request = read_document(path, SigningRequest, "a signing request")
    request.check()
    return request


def tls_key_hex(key: EllipticCurvePublicKey) -> str:
    """SubjectPublicKeyInfo in DER form, hexadecimal."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()


def check_party(name: str, kind: Kind, hosts: tuple[str, ...]) -> None:
    """Refuse names that no file, certificate or URL could carry.

    Raises
    ------
    UserError
        ``name-invalid`` or ``host-invalid``.
    """
    if not _PARTY_NAME.fullmatch(name):
        raise UserError(
            "name-invalid",
            f"{name!r}: a party's name has 1 to 64 letters, digits, '_', '.' or '-' and begins with a letter or digit.",
        )
    if kind == "server" and not hosts:
        raise UserError(
            "host-invalid", f"{name}: a server's certificate needs at least one host name or IP address of the server."
        )
    if kind == "site" and hosts:
        raise UserError("host-invalid", f"{name}: a site has no host name that anybody calls. Leave hosts out.")
    for host in hosts:
        if not is_address(host) and not (
            len(host) <= 253 and all(_HOST_LABEL.fullmatch(label) for label in host.split("."))
        ):
            raise UserError(
                "host-invalid",
                f"{host!r}: is neither a DNS name nor an IP address. Write it without https://, port or wildcard.",
            )


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _verify(key: str, signature: str, body: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), body)


def _invalid(name: str) -> UserError:
    return UserError(
        "request-invalid",
        f"The signing request of '{name}' is not signed with the keys in it: it was changed on the way, or damaged. "
        "Ask the party for it again.",
    )
