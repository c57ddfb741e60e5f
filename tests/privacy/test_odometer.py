"""The odometer: spent before sent, whatever dies when; and nobody gets anything back."""

from __future__ import annotations

import errno
import hashlib
import hmac
import itertools
import json
import multiprocessing
import os
import signal
from base64 import b64decode
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from momkd_fl.errors import UserError
from momkd_fl.privacy.accountant import GaussianReleases, PoissonSteps, joint_epsilon, sigma_for
from momkd_fl.privacy.disk import Disk
from momkd_fl.privacy.odometer import Budget, Debit, Head, Odometer

KEY, BUDGET = b"k" * 32, Budget(8.0, 1e-5)
ONE = GaussianReleases(5.0)


def debit_of(attempt: str, charge: Any = ONE, payload: str = "") -> Debit:
    return Debit(attempt, hashlib.sha256((payload or attempt).encode()).hexdigest(), charge)


def code_of(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return caught.value.code


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Odometer.create(tmp_path / "state" / "odometer", KEY, BUDGET)
    return tmp_path / "state" / "odometer"


# --- killed at every step --------------------------------------------------------------------------------------------


class Dying(Disk):
    """Kills its process at the n-th step, or half-way through a write; ``power`` also loses what is unsynced.

    Lost is what a real disk may lose: bytes that were not synced, and names whose folder was not.
    """

    def __init__(self, step: int, folder: Path, *, power: bool, syncs: bool = True) -> None:
        self.left, self.folder, self.power, self.syncs = step, folder, power, syncs
        self.unsynced: dict[int, int] = {}
        self.unnamed: list[tuple[Path, Path]] = []

    def _step(self, half: Callable[[], object] = lambda: None) -> None:
        self.left -= 1
        if self.left == 0:
            half()
            self.die()

    def die(self) -> None:
        if self.power:
            for inode, size in self.unsynced.items():
                for file in self.folder.iterdir():
                    if file.stat().st_ino == inode:
                        os.truncate(file, size)
            for source, target in self.unnamed:
                os.rename(target, source)
        os.kill(os.getpid(), signal.SIGKILL)

    def append(self, descriptor: int, data: bytes) -> None:
        state = os.fstat(descriptor)
        self.unsynced.setdefault(state.st_ino, state.st_size)
        self._step(lambda: os.write(descriptor, data[: len(data) // 2]))
        super().append(descriptor, data)
        self._step()

    def truncate(self, descriptor: int, size: int) -> None:
        self._step()
        super().truncate(descriptor, size)
        self._step()

    def sync(self, descriptor: int) -> None:
        self._step()
        if self.syncs:
            super().sync(descriptor)
            self.unsynced.pop(os.fstat(descriptor).st_ino, None)
        self._step()

    def sync_folder(self, folder: Path) -> None:
        self._step()
        if self.syncs:
            super().sync_folder(folder)
            self.unnamed.clear()
        self._step()

    def name(self, source: Path, target: Path) -> None:
        self._step()
        super().name(source, target)
        self.unnamed.append((source, target))
        self._step()


def send(folder: Path, attempt: str) -> None:
    """The wire: what has left stays left."""
    descriptor = os.open(folder / "sent", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{attempt}\n".encode())
    os.close(descriptor)


def site(folder: Path, disk: Disk) -> None:
    """A site's life: an odometer made at set-up, then two messages; a retry sends an attempt again."""
    path = folder / "odometer"
    odometer = Odometer(path, KEY, BUDGET, disk) if path.exists() else Odometer.create(path, KEY, BUDGET, disk)
    for round_ in range(2):
        odometer.debit(debit_of(f"run/{round_}"))
        send(folder, f"run/{round_}")
    if isinstance(disk, Dying):
        disk.die()


def dies(folder: Path, disk: Dying) -> None:
    """Run :func:`site` in a child that is killed."""
    child = multiprocessing.get_context("fork").Process(target=site, args=(folder, disk))
    child.start()
    child.join(20)
    assert child.exitcode == -signal.SIGKILL


def lost(folder: Path) -> set[str]:
    """Attempts that left although no debit of theirs is on disk."""
    sent = set((folder / "sent").read_text().split()) if (folder / "sent").exists() else set()
    lines = opened(folder / "odometer") if (folder / "odometer").exists() else []
    return sent - {line["attempt"] for line in lines[1:]}


def opened(path: Path) -> list[dict[str, Any]]:
    """Every whole line's content, by another implementation of the format."""
    cipher = AESGCM(HKDF(SHA256(), 32, salt=None, info=b"momkd-odometer-2").derive(KEY))
    previous, found = "0" * 64, []
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            raw = b64decode(line)
            found.append(json.loads(cipher.decrypt(raw[:12], raw[12:], previous.encode())))
            previous = hashlib.sha256(line).hexdigest()
    return found


def clear_line(previous: str, content: dict[str, Any]) -> bytes:
    """A line as the first format had it."""
    body = json.dumps({"content": content, "previous": previous}, sort_keys=True, separators=(",", ":"))
    mac = hmac.new(KEY, body.encode(), hashlib.sha256).hexdigest()
    return f'{body[:-1]},"seal":"{mac}"}}\n'.encode()


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_whatever_was_sent_is_spent_after_death_at_any_step(tmp_path: Path, power: bool) -> None:
    for steps in itertools.count(1):
        folder = tmp_path / str(steps)
        folder.mkdir()
        dies(folder, Dying(steps, folder, power=power))
        assert not lost(folder)
        finished = (folder / "sent").exists() and len((folder / "sent").read_text().split()) == 2
        dies(folder, Dying(1 + steps % 9, folder, power=power))  # it dies while it starts again, too
        assert not lost(folder)
        site(folder, Disk())
        odometer = Odometer(folder / "odometer", KEY, BUDGET)
        assert odometer.receipt.epsilon_spent == joint_epsilon([ONE] * 2, BUDGET.delta), "each attempt once"
        assert odometer.head.lines == 3
        if finished:
            break
    assert steps > 20


def test_a_disk_that_does_not_sync_is_found_out(tmp_path: Path) -> None:
    dies(tmp_path, Dying(1000, tmp_path, power=True, syncs=False))
    assert lost(tmp_path)


def test_a_retry_waits_until_its_first_debit_is_on_the_disk(path: Path) -> None:
    """The first process died between write and sync; the second finds the line, which a power cut could still take."""
    odometer = Odometer(path, KEY, BUDGET)
    synced = []

    class Watching(Disk):
        def sync(self, descriptor: int) -> None:
            super().sync(descriptor)
            synced.append(os.fstat(descriptor).st_size)

    second = Odometer(path, KEY, BUDGET, Watching())
    synced.clear()
    odometer.debit(debit_of("a"))
    second.debit(debit_of("a"))
    assert synced == [path.stat().st_size]


@pytest.mark.parametrize("call", ["append", "sync"])
def test_a_full_disk_stops_the_message(path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    odometer = Odometer(path, KEY, BUDGET)
    monkeypatch.setattr(Disk, call, full)
    assert code_of(lambda: odometer.debit(debit_of("a"))) == "odometer-not-written"


# --- counting --------------------------------------------------------------------------------------------------------


def test_a_retry_debits_once_and_a_changed_message_is_no_retry(path: Path) -> None:
    odometer = Odometer(path, KEY, BUDGET)
    first = odometer.debit(debit_of("run/1/memory/1"))
    assert odometer.debit(debit_of("run/1/memory/1")) == first
    assert Odometer(path, KEY, BUDGET).debit(debit_of("run/1/memory/1")) == first
    for other in (debit_of("run/1/memory/1", payload="x"), debit_of("run/1/memory/1", GaussianReleases(9.0))):
        assert code_of(lambda other=other: odometer.debit(other)) == "odometer-attempt-reused"
    assert odometer.debit(debit_of("run/1/memory/2")).epsilon_spent > first.epsilon_spent


def test_a_conditional_charge_stays_marked_and_counts_as_what_it_is_on_its_condition(path: Path) -> None:
    share = debit_of("run/1/memory/1", GaussianReleases(5.0, 1, 3))
    first = Odometer(path, KEY, BUDGET).debit(share)
    again = Odometer(path, KEY, BUDGET)
    assert again.debit(share) == first, "read back with its condition"
    unconditional = debit_of("run/1/memory/1", ONE)
    assert code_of(lambda: again.debit(unconditional)) == "odometer-attempt-reused"
    assert first.epsilon_spent == joint_epsilon([ONE], BUDGET.delta)


def test_memory_and_weights_of_all_runs_are_one_sum(path: Path) -> None:
    steps = PoissonSteps(1.8, 0.1, 500)
    for run in range(10):
        Odometer(path, KEY, BUDGET).debit(debit_of(f"run-{run}/memory", GaussianReleases(3.419)))
    receipt = Odometer(path, KEY, BUDGET).debit(debit_of("run-10/weights", steps))
    assert receipt.epsilon_spent == pytest.approx(7.955, abs=2e-3)
    assert receipt.epsilon_left == pytest.approx(8 - receipt.epsilon_spent)


def test_an_exhausted_budget_spends_nothing_more(path: Path) -> None:
    odometer = Odometer(path, KEY, Budget(2.0, 1e-5))
    for attempt in itertools.count():
        before = path.read_bytes()
        if joint_epsilon([ONE] * (attempt + 1), 1e-5) > 2.0:
            break
        odometer.debit(debit_of(str(attempt)))
    with pytest.raises(UserError, match="budget is 2") as refused:
        odometer.debit(debit_of("one more"))
    assert refused.value.code == "budget-exhausted"
    assert path.read_bytes() == before
    assert odometer.debit(debit_of("0")).head == odometer.head, "what was charged may still be sent again"


def test_several_debits_of_one_message_are_all_spent_or_none(path: Path) -> None:
    odometer = Odometer(path, KEY, BUDGET)
    half = GaussianReleases(0.8)  # alone ε = 5.8, twice 8.5
    before = odometer.head
    assert code_of(lambda: odometer.debit(debit_of("a/1", half), debit_of("a/2", half))) == "budget-exhausted"
    assert odometer.head == before
    spent = odometer.debit(debit_of("b/1"), debit_of("b/2", PoissonSteps(6.0, 0.1, 5)))
    assert spent.head.lines == before.lines + 2
    assert odometer.debit(debit_of("b/1"), debit_of("b/2", PoissonSteps(6.0, 0.1, 5))) == spent
    assert Odometer(path, KEY, BUDGET).receipt == spent


def test_the_releases_that_a_budget_was_planned_for_all_fit(path: Path) -> None:
    odometer = Odometer(path, KEY, BUDGET)
    release = GaussianReleases(sigma_for(BUDGET.epsilon, BUDGET.delta, 10))
    for n in range(10):
        receipt = odometer.debit(debit_of(str(n), release))
    assert receipt.epsilon_left == pytest.approx(0, abs=1e-6)
    assert code_of(lambda: odometer.debit(debit_of("11", release))) == "budget-exhausted"


def test_processes_of_one_site_share_it(path: Path) -> None:
    def spend(name: str) -> None:
        odometer = Odometer(path, KEY, BUDGET)
        for n in range(8):
            odometer.debit(debit_of(f"{name}/{n}", GaussianReleases(50.0)))

    children = [multiprocessing.get_context("fork").Process(target=spend, args=(name,)) for name in "abc"]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
    assert Odometer(path, KEY, BUDGET).head.lines == 25


# --- tampering -------------------------------------------------------------------------------------------------------


def spent(path: Path, count: int = 4) -> list[Head]:
    odometer = Odometer(path, KEY, BUDGET)
    return [odometer.debit(debit_of(f"run/{n}")).head for n in range(count)]


def test_nothing_of_what_was_spent_shows_on_the_disk(path: Path) -> None:
    spent(path)
    assert [line["attempt"] for line in opened(path)[1:]] == [f"run/{n}" for n in range(4)]
    for word in (b"run", b"gaussian", b"sigma", b"odometer"):
        assert word not in path.read_bytes()


def test_every_changed_byte_of_the_last_line_is_found(path: Path) -> None:
    spent(path, 1)
    content = path.read_bytes()
    start = content[:-1].rindex(b"\n") + 1
    for at in range(start, len(content) - 1):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 3
        path.write_bytes(changed)
        assert code_of(lambda: Odometer(path, KEY, BUDGET)) == "odometer-damaged"


def test_a_file_of_the_format_in_the_clear_goes_on_sealed_and_forgets_nothing(path: Path) -> None:
    first = clear_line("0" * 64, {"format": "momkd-odometer-1", "odometer": "ab"})
    head = hashlib.sha256(first).hexdigest()
    one = debit_of("run/0")
    content = {"attempt": "run/0", "payload": one.payload_sha256, "kind": "gaussian", "charge": asdict(ONE)}
    path.write_bytes(first + clear_line(head, content))
    odometer = Odometer(path, KEY, BUDGET)
    assert odometer.receipt.epsilon_spent == joint_epsilon([ONE], BUDGET.delta)
    assert odometer.debit(one).head.lines == 2, "a retry"
    odometer.debit(debit_of("run/1"))
    assert path.read_bytes().splitlines()[2][:1] != b"{"
    assert Odometer(path, KEY, BUDGET).receipt.epsilon_spent == joint_epsilon([ONE] * 2, BUDGET.delta)
    path.write_bytes(path.read_bytes().replace(b"5.0", b"9.0"))
    assert code_of(lambda: Odometer(path, KEY, BUDGET)) == "odometer-damaged"


@pytest.mark.parametrize("change", ["edit", "delete", "insert", "reorder", "zero", "empty", "other key"])
def test_a_changed_file_is_refused(path: Path, change: str) -> None:
    spent(path)
    lines = path.read_bytes().splitlines(keepends=True)
    changed = {
        "edit": [lines[0], lines[1][:30] + (b"A" if lines[1][30:31] != b"A" else b"B") + lines[1][31:], *lines[2:]],
        "delete": [lines[0], *lines[2:]],
        "insert": [*lines[:2], lines[1], *lines[2:]],
        "reorder": [lines[0], lines[2], lines[1], *lines[3:]],
        "zero": [*lines[:-1], b"\0" * 40 + b"\n"],
        "empty": [],
        "other key": lines,
    }[change]
    path.write_bytes(b"".join(changed))
    key = b"x" * 32 if change == "other key" else KEY
    assert code_of(lambda: Odometer(path, key, BUDGET)) == "odometer-damaged"


def test_a_restored_backup_is_found_out_by_what_others_hold(path: Path) -> None:
    backup = path.read_bytes()
    heads = spent(path)
    Odometer(path, KEY, BUDGET).must_continue(heads)
    path.write_bytes(backup)
    restored = Odometer(path, KEY, BUDGET)
    for head in heads:  # the coordinator's, or any one peer's
        assert code_of(lambda head=head: restored.must_continue([head])) == "odometer-rolled-back"
    for n in range(6):  # going on from it does not help
        restored.debit(debit_of(f"other/{n}"))
    assert code_of(lambda: restored.must_continue(heads[:1])) == "odometer-rolled-back"


def test_a_file_cut_while_in_use_is_refused(path: Path) -> None:
    odometer = Odometer(path, KEY, BUDGET)
    backup = path.read_bytes()
    odometer.debit(debit_of("a"))
    path.write_bytes(backup)
    assert code_of(lambda: odometer.debit(debit_of("b"))) == "odometer-rolled-back"


def test_a_missing_file_is_not_an_empty_one(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert code_of(lambda: Odometer.create(path, KEY, BUDGET)) == "odometer-exists"
    path.rename(path.with_suffix(".old"))
    assert code_of(lambda: Odometer(path, KEY, BUDGET)) == "odometer-missing"
    path.symlink_to(path.with_suffix(".old"))
    assert code_of(lambda: Odometer(path, KEY, BUDGET)) == "odometer-unreadable"
    with pytest.raises(ValueError, match="bytes"):
        Odometer(path, b"short", BUDGET)
