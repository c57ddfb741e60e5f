"""``momkd check --site config.yaml``: PASS, WARN or FAIL, each with its mend."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

from momkd_fl.config.site import SiteConfig
from momkd_fl.data.check import Finding
from momkd_fl.federation.preflight import check_site

if TYPE_CHECKING:
    from rich.progress import TaskID

PLAIN_EVERY_S = 5.0
_COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}


def run_check(site: SiteConfig, *, as_json: bool, quick: bool, offline: bool) -> int:
    """Check a site and print what was found; 0: all well, 1: warnings, 2: something must be mended first."""
    with FileProgress(sys.stderr) as progress:
        findings = check_site(site, progress, values=not quick, network=not offline)
    status = status_of(findings)
    if as_json:
        json.dump({"site": site.site, "status": status, "findings": [asdict(found) for found in findings]}, sys.stdout)
        print()
    else:
        _show(site.site, findings)
    return status


def status_of(findings: Sequence[Finding]) -> int:
    """The exit status: that of the worst finding."""
    return max(("PASS", "WARN", "FAIL").index(found.status) for found in findings)


def _show(site: str, findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=not sys.stdout.isatty())
    table = Table.grid(padding=(0, 2))
    for found in findings:
        text = Text(found.sentence)
        if found.code:
            text.append(f" [{found.code}]", style="dim")
        if found.mend:
            text.append(f"\n-> {found.mend}", style="italic")
        table.add_row(Text(found.status, style=_COLOURS[found.status]), Text(found.check), text)
    console.print(table)
    counts = Counter(found.status for found in findings)
    console.print(f"Site {site}: {counts['PASS']} passed, {counts['WARN']} warnings, {counts['FAIL']} to mend.")


class FileProgress:
    """How far reading is: a bar in a terminal, elsewhere a line every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._stream = stream
        self._bar = Progress(console=Console(file=stream), transient=True) if stream.isatty() else None
        self._tasks: dict[str, TaskID] = {}
        self._told = time.monotonic()

    def __enter__(self) -> FileProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` files are done."""
        if self._bar is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, total=total)
            self._bar.update(self._tasks[what], completed=done, total=total)
        elif time.monotonic() - self._told > PLAIN_EVERY_S:
            self._told = time.monotonic()
            print(f"{what}: {done} of {total} files", file=self._stream, flush=True)
