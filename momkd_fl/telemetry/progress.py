"""A run as a person sees it: a live view in a terminal, one plain line an event elsewhere."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_ROUTINE: Final = ("working", "done")
"""States that every site passes in every round: shown live, not worth a line each."""

_TROUBLE: Final = ("late", "missing", "refused")

_MARKS: Final = {
    "expected": ("·", "dim"),
    "online": ("●", "cyan"),
    "working": ("▶", "yellow"),
    "done": ("✓", "green"),
    "late": ("!", "red"),
    "missing": ("✗", "red"),
    "refused": ("✗", "bold red"),
    "finished": ("✓", "bold green"),
}


@dataclass(frozen=True)
class RoundSeen:
    """One finished round: seconds, number of replies, validation AUROC and loss (None: not estimable)."""

    number: int
    seconds: float
    replies: int
    auroc: float | None
    loss: float | None


def duration(seconds: float) -> str:
    """A length of time in the unit that suits it: ``0.4 s``, ``42 s``, ``3 min``, ``1 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 89.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress(ABC):
    """What is known of the run so far; a context manager, safe to call from several threads.

    Open one with :meth:`open`, which picks the view that suits the place.
    """

    def __init__(self, total_rounds: int, sites: Sequence[str], quorum: int | None, evaluators: Sequence[str]) -> None:
        self.total_rounds = total_rounds
        self.quorum = quorum
        self.evaluators = frozenset(evaluators)
        self.states: dict[str, str] = dict.fromkeys(sites, "expected")
        self.rounds: list[RoundSeen] = []
        self._lock = threading.RLock()

    @staticmethod
    def open(
        total_rounds: int,
        sites: Sequence[str],
        *,
        quorum: int | None = None,
        evaluators: Sequence[str] = (),
        plain: bool | None = None,
        stream: TextIO | None = None,
    ) -> Progress:
        """The view for this place.

        Parameters
        ----------
        total_rounds : int
            Rounds planned.
        sites : sequence of str
            Every listed site.
        quorum : int, optional
            Fewest replies that make a round, for showing.
        evaluators : sequence of str
            Those of ``sites`` that never train.
        plain : bool, optional
            True: lines; False: the live view. Default: live where ``stream`` is a terminal that can.
        stream : file, optional
            Default: standard error, so that standard output stays clean.
        """
        stream = sys.stderr if stream is None else stream
        if plain is None:
            plain = not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb"
        view = PlainProgress if plain else LiveProgress
        return view(total_rounds, sites, quorum, evaluators, stream)

    def site(self, site: str, state: str) -> None:
        """A site has changed its state (a word of ``telemetry.vocabulary.SITE_STATES``)."""
        with self._lock:
            if self.states.get(site) != state:
                self.states[site] = state
                self._site_changed(site, state)

    def sites(self, states: Mapping[str, str]) -> None:
        """Several sites' states at once."""
        for site, state in states.items():
            self.site(site, state)

    def round(
        self, number: int, seconds: float, replies: int, auroc: float | None = None, loss: float | None = None
    ) -> None:
        """A round has been aggregated; ``number`` counts from 1."""
        with self._lock:
            self.rounds.append(RoundSeen(number, seconds, replies, auroc, loss))
            self._round_ended(self.rounds[-1])

    @abstractmethod
    def say(self, sentence: str) -> None:
        """Show one sentence, and keep it in view or in the log above."""

    @abstractmethod
    def _site_changed(self, site: str, state: str) -> None: ...

    @abstractmethod
    def _round_ended(self, seen: RoundSeen) -> None: ...

    def _left(self) -> str:
        """Time to go, from the median of the last rounds; nothing before the first."""
        done = self.rounds[-1].number if self.rounds else 0
        if not done or done >= self.total_rounds:
            return ""
        pace = statistics.median(seen.seconds for seen in self.rounds[-5:])
        return f"about {duration(pace * (self.total_rounds - done))} left"

    def _figures(self, seen: RoundSeen) -> list[str]:
        trainers = len(self.states) - len(self.evaluators & self.states.keys())
        quorum = f", quorum {self.quorum}" if self.quorum is not None else ""
        parts = [duration(seen.seconds), f"{seen.replies} of {trainers} sites{quorum}"]
        parts.append(f"validation AUROC {'not estimable' if seen.auroc is None else f'{seen.auroc:.3f}'}")
        if seen.loss is not None:
            parts.append(f"loss {seen.loss:.3f}")
        return parts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class PlainProgress(Progress):
    """One line an event, for files and pipes; routine states of sites are not events."""

    def __init__(
        self,
        total_rounds: int,
        sites: Sequence[str],
        quorum: int | None,
        evaluators: Sequence[str],
        stream: TextIO,
    ) -> None:
        super().__init__(total_rounds, sites, quorum, evaluators)
        self._stream = stream
        self._announced: dict[str, str] = {}

    def say(self, sentence: str) -> None:
        """Write the sentence as one line."""
        # A closed pipe or a full disk at the other end must not end a training run.
        with self._lock, contextlib.suppress(OSError, ValueError):
            print(sentence, file=self._stream, flush=True)

    def _site_changed(self, site: str, state: str) -> None:
        before = self._announced.get(site)
        if state in _ROUTINE:
            if before not in _TROUBLE:
                return
            state = "online"
        if state != before:
            self._announced[site] = state
            self.say(f"site {site}: {state}{' again' if before in _TROUBLE and state == 'online' else ''}")

    def _round_ended(self, seen: RoundSeen) -> None:
        left = self._left()
        parts = [f"round {seen.number}/{self.total_rounds}", *self._figures(seen), *([left] if left else [])]
        self.say(" · ".join(parts))


class LiveProgress(Progress):
    """A bar of rounds, a table of sites by state and the last figures, redrawn in place."""

    def __init__(
        self,
        total_rounds: int,
        sites: Sequence[str],
        quorum: int | None,
        evaluators: Sequence[str],
        stream: TextIO,
        console: Console | None = None,
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(total_rounds, sites, quorum, evaluators)
        self._console = console or Console(file=stream)
        # Standard output may carry results: it stays as it is, only the console's own stream is redrawn.
        self._live = Live(get_renderable=self._view, console=self._console, refresh_per_second=4, redirect_stdout=False)

    def say(self, sentence: str) -> None:
        """Print the sentence above the view."""
        self._console.print(sentence, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def _site_changed(self, site: str, state: str) -> None:
        if state in _TROUBLE:
            self.say(f"site {site}: {state}")

    def _round_ended(self, seen: RoundSeen) -> None:
        return None  # the next redraw shows it

    def _view(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            done = self.rounds[-1].number if self.rounds else 0
            head = Table.grid(padding=(0, 1))
            bar = ProgressBar(total=max(self.total_rounds, 1), completed=done, width=30, complete_style="cyan")
            head.add_row("rounds", bar, f"{done}/{self.total_rounds}", Text(self._left(), style="dim"))
            table = Table(box=None, pad_edge=False, header_style="bold")
            for title in ("site", "part", "state"):
                table.add_column(title)
            for site, state in self.states.items():
                mark, style = _MARKS.get(state, ("?", "default"))
                part = "evaluates" if site in self.evaluators else "trains"
                table.add_row(site, Text(part, style="dim"), Text(f"{mark} {state}", style=style))
            last = Text(" · ".join(self._figures(self.rounds[-1])) if self.rounds else "no round has ended yet")
            return Group(head, table, last)
