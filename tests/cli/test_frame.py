"""What every command does alike: sentences, exit statuses, signals."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from momkd_fl.cli.frame import FAILED, INTERRUPTED, MISTAKE, OK, Parser, run_command
from momkd_fl.errors import UserError


def test_a_mistake_is_its_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def action(stop: threading.Event) -> int:
        raise UserError("bag-empty", "a.h5: no patches. Remove it.\nb.h5: no patches. Remove it.")

    assert run_command("momkd demo", action) == MISTAKE
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("momkd demo: ")
    assert "a.h5: no patches. Remove it." in first
    assert second == "momkd demo: b.h5: no patches. Remove it. [bag-empty]"


@pytest.mark.parametrize("status", [OK, FAILED])
def test_a_status_is_passed_on(status: int) -> None:
    assert run_command("momkd", lambda stop: status) == status


def test_a_bug_is_not_dressed_up_as_a_mistake() -> None:
    def action(stop: threading.Event) -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_command("momkd", action)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_the_command_to_end_in_order(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def action(stop: threading.Event) -> int:
        os.kill(os.getpid(), number)
        assert stop.wait(5)
        return OK

    assert run_command("momkd", action) == INTERRUPTED
    assert "momkd: stopping" in capsys.readouterr().err


def test_a_second_signal_ends_it_at_once() -> None:
    def action(stop: threading.Event) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second Ctrl-C was ignored")

    assert run_command("momkd", action) == INTERRUPTED


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    from momkd_fl import __version__

    with pytest.raises(SystemExit) as ended:
        Parser("momkd", "").parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"momkd-fl {__version__}"
