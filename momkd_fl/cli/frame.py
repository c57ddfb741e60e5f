"""What every command does alike: sentences for mistakes, exit statuses, Ctrl-C and SIGTERM."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable

from momkd_fl.errors import UserError

OK, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def run_command(name: str, action: Callable[[threading.Event], int]) -> int:
    """Run ``action`` and turn what a person did into an exit status.

    ``action`` gets an event that Ctrl-C or SIGTERM sets, so that it can end in order; a second Ctrl-C ends at once.
    A :class:`UserError` is printed as its sentence, without a traceback, and exits with status 2.
    """
    stop = threading.Event()

    def ask_to_stop(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print(f"{name}: stopping; once more Ctrl-C ends at once.", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, ask_to_stop)
    signal.signal(signal.SIGTERM, ask_to_stop)
    try:
        status = action(stop)
    except UserError as mistake:
        for line in str(mistake).splitlines():
            print(f"{name}: {line}", file=sys.stderr, flush=True)
        return MISTAKE
    except KeyboardInterrupt:
        return INTERRUPTED
    return INTERRUPTED if stop.is_set() and status == OK else status


class Parser(argparse.ArgumentParser):
    """An argument parser with the version option every command has."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description)
        from momkd_fl import __version__

        self.add_argument("--version", action="version", version=f"momkd-fl {__version__}")
