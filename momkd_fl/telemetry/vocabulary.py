"""The words that metrics and logs may use: nothing else gets a label or a field.

Words are closed sets so that no patient id, path or exception text can slip in as a value.
"""

from __future__ import annotations

from typing import Final

PHASES: Final = (
    "provision",
    "load",
    "gather",
    "hello",
    "plan",
    "init",
    "train",
    "statistics",
    "evaluate",
    "aggregate",
    "checkpoint",
    "send",
    "receive",
    "wait",
    "finish",
    "report",
)
"""Parts of a run that are timed, at the coordinator and at the sites."""

SITE_STATES: Final = ("expected", "online", "working", "done", "late", "missing", "refused", "finished")
"""A site as the coordinator sees it.

``expected``: listed, not yet seen; ``online``: connected; ``working``: has the round's message;
``done``: replied; ``late``: did not reply before the deadline; ``missing``: its session is gone;
``refused``: stopped by a fingerprint or reply that does not fit; ``finished``: took its farewell.
"""

CONNECTION_STATES: Final = ("connecting", "active", "working", "waiting", "finished", "stopped")
"""The coordinator as a site sees it."""

OUTCOMES: Final = ("ok", "below_quorum", "timed_out", "refused", "failed", "resumed", "stopped")
"""How a round, a message or a run ended."""

CREDENTIALS: Final = ("certificate", "root", "allow-list", "contract")
"""What ends some day and has to be renewed before."""

LEVELS: Final = ("info", "warning", "error")
"""Severity of a log line."""

DEVICES: Final = ("cpu", "cuda")
"""Where a site computes."""


def must_be(word: str, words: tuple[str, ...], what: str) -> str:
    """``word`` itself where it is one of ``words``; a ValueError that does not repeat it where not."""
    if word not in words:
        raise ValueError(f"this {what} is not in the telemetry vocabulary ({', '.join(words)})")
    return word
