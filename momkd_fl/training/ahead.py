"""Preparing what comes next in a thread of its own, bounded in number and in bytes."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

T = TypeVar("T")
DEPTH = 3
"""Values that exist at once: the one in use and two ahead."""
_EXIT_WAIT_S = 5.0


class Abandoned(Exception):  # noqa: N818 - not an error: nobody wants the values any more
    """The values' user has gone; raised in the thread that prepares them, to end it."""


class Ahead(Generic[T]):
    """A hand-over of values from the thread that prepares them to the one that uses them, in order.

    ``prepare``, given to :meth:`run`, calls :meth:`wait_for_room` before it makes a value and :meth:`put` after.
    A value may always be made when none is held; others only while all that are held stay within ``limit_bytes``.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._ready: deque[tuple[T, int, Callable[[], None], Callable[[], None]]] = deque()
        self._in_use: tuple[int, Callable[[], None]] | None = None
        self._held_bytes = 0
        self._ended = self._closed = False
        self._problem: BaseException | None = None

    def run(self, prepare: Callable[[Ahead[T]], None]) -> Generator[T]:
        """The values that ``prepare`` puts. The thread starts with the first, and ends when the iterator is closed.

        What ``prepare`` raises is raised here, the same object, after the values before it.
        """
        thread = threading.Thread(target=self._fill, args=(prepare,), name="packs-ahead", daemon=True)

        def at_exit() -> None:
            """A thread inside torch while the interpreter goes down would abort the process."""
            self._close()
            thread.join(_EXIT_WAIT_S)

        atexit.register(at_exit)
        thread.start()
        try:
            while (taken := self._take()) is not None:
                value = taken[0]
                del taken
                yield value
                del value  # the next may need its memory
        finally:
            self._close()
            thread.join()
            atexit.unregister(at_exit)

    def check(self) -> None:
        """Raise :class:`Abandoned` if nobody wants the values any more."""
        if self._closed:
            raise Abandoned

    def wait_for_room(self, nbytes: int) -> None:
        """Wait until a value that takes ``nbytes`` to make may be made."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(nbytes))
        self.check()

    def put(
        self, value: T, nbytes: int, taken: Callable[[], None] = lambda: None, let_go: Callable[[], None] = lambda: None
    ) -> None:
        """Hand over a value that holds ``nbytes``.

        ``taken`` is called in the user's thread before the value is handed out, ``let_go`` when the next is asked for.
        """
        with self._changed:
            self._ready.append((value, nbytes, taken, let_go))
            self._held_bytes += nbytes
            self._changed.notify_all()

    def _has_room(self, nbytes: int) -> bool:
        held = len(self._ready) + (self._in_use is not None)
        return held == 0 or (held < DEPTH and self._held_bytes + nbytes <= self.limit_bytes)

    def _fill(self, prepare: Callable[[Ahead[T]], None]) -> None:
        try:
            prepare(self)
        except Abandoned:
            pass
        except BaseException as problem:
            self._problem = problem
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _take(self) -> tuple[T] | None:
        with self._changed:
            if self._in_use is not None:
                nbytes, let_go = self._in_use
                self._in_use = None
                self._held_bytes -= nbytes
                let_go()
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._ready or self._ended)
            if not self._ready:
                if self._problem is not None:
                    raise self._problem
                return None
            value, nbytes, taken, let_go = self._ready.popleft()
            self._in_use = nbytes, let_go
        taken()
        return (value,)

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
