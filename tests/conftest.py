"""What every room's tests share: strict logs, and real data that must be tested where it is."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

REAL_DATA = Path(os.environ.get("MOMKD_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))

# Inherited by the processes that tests start: a log line with a stray field fails instead of losing it.
os.environ["MOMKD_LOG_STRICT"] = "1"

# How long a property takes is the machine's affair: a busy one is no defect. Benchmarks measure time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_RAN = pytest.StashKey[set[str]]()
_MISSED = pytest.StashKey[list[str]]()


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


class _RealTests:
    """Notes which files' tests of real data ran; with several workers the reports of all arrive here."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        config.stash[_RAN], config.stash[_MISSED] = set(), []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "real" in report.keywords and not report.skipped:
            self.config.stash[_RAN].add(report.nodeid.split("::")[0])

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A run of the whole suite that left a file's tests of real data out fails where the data folder is."""
        if session.exitstatus == pytest.ExitCode.OK and REAL_DATA.is_dir() and _whole(self.config):
            self.config.stash[_MISSED] = sorted(_files_of_real_tests(self.config) - self.config.stash[_RAN])
            if self.config.stash[_MISSED]:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for name in self.config.stash[_MISSED]:
            terminalreporter.write_line(
                f"FAILED {name}: {REAL_DATA} is there, but none of its tests of real data ran.", red=True
            )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        config.pluginmanager.register(_RealTests(config), "real-tests")


def _whole(config: pytest.Config) -> bool:
    """Whether all tests were asked for: no file or folder below ``testpaths``, no -k, no -m, no --last-failed."""
    paths = {(config.invocation_params.dir / argument).resolve() for argument in config.args}
    all_of_them = {(config.rootpath / name).resolve() for name in config.getini("testpaths")}
    narrowed = any(config.getoption(name, None) for name in ("keyword", "markexpr", "lf", "stepwise"))
    return not narrowed and (all_of_them <= paths or config.rootpath in paths)


def _files_of_real_tests(config: pytest.Config) -> set[str]:
    files = Path(__file__).parent.rglob("test_*.py")
    marked = [path for path in files if "pytest.mark.real" in path.read_text("utf-8")]
    return {path.relative_to(config.rootpath).as_posix() for path in marked}
