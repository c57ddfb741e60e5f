"""Text tables (csv, tsv, also gzipped) as numbered records."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, TextIO, cast

from momkd_fl.errors import UserError

Row = tuple[int, list[str]]
"""A record's number as a spreadsheet shows it (the header is row 1) and its cells."""

_SAVE = "Save it as 'CSV UTF-8'."


@contextmanager
def open_text(path: Path) -> Iterator[Iterator[Row]]:
    """Stream all records of a UTF-8 csv or tsv file, the header first.

    The separator is the one of comma, tab and semicolon that the first line has most of outside quotes.

    Raises
    ------
    UserError
        ``table-unreadable`` here or while the records are read.
    """
    try:
        file = cast(TextIO, _opened(path, "rt"))
    except OSError as reason:
        raise _unreadable(path, 1, reason) from None
    with file:
        yield _records(path, file)


def separator_of(line: str) -> str:
    """The separator of a header line."""
    outside_quotes = re.sub(r'"[^"]*"?', "", line)
    return max(",\t;", key=outside_quotes.count)


def _opened(path: Path, mode: str) -> IO[str] | IO[bytes]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    if mode == "rb":
        return cast(IO[bytes], opener(path, mode))
    return cast(IO[str], opener(path, mode, encoding="utf-8-sig", newline=""))


def _records(path: Path, file: TextIO) -> Iterator[Row]:
    number = 0
    try:
        first = file.readline()
        if "\0" in first:
            raise csv.Error("NUL")
        # strict: otherwise a quote that is never closed swallows all rows behind it without a word
        reader = csv.reader(chain([first], file), delimiter=separator_of(first), strict=True)
        for number, cells in enumerate(reader, 1):
            yield number, cells
    except (OSError, EOFError, zlib.error, UnicodeError, csv.Error) as reason:
        raise _unreadable(path, number + 1, reason) from None


def _unreadable(path: Path, row: int, reason: Exception) -> UserError:
    start = _beginning(path)
    if start.startswith(b"PK\x03\x04"):
        why = f"it is an Excel workbook or another archive named '{path.suffix}'. Name a workbook .xlsx."
    elif start.startswith(b"\xd0\xcf\x11\xe0"):
        why = "it is an old or password-protected Excel file. Save it as .xlsx without a password."
    elif start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        why = f"it is in UTF-16 ('Unicode text'), not in UTF-8. {_SAVE}"
    elif isinstance(reason, UnicodeError):
        why = f"line {_line_not_utf8(path)} is not UTF-8 (an export in Latin-1 or a Windows code page?). {_SAVE}"
    elif isinstance(reason, csv.Error):
        why = (
            f"row {row} is no row of a csv table ({reason}). A quotation mark may be missing or too many: mend the row."
        )
    else:
        why = f"{type(reason).__name__}. Check that the file is whole and may be read, and is csv or tsv in UTF-8."
    return UserError("table-unreadable", f"{path}: the table cannot be read: {why}")


def _beginning(path: Path) -> bytes:
    try:
        with cast(IO[bytes], _opened(path, "rb")) as file:
            return file.read(512)
    except (OSError, EOFError, zlib.error):
        return b""


def _line_not_utf8(path: Path) -> int:
    with cast(IO[bytes], _opened(path, "rb")) as file:
        return next((number for number, line in enumerate(file, 1) if not _is_utf8(line)), 1)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
