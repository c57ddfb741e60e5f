"""What every room's tests share: strict logs, and real data that must be tested where it is."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

REAL_DATA = Path(os.environ.get("MOMKD_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))

# Inherited by the processes that tests start: a log line with a stray field fails instead of losing it.
os.environ["MOMKD_LOG_STRICT"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test of real data is a failure where the data folder is there."""
    report = yield
    if report.skipped and item.get_closest_marker("real") and REAL_DATA.is_dir() and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped although {REAL_DATA} is there."
    return report
