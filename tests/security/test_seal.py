"""Sealed files: whole, for this key and this purpose, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.errors import UserError
from momkd_fl.security.seal import (
    MAGIC,
    Sealed,
    create_seal_key,
    seal,
    seal_key_from_environment,
    seal_key_from_file,
    unseal,
)

KEY = bytes(range(32))
SEALED = Sealed("checkpoint", "her2-2026", 7)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_what_was_sealed_comes_back_and_does_not_show(content: bytes) -> None:
    blob = seal(KEY, content, SEALED)
    assert unseal(KEY, blob, SEALED) == content
    assert len(content) < 8 or content not in blob[len(MAGIC) :]
    assert seal(KEY, content, SEALED) != blob, "each has its own nonce"


@pytest.mark.parametrize("changed", [{"kind": "odometer"}, {"run": "other"}, {"round": 6}, {"version": 2}])
def test_a_file_does_not_pass_for_another(changed: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        unseal(KEY, seal(KEY, b"weights", SEALED), replace(SEALED, **changed))
    assert caught.value.code == "seal-broken"


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(UserError) as caught:
        unseal(bytes(32), seal(KEY, b"weights", SEALED), SEALED)
    assert caught.value.code == "seal-broken"


def test_every_changed_byte_is_found() -> None:
    blob = seal(KEY, b"weights", SEALED)
    for at in range(len(blob)):
        changed = bytearray(blob)
        changed[at] ^= 1
        with pytest.raises(UserError) as caught:
            unseal(KEY, bytes(changed), SEALED)
        assert caught.value.code == ("seal-unknown" if at < len(MAGIC) else "seal-broken")
    for end in range(len(blob)):
        with pytest.raises(UserError):
            unseal(KEY, blob[:end], SEALED)


def test_it_is_aes_256_gcm_over_the_stated_data() -> None:
    """Another implementation of the format opens it."""
    blob = seal(KEY, b"weights", SEALED)
    said = b'MOMKD-SEAL-1\n{"kind":"checkpoint","round":7,"run":"her2-2026","version":1}'
    assert AESGCM(KEY).decrypt(blob[13:25], blob[25:], said) == b"weights"


def test_keys_come_from_a_file_of_one_s_own_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys" / "seal.key"
    key = create_seal_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert seal_key_from_file(path) == key
    monkeypatch.setenv("SITE_SEAL_KEY", key.hex())
    assert seal_key_from_environment("SITE_SEAL_KEY") == key
    path.chmod(0o644)
    with pytest.raises(UserError) as caught:
        seal_key_from_file(path)
    assert caught.value.code == "key-mode"
    with pytest.raises(UserError) as caught:
        create_seal_key(path)
    assert caught.value.code == "key-exists"


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "ab" * 31, "ab" * 33, "é" * 64])
def test_a_key_of_another_form_is_refused_without_being_shown(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_SEAL_KEY", text)
    with pytest.raises(UserError) as caught:
        seal_key_from_environment("SITE_SEAL_KEY")
    assert caught.value.code == "seal-key-invalid"
    assert not text or text not in str(caught.value)


def test_an_unset_variable_is_said() -> None:
    with pytest.raises(UserError, match="NOT_SET_HERE") as caught:
        seal_key_from_environment("NOT_SET_HERE")
    assert caught.value.code == "seal-key-missing"
