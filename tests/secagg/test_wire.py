"""Bytes that are no message, and many that are nearly one."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fuzz_secagg import Recorded, fuzz
from momkd_fl.secagg import aggregator, messages, wire
from momkd_fl.secagg.aggregator import Step
from momkd_fl.secagg.refusal import SecAggError
from momkd_fl.secagg.wire import Kind, Reader

KEY = Ed25519PrivateKey.generate()


def code_of(work) -> str:
    with pytest.raises(SecAggError) as problem:
        work()
    return problem.value.code


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded.new()


@given(st.sampled_from(list(Kind)), st.binary(min_size=32, max_size=32), st.sampled_from(["", "S00"]), st.binary())
def test_an_envelope_comes_back(kind: Kind, manifest: bytes, sender: str, body: bytes):
    message = wire.close_envelope(kind, manifest, sender, [body[:1], body[1:]], KEY)
    found = wire.open_envelope(message, kind, len(message))
    assert (found.kind, found.manifest, found.sender, bytes(found.body)) == (kind, manifest, sender, body)
    found.verify(KEY.public_key().public_bytes_raw())
    with pytest.raises(SecAggError):
        found.verify(Ed25519PrivateKey.generate().public_key().public_bytes_raw())


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_every_bit_is_signed(at: int, bit: int):
    message = bytearray(wire.close_envelope(Kind.CONSENT, bytes(32), "S00", [b"body"], KEY))
    message[at % len(message)] ^= 1 << bit
    with pytest.raises(SecAggError):
        wire.open_envelope(bytes(message), None, 1000).verify(KEY.public_key().public_bytes_raw())


def test_what_is_no_envelope_is_refused():
    message = wire.close_envelope(Kind.CONSENT, bytes(32), "S00", [b""], KEY)
    assert code_of(lambda: wire.open_envelope(message, Kind.ROSTER, 1000)) == "message-unexpected"
    assert code_of(lambda: wire.open_envelope(message, None, len(message) - 1)) == "message-too-large"
    assert code_of(lambda: wire.open_envelope(b"MSA\2" + message[4:], None, 1000)) == "message-version"
    assert code_of(lambda: wire.open_envelope(b"MSA\0" + message[4:], None, 1000)) == "message-version"
    assert code_of(lambda: wire.open_envelope(b"MSB" + message[3:], None, 1000)) == "message-malformed"
    assert code_of(lambda: wire.open_envelope(message[:4] + b"\x0b" + message[5:], None, 1000)) == "message-malformed"
    for size in range(len(message) - 10):
        assert code_of(lambda size=size: wire.open_envelope(message[:size], None, 1000)) == "message-malformed"


def test_names_rise_and_lists_are_bounded():
    good = memoryview(wire.names(["b", "a"]))
    assert Reader(good).names(2) == ("a", "b")
    assert code_of(lambda: Reader(good).names(1)) == "message-malformed"
    falling = b"\0\2" + wire.name("b") + wire.name("a")
    assert code_of(lambda: Reader(memoryview(falling)).names(2)) == "message-malformed"
    twice = b"\0\2" + wire.name("a") * 2
    assert code_of(lambda: Reader(memoryview(twice)).names(2)) == "message-malformed"
    for bad in (b"\0", b"\1 ", b"\1.", b"\2a", b"\2a\n", b"\x41" + b"a" * 65, b"\2\xc3\xa9"):
        assert code_of(lambda bad=bad: Reader(memoryview(bad)).name()) == "message-malformed"
    assert code_of(lambda: wire.name("é")) == "manifest-invalid"


def test_no_message_of_a_round_is_larger_than_its_bound(recorded: Recorded):
    for kind, message in zip(Kind, recorded.messages, strict=True):
        most = messages.bytes_max(kind, recorded.manifest)
        assert len(message) <= most
        if kind not in (Kind.MANIFEST, Kind.CONSENT):
            assert most < 3 * len(message) + 700  # a bound that means something


def test_a_message_above_its_bound_is_refused_before_it_is_read(recorded: Recorded):
    state, _ = aggregator.begin(recorded.messages[0], recorded.consortium.identities, recorded.consortium.coordinator)
    large = recorded.messages[Kind.ANNOUNCEMENT - 1] + bytes(1000)
    assert code_of(lambda: aggregator.receive(state, large)) == "message-too-large"


def test_the_aggregator_refuses_what_is_late_doubled_or_of_a_stranger(recorded: Recorded):
    parties = recorded.consortium
    state, _ = aggregator.begin(recorded.messages[0], parties.identities, parties.coordinator)
    announcement = recorded.messages[Kind.ANNOUNCEMENT - 1]
    assert code_of(lambda: aggregator.receive(state, recorded.messages[Kind.MASKED - 1])) == "message-unexpected"
    assert code_of(lambda: aggregator.close(state)) == "sites-too-few"
    assert code_of(lambda: aggregator.finish(state)) == "message-unexpected"
    state = aggregator.receive(state, announcement)
    assert aggregator.receive(state, announcement) is state  # sent again by the transport
    sender = wire.open_envelope(announcement, None, 1 << 20).sender
    assert sender not in state.missing
    other = messages.Announcement(bytes([9] * 32), bytes([8] * 32), (bytes(32), bytes(32))).body()
    second = wire.close_envelope(Kind.ANNOUNCEMENT, recorded.digest, sender, other, parties.sites[sender])
    assert code_of(lambda: aggregator.receive(state, second)) == "sender-equivocates"
    stranger = wire.close_envelope(Kind.ANNOUNCEMENT, recorded.digest, "X", other, parties.coordinator)
    assert code_of(lambda: aggregator.receive(state, stranger)) == "sender-unknown"
    theirs = next(name for name in parties.sites if name != sender)
    weak = messages.Announcement(bytes(32), bytes([8] * 32), (bytes(32), bytes(32))).body()
    message = wire.close_envelope(Kind.ANNOUNCEMENT, recorded.digest, theirs, weak, parties.sites[theirs])
    assert code_of(lambda: aggregator.receive(state, message)) == "key-weak"
    copied = wire.open_envelope(announcement, None, 1 << 20).body
    message = wire.close_envelope(Kind.ANNOUNCEMENT, recorded.digest, theirs, [copied], parties.sites[theirs])
    assert code_of(lambda: aggregator.receive(state, message)) == "key-repeated"
    assert state.step == Step.KEYS


def test_changed_messages_are_refused_or_read_as_they_are():
    found = fuzz(5000, seed=1)
    assert not found.wrong
    assert found.read > 50
    assert set(found.refused) >= {"message-malformed", "signature-wrong", "manifest-differs"}


def test_the_fuzzing_finds_a_reader_that_trips(monkeypatch: pytest.MonkeyPatch):
    """Control: a parser that forgets to look whether anything follows, and drops it."""
    monkeypatch.setattr(Reader, "end", lambda reader: None)
    assert fuzz(2000, seed=1).wrong
