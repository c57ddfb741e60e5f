"""A signature beside a file: an edited file, another key and another purpose are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from momkd_fl.errors import UserError
from momkd_fl.security.detached import sign_file, signature_path, signed_content

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"site: ash\n")
    sign_file(path, KEY)
    return path


def refusal(path: Path, key: Ed25519PrivateKey = KEY) -> str:
    with pytest.raises(UserError, match=str(path)) as caught:
        signed_content(path, key.public_key())
    return caught.value.code


def test_what_was_signed_is_returned(contract: Path) -> None:
    assert signed_content(contract, KEY.public_key()) == b"site: ash\n"


def test_any_changed_byte_is_refused(contract: Path) -> None:
    for place in range(len(contract.read_bytes())):
        content = bytearray(contract.read_bytes())
        content[place] ^= 1
        contract.write_bytes(bytes(content))
        assert refusal(contract) == "policy-signature"
        content[place] ^= 1
        contract.write_bytes(bytes(content))
    assert signed_content(contract, KEY.public_key())


def test_another_key_or_none_is_refused(contract: Path) -> None:
    assert refusal(contract, Ed25519PrivateKey.generate()) == "policy-signature"
    signature_path(contract).unlink()
    assert refusal(contract) == "policy-unsigned"
    signature_path(contract).write_text("not hexadecimal")
    assert refusal(contract) == "policy-unsigned"
    contract.unlink()
    assert refusal(contract) == "policy-missing"


def test_a_signature_for_another_purpose_is_none_for_a_contract(contract: Path) -> None:
    signature_path(contract).write_text(KEY.sign(contract.read_bytes()).hex())
    assert refusal(contract) == "policy-signature"


def test_signed_anew_after_a_change(contract: Path) -> None:
    contract.write_bytes(b"site: birch\n")
    sign_file(contract, KEY)
    assert signed_content(contract, KEY.public_key()) == b"site: birch\n"
