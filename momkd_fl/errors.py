"""The one kind of error a person is meant to read.

Any room may raise it; it imports nothing. Every code is stable and listed in
``docs/errors.md`` (written from the calls in the source by ``make docs``).
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake a person can mend.

    Parameters
    ----------
    code : str
        Stable, readable identifier such as ``bag-empty``; listed in docs/errors.md.
    sentence : str
        What is wrong, where (file, row, field, site) and what to do. Shown as it is,
        without a traceback. It may name a local file: it is for the screen of the room
        it was raised in, and never leaves that room (only ``code`` may).
    """

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence

    def __str__(self) -> str:
        return f"{self.sentence} [{self.code}]"
