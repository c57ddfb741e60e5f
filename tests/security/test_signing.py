"""Signing keys: their own files, their own form."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from momkd_fl.errors import UserError
from momkd_fl.security.signing import create_signing_key, fingerprint, load_public_key, load_signing_key


def code_of(load: object, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)  # type: ignore[operator]
    return caught.value.code


def test_a_key_pair_is_written_once_and_read_back(tmp_path: Path) -> None:
    key = create_signing_key(tmp_path / "ash", "ash")
    private, public = tmp_path / "ash" / "ash.sign.key", tmp_path / "ash" / "ash.sign.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    load_public_key(public).verify(load_signing_key(private).sign(b"line"), b"line")
    assert load_public_key(public) == key.public_key()
    assert code_of(lambda path: create_signing_key(path, "ash"), tmp_path / "ash") == "key-exists"
    private.chmod(0o640)
    assert code_of(load_signing_key, private) == "key-mode"


def test_tls_keys_and_other_files_are_no_signing_keys(consortium: Path, tmp_path: Path) -> None:
    assert code_of(load_signing_key, consortium / "north" / "north.key") == "signing-key-invalid"
    assert code_of(load_public_key, consortium / "north" / "north.crt") == "signing-key-invalid"
    assert code_of(load_public_key, tmp_path / "none") == "signing-key-invalid"
    assert code_of(load_signing_key, tmp_path / "none") == "key-missing"


def test_fingerprints_tell_keys_apart() -> None:
    one, two = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32).public_key() for n in (1, 2))
    assert fingerprint(one) != fingerprint(two)
    assert len(fingerprint(one)) == 64
