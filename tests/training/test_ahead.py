"""The hand-over between threads: order, bounds, errors, and an end that leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_fl.errors import UserError
from momkd_fl.training.ahead import DEPTH, Abandoned, Ahead


def putting(sizes: Sequence[int], made: list[int] | None = None) -> Callable[[Ahead[int]], None]:
    """Values 0, 1, ... of these sizes; those that were begun are noted in ``made``."""

    def prepare(line: Ahead[int]) -> None:
        for number, size in enumerate(sizes):
            line.wait_for_room(size)
            if made is not None:
                made.append(number)
            line.put(number, size)

    return prepare


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "packs-ahead"]


def begun(made: list[int], expected: int) -> int:
    """How many values have been begun once ``expected`` have, or after 5 s; a little later, so that more would show."""
    for _ in range(1000):
        if len(made) >= expected:
            break
        time.sleep(0.005)
    time.sleep(0.02)
    return len(made)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 100), max_size=12), st.integers(1, 150))
def test_every_value_comes_once_and_in_order(sizes: list[int], limit: int) -> None:
    assert list(Ahead[int](limit).run(putting(sizes))) == list(range(len(sizes)))
    assert running() == []


def test_two_are_ready_while_one_is_in_use() -> None:
    made: list[int] = []
    with closing(Ahead[int](10**9).run(putting([1] * 20, made))) as values:
        for number in range(5):
            assert next(values) == number
            assert begun(made, DEPTH + number) == DEPTH + number


def test_nothing_is_made_beyond_the_bytes_but_one_value_always() -> None:
    made: list[int] = []
    # 6 + 4 fit, the third only without the first; each of the large ones waits until nothing else is held
    with closing(Ahead[int](10).run(putting([6, 4, 4, 100, 100, 1], made))) as values:
        for number, expected in enumerate([2, 3, 3, 4, 5, 6]):
            assert next(values) == number
            assert begun(made, expected) == expected


def test_what_the_thread_raises_reaches_the_user_as_itself_after_what_came_before() -> None:
    problem = UserError("bag-missing", "There is no such file.")

    def prepare(line: Ahead[int]) -> None:
        line.put(0, 1)
        raise problem

    values = Ahead[int](10).run(prepare)
    assert next(values) == 0
    with pytest.raises(UserError) as raised:
        next(values)
    assert raised.value is problem
    assert running() == []


def _interrupted() -> None:
    with closing(Ahead[int](10).run(putting([1] * 100))) as values:
        next(values)
        raise KeyboardInterrupt


def test_the_thread_starts_with_the_first_value_and_ends_with_the_iterator() -> None:
    values = Ahead[int](10).run(putting([1] * 100))
    assert running() == []
    next(values)
    assert len(running()) == 1
    values.close()
    assert running() == []
    with pytest.raises(KeyboardInterrupt):
        _interrupted()
    assert running() == []
    for _ in Ahead[int](10).run(putting([1] * 100)):
        break
    assert running() == []


def test_work_under_way_stops_at_its_next_look() -> None:
    stopped = threading.Event()

    def prepare(line: Ahead[int]) -> None:
        line.put(0, 1)
        try:
            while True:
                line.check()
                time.sleep(0.001)
        except Abandoned:
            stopped.set()
            raise

    values = Ahead[int](10).run(prepare)
    next(values)
    values.close()
    assert stopped.is_set()


def test_calls_on_taking_and_letting_go_come_in_the_users_thread() -> None:
    seen: list[tuple[str, str]] = []

    def note(what: str) -> Callable[[], None]:
        return lambda: seen.append((what, threading.current_thread().name))

    def prepare(line: Ahead[int]) -> None:
        for number in range(2):
            line.put(number, 1, note(f"taken {number}"), note(f"let go {number}"))

    here = threading.current_thread().name
    assert list(Ahead[int](10).run(prepare)) == [0, 1]
    assert seen == [(what, here) for what in ("taken 0", "let go 0", "taken 1", "let go 1")]


def test_a_process_ends_although_an_iterator_is_still_open() -> None:
    program = (
        "import torch\n"
        "from momkd_fl.training.ahead import Ahead\n"
        "def prepare(line):\n"
        "    while True:\n"
        "        line.check()\n"
        "        line.wait_for_room(1)\n"
        "        line.put(torch.ones(1 << 16).sum(), 1)\n"
        "values = Ahead(10).run(prepare)\n"
        "next(values)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
