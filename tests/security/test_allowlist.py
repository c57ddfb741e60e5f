"""Who is in: only with the keyholders' signatures, only the newest list seen, only until it ends."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.errors import UserError
from momkd_fl.security.allowlist import AllowList, parse_allow_list, revise
from momkd_fl.security.charter import Charter, make_charter, read_charter
from momkd_fl.security.held_list import HeldList
from momkd_fl.security.party import Party, party_of

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOLDERS = {name: Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n, name in enumerate("abc", start=1)}


def code_of(call: object, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.code


def charter_of(threshold: int = 1, holders: str = "a") -> Charter:
    keys = {name: HOLDERS[name].public_key().public_bytes_raw().hex() for name in holders}
    return Charter(consortium="trial", root_sha256="0" * 64, keyholders=keys, threshold=threshold)


def party(name: str, number: int = 0) -> Party:
    digit = f"{sum(name.encode()) * 7 + number:x}"[-2:]
    return Party(name, "site", digit * 32, digit[::-1] + "1" * 62)


def signed(made: AllowList, holders: str = "a") -> AllowList:
    for name in holders:
        made = made.signed(name, HOLDERS[name])
    return made


CHARTER = charter_of()
FIRST = signed(revise(CHARTER, None, allow=[party("ash"), party("oak")], now=NOW))
SECOND = signed(revise(CHARTER, FIRST, revoke=["oak"], now=NOW))


def test_a_list_lets_in_whom_it_names_with_these_keys_only() -> None:
    FIRST.check(CHARTER, "list", NOW)
    FIRST.refuse_outsider(party("ash"), "site", "a site")
    assert FIRST.admits("ash", "site", party("ash").tls_key_sha256)
    assert not FIRST.admits("ash", "server", party("ash").tls_key_sha256)
    assert not FIRST.admits("ash", "site", party("oak").tls_key_sha256)
    assert not FIRST.admits("elm", "site", party("ash").tls_key_sha256)
    for stranger in (
        party("elm"),
        party("ash", 1),
        dataclasses.replace(party("ash"), kind="server"),
        dataclasses.replace(party("ash"), signing_key="2" * 64),
    ):
        assert code_of(FIRST.refuse_outsider, stranger, "site", "a site") == "allowlist-not-listed"
    assert FIRST.identities()["oak"] == bytes.fromhex(party("oak").signing_key)


def test_a_revoked_party_is_out_and_its_keys_stay_out() -> None:
    SECOND.check(CHARTER, "list", NOW)
    with pytest.raises(UserError, match="was revoked"):
        SECOND.refuse_outsider(party("oak"), "site", "a site")
    with pytest.raises(UserError) as caught:
        revise(CHARTER, SECOND, allow=[party("oak")], now=NOW)
    assert caught.value.code == "allowlist-revoked"
    again = signed(revise(CHARTER, SECOND, allow=[party("oak", 1)], now=NOW))
    again.check(CHARTER, "list", NOW)
    again.refuse_outsider(party("oak", 1), "site", "a site")
    smuggled = signed(
        again.model_copy(update={"parties": FIRST.parties, "signatures": {}}),
    )
    assert code_of(smuggled.check, CHARTER, "list", NOW) == "allowlist-inconsistent"


def test_after_its_end_nobody_is_in() -> None:
    FIRST.check(CHARTER, "list", NOW + timedelta(days=89))
    assert code_of(FIRST.check, CHARTER, "list", NOW + timedelta(days=90)) == "allowlist-expired"


def test_any_k_of_n_members_make_a_list_and_fewer_do_not() -> None:
    charter = charter_of(threshold=2, holders="abc")
    bare = revise(charter, None, allow=[party("ash")], now=NOW)
    for holders in ("ab", "ac", "bc", "abc"):
        signed(bare, holders).check(charter, "list", NOW)
    for holders in ("", "a", "b", "c"):
        assert code_of(signed(bare, holders).check, charter, "list", NOW) == "allowlist-unsigned"
    one = signed(bare, "a")
    twice = one.model_copy(update={"signatures": {"a": one.signatures["a"], "b": one.signatures["a"]}})
    assert code_of(twice.check, charter, "list", NOW) == "allowlist-unsigned", "one signature under two names"
    stranger = one.signed("d", Ed25519PrivateKey.generate())
    assert code_of(stranger.check, charter, "list", NOW) == "allowlist-unsigned"


def test_one_key_under_two_names_is_one_keyholder() -> None:
    key = HOLDERS["a"].public_key().public_bytes_raw().hex()
    charter = Charter(consortium="trial", root_sha256="0" * 64, keyholders={"a": key, "b": key}, threshold=2)
    both = revise(charter, None, allow=[party("ash")], now=NOW).signed("a", HOLDERS["a"]).signed("b", HOLDERS["a"])
    assert code_of(both.check, charter, "list", NOW) == "allowlist-unsigned"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_changed_byte_passes(data: st.DataObject) -> None:
    text = FIRST.text()
    at = data.draw(st.integers(0, len(text) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != text[at]))
    try:
        changed = parse_allow_list(text[:at] + bytes([byte]) + text[at + 1 :], "list")
        changed.check(CHARTER, "list", NOW)
    except UserError:
        return
    assert changed == FIRST, "white space, and nothing else, may differ"


def test_the_newest_list_is_remembered_and_an_older_one_refused(tmp_path: Path) -> None:
    held = HeldList(tmp_path / "state" / "seen.json", CHARTER)
    assert held.newest() is None
    held.offer(FIRST, "file", NOW)
    held.offer(SECOND, "file", NOW)
    assert HeldList(tmp_path / "state" / "seen.json", CHARTER).newest() == SECOND
    assert code_of(held.offer, FIRST, "server", NOW) == "allowlist-rolled-back"
    other = signed(revise(CHARTER, FIRST, revoke=["ash"], now=NOW))
    assert code_of(held.offer, other, "server", NOW) == "allowlist-forked"
    assert held.newest() == SECOND
    third = revise(CHARTER, SECOND, now=NOW)
    assert code_of(held.offer, third, "server", NOW) == "allowlist-unsigned"
    assert held.newest() == SECOND


def test_a_damaged_memory_lets_nothing_in(tmp_path: Path) -> None:
    path = tmp_path / "seen.json"
    HeldList(path, CHARTER).offer(FIRST, "file", NOW)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"oak"', b'"elm"'))
    assert code_of(HeldList(path, CHARTER).offer, SECOND, "file", NOW) == "allowlist-memory-damaged"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert code_of(HeldList(path, CHARTER).newest) == "allowlist-memory-damaged"


def test_a_list_of_another_charter_is_refused() -> None:
    other = charter_of(holders="b")
    assert code_of(FIRST.check, other, "list", NOW) == "allowlist-other-consortium"
    with pytest.raises(UserError) as caught:
        revise(other, FIRST, now=NOW)
    assert caught.value.code == "allowlist-other-consortium"


def test_a_charter_belongs_to_its_root(consortium: Path, tmp_path: Path) -> None:
    root = consortium / "root" / "ca.crt"
    charter = make_charter("trial", root, {"a": HOLDERS["a"].public_key()}, 1)
    (tmp_path / "consortium.json").write_bytes(charter.text())
    assert read_charter(tmp_path / "consortium.json", root) == charter
    assert code_of(read_charter, tmp_path / "consortium.json", consortium / "north" / "north.crt") == (
        "charter-other-root"
    )
    for threshold in (0, 2):
        with pytest.raises(UserError, match="different keys"):
            make_charter("trial", root, {"a": HOLDERS["a"].public_key()}, threshold)


def test_the_party_of_a_certificate_goes_onto_the_list(consortium: Path) -> None:
    north = party_of(consortium / "north" / "north.crt")
    server = party_of(consortium / "server" / "server.crt")
    made = signed(revise(CHARTER, None, allow=[north, server], now=NOW))
    made.refuse_outsider(north, "site", "a site")
    assert [one.kind for one in made.parties] == ["site", "server"]
    assert set(made.identities()) == {"north"}
    with pytest.raises(UserError, match="cannot be revoked"):
        revise(CHARTER, made, revoke=["south"], now=NOW)
    with pytest.raises(UserError) as caught:
        revise(CHARTER, made, days=400, now=NOW)
    assert caught.value.code == "allowlist-days"
