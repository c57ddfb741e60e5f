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
    NONCE_BYTES,
    SEGMENT_BYTES,
    TAG_BYTES,
    Sealed,
    create_seal_key,
    seal,
    seal_key_from_environment,
    seal_key_from_file,
    unseal,
)

KEY = bytes(range(32))
SEALED = Sealed("checkpoint", "her2-2026", 7)


def code_of(key: bytes, blob: bytes, segment_bytes: int = SEGMENT_BYTES) -> str:
    with pytest.raises(UserError) as caught:
        unseal(key, blob, "file", segment_bytes)
    return caught.value.code


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 100))
def test_what_was_sealed_comes_back_and_does_not_show(content: bytes, segment_bytes: int) -> None:
    blob = seal(KEY, content, SEALED, segment_bytes)
    assert unseal(KEY, blob, "file", segment_bytes) == (SEALED, content)
    assert len(content) < 8 or content not in blob[len(MAGIC) :]
    assert seal(KEY, content, SEALED, segment_bytes) != blob, "each has its own nonce"


@pytest.mark.parametrize("changed", [{"kind": "odometer"}, {"run": "other"}, {"round": 6}, {"version": 2}])
def test_a_file_does_not_pass_for_another(changed: dict[str, Any]) -> None:
    blob, other = seal(KEY, b"weights", SEALED), replace(SEALED, **changed)
    assert code_of(KEY, other.head() + blob[len(SEALED.head()) :]) == "seal-broken"


def test_another_key_does_not_open_it() -> None:
    assert code_of(bytes(32), seal(KEY, b"weights", SEALED)) == "seal-broken"


def test_every_changed_byte_and_every_cut_is_found() -> None:
    blob = seal(KEY, b"weights", SEALED)
    for at in range(len(blob)):
        changed = bytearray(blob)
        changed[at] ^= 1
        assert code_of(KEY, bytes(changed)) in (
            {"seal-unknown"} if at < len(MAGIC) else {"seal-unknown", "seal-broken"}
        )
    for end in range(len(blob)):
        assert code_of(KEY, blob[:end]) in {"seal-unknown", "seal-broken"}
    assert code_of(KEY, blob + b"x") == "seal-broken"


def test_no_segment_is_left_out_moved_or_taken_from_another_file() -> None:
    size, whole = 10, NONCE_BYTES + 10 + TAG_BYTES
    head = SEALED.head()
    first, second = (seal(KEY, bytes(range(start, start + 30)), SEALED, size) for start in (0, 100))
    one, two, three = (first[len(head) + n * whole : len(head) + (n + 1) * whole] for n in range(3))
    assert unseal(KEY, head + one + two + three, "file", size)[1] == bytes(range(30))
    for parts in ([one, two], [two, three], [one, three, two], [one, two, three, three], []):
        assert code_of(KEY, head + b"".join(parts), size) in {"seal-unknown", "seal-broken"}
    shorter = seal(KEY, bytes(range(20)), SEALED, size)[len(head) :]
    assert code_of(KEY, head + shorter[:whole] + two, size) != ""
    assert unseal(KEY, second, "file", size)[1] == bytes(range(100, 130))


@pytest.mark.parametrize(
    "label", [b"{}", b"[1]", b"null", b"[" * 900, b'{"kind":"a","round":"7","run":"b","version":1}', b"\xff" * 9]
)
def test_a_label_that_is_none_is_refused(label: bytes) -> None:
    assert code_of(KEY, MAGIC + len(label).to_bytes(4, "big") + label + bytes(60)) == "seal-unknown"
    assert code_of(KEY, MAGIC + b"\xff" * 4 + label + bytes(60)) == "seal-unknown"


def test_it_is_aes_256_gcm_over_the_stated_data() -> None:
    """Another implementation of the format opens it."""
    blob = seal(KEY, b"weights", SEALED)
    label = b'{"kind":"checkpoint","round":7,"run":"her2-2026","version":1}'
    said = b"MOMKD-SEAL-1\n" + len(label).to_bytes(4, "big") + label
    assert blob.startswith(said)
    nonce, rest = blob[len(said) : len(said) + 12], blob[len(said) + 12 :]
    assert AESGCM(KEY).decrypt(nonce, rest, said + b"\0\0\0\0\0\0\0\1") == b"weights"


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
