"""``momkd ingest --site config.yaml``: the site's features, once, into a store that trains fast in bounded memory."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from momkd_fl.cli.check import FileProgress
from momkd_fl.cli.frame import FAILED, MISTAKE, OK
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.bags import find_bags
from momkd_fl.data.ingest import ingest, verify
from momkd_fl.data.withdrawal import withdrawn_file, without_withdrawn
from momkd_fl.errors import UserError


def run_ingest(site: SiteConfig, out: Path | None, stop: threading.Event, *, neighbours: int, only_verify: bool) -> int:
    """Bring the store up to date or verify it; 0: all well, 1: it is not what it was, 2: slides were refused."""
    folder = out or site.data.store
    if folder is None:
        raise UserError(
            "store-unnamed", "No folder for the store: set data.store in the site's file, or give --out FOLDER."
        )
    started = time.monotonic()
    if only_verify:
        with FileProgress(sys.stderr) as progress:
            wrong = verify(folder, progress)
        for sentence in wrong:
            print(sentence, file=sys.stderr)
        print(
            f"{folder}: {len(wrong)} slides are not as they should be." if wrong else f"{folder}: every slide is whole."
        )
        return FAILED if wrong else OK
    with FileProgress(sys.stderr) as progress:
        done = ingest(
            without_withdrawn(find_bags(site.data.features), withdrawn_file(site)),
            folder,
            k=neighbours,
            format=site.data.format,
            progress=progress,
            stopped=stop.is_set,
        )
    for problem in done.problems:
        print(f"momkd ingest: {problem}", file=sys.stderr)
    seconds = max(time.monotonic() - started, 1e-9)
    print(
        f"{folder}: {done.written} slides written ({done.source_bytes / 1e6 / seconds:.0f} MB/s), "
        f"{done.unchanged} unchanged, {done.dropped} dropped, {len(done.problems)} refused."
    )
    if site.data.store is None:
        print(f"To train from it, set data.store: {folder} in the site's file.")
    return MISTAKE if done.problems else OK
