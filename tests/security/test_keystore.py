"""Private keys: whole, owner-only, never overwritten, and every mistake told in a sentence."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from momkd_fl.errors import UserError
from momkd_fl.security.keystore import load_private_key, write_new, write_private_key

PASSPHRASE = b"correct horse"


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def pem_of(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    lock: KeySerializationEncryption | None = None,
    form: PrivateFormat = PrivateFormat.PKCS8,
) -> bytes:
    return key.private_bytes(Encoding.PEM, form, lock or NoEncryption())


def refusal(path: Path, passphrase: bytes | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        load_private_key(path, passphrase)
    assert str(path) in caught.value.sentence
    return caught.value


def test_round_trip_and_mode(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    old = os.umask(0)  # the mode must not hang on the umask
    try:
        write_private_key(tmp_path / "a.key", key)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    assert load_private_key(tmp_path / "a.key", None).private_numbers() == key.private_numbers()
    assert os.listdir(tmp_path) == ["a.key"], "no draft is left beside the key"


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_encrypted_key(tmp_path: Path, key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> None:
    path = tmp_path / "a.key"
    write_new(path, pem_of(key, BestAvailableEncryption(PASSPHRASE), form), 0o600)
    assert load_private_key(path, PASSPHRASE).private_numbers() == key.private_numbers()
    for passphrase, word in ((None, "no passphrase"), (b"", "no passphrase"), (b"wrong battery", "does not open")):
        mistake = refusal(path, passphrase)
        assert mistake.code == "key-passphrase"
        assert word in mistake.sentence
        assert "battery" not in mistake.sentence


def test_passphrase_without_need(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    write_private_key(tmp_path / "a.key", key)
    mistake = refusal(tmp_path / "a.key", PASSPHRASE)
    assert mistake.code == "key-passphrase"
    assert "not encrypted" in mistake.sentence


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o601, 0o700])
def test_modes_wider_than_0600_are_refused(tmp_path: Path, key: ec.EllipticCurvePrivateKey, mode: int) -> None:
    path = tmp_path / "a.key"
    write_private_key(path, key)
    path.chmod(mode)
    mistake = refusal(path)
    assert mistake.code == "key-mode"
    assert f"{mode:04o}" in mistake.sentence
    assert f"chmod 600 {path}" in mistake.sentence


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_narrow_modes_are_read(tmp_path: Path, key: ec.EllipticCurvePrivateKey, mode: int) -> None:
    path = tmp_path / "a.key"
    write_private_key(path, key)
    path.chmod(mode)
    assert load_private_key(path, None).public_key() == key.public_key()


def test_symbolic_link_is_refused(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    write_private_key(tmp_path / "a.key", key)
    for target in ("a.key", "absent.key"):
        link = tmp_path / f"link-to-{target}"
        link.symlink_to(tmp_path / target)
        assert refusal(link).code == "key-symlink"


def test_absent_folder_and_pipe(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.key").code == "key-missing"
    assert refusal(tmp_path / "none" / "a.key").code == "key-missing"
    (tmp_path / "folder").mkdir(mode=0o700)
    assert refusal(tmp_path / "folder").code == "key-unreadable"
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert refusal(tmp_path / "pipe").code == "key-unreadable"  # and does not hang


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 64, b"-----BEGIN PRIVATE KEY-----\nQUJD\n-----END PRIVATE KEY-----\n", b"x" * (1 << 20)],
    ids=["empty", "binary", "broken", "huge"],
)
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_what_is_no_key(tmp_path: Path, content: bytes, passphrase: bytes | None) -> None:
    path = tmp_path / "a.key"
    write_new(path, content, 0o600)
    mistake = refusal(path, passphrase)
    assert mistake.code in ({"key-not-pem"} if passphrase is None else {"key-not-pem", "key-passphrase"})


@pytest.mark.parametrize("kind", ["p256", "rsa"])
def test_other_curves_are_refused(tmp_path: Path, kind: str) -> None:
    other = ec.generate_private_key(ec.SECP256R1()) if kind == "p256" else rsa.generate_private_key(65537, 2048)
    path = tmp_path / "a.key"
    write_new(path, pem_of(other), 0o600)
    mistake = refusal(path)
    assert mistake.code == "key-wrong-curve"
    assert "P-384" in mistake.sentence


def test_no_key_is_overwritten(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(b"precious")
    with pytest.raises(UserError) as caught:
        write_private_key(path, key)
    assert caught.value.code == "key-exists"
    assert str(path) in caught.value.sentence
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["a.key"]


def test_no_key_is_written_through_a_link(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    (tmp_path / "a.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="key-exists"):
        write_private_key(tmp_path / "a.key", key)
    assert not (tmp_path / "elsewhere").exists()


def test_file_that_appears_meanwhile_stays(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.key"
    link = os.link

    def another_process_first(source: Path, target: Path) -> None:
        path.write_bytes(b"precious")
        link(source, target)

    monkeypatch.setattr(os, "link", another_process_first)
    with pytest.raises(UserError, match="key-exists"):
        write_private_key(path, key)
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["a.key"]


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        write_private_key(tmp_path / "a.key", key)
    assert caught.value.code == "key-not-written"
    assert os.listdir(tmp_path) == []


def test_folder_that_is_not_there(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(UserError, match="key-not-written"):
        write_private_key(tmp_path / "none" / "a.key", key)
