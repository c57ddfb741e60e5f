"""Excel workbooks (.xlsx) as numbered records of text."""

from __future__ import annotations

import datetime
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from momkd_fl.data.listing import listed
from momkd_fl.data.tables_text import Row
from momkd_fl.errors import UserError

LARGEST_BYTES = 512 * 1024**2
"""Most that a workbook's parts may declare to unpack to, together."""

_ROWS, _COLUMNS = 1_048_576, 16_384
"""What a sheet can have; a file that claims more is no sheet."""

_SUFFIXES = (".xlsx", ".xlsm", ".xls")

_Cells = tuple[Any, ...]


def is_workbook(path: Path) -> bool:
    """Whether the file's name says that it is a workbook."""
    return path.suffix.lower() in _SUFFIXES


@contextmanager
def open_sheet(path: Path, sheet: str | None = None) -> Iterator[tuple[Iterator[Row], tuple[str, ...]]]:
    """Stream all records of one sheet, the header first, and what should be said about the choice of sheet.

    Numbers, dates and truth values become the text that a csv export would have (1.0 is '1'). Cells
    beyond the header's last are left out where they are empty.

    Parameters
    ----------
    sheet : str, optional
        The sheet's name; None: the first that is not hidden.

    Raises
    ------
    UserError
        ``table-unreadable``, ``table-too-large``, ``sheet-unknown``; and while the records are read
        ``table-formula``, where a formula has no stored result.
    """
    _check_archive(path)
    with ExitStack() as stack:
        book = _load(path, stack, data_only=True)
        sheets = [each.title for each in book.worksheets]
        shown = [each.title for each in book.worksheets if each.sheet_state == "visible"] or sheets
        if not sheets or (sheet is not None and sheet not in sheets):
            raise UserError(
                "sheet-unknown",
                f"{path}: there is no sheet '{sheet or 1}'; it has {listed(sheets, separator=', ') or 'none'}. "
                "Correct the setting 'sheet' of this table.",
            )
        name = sheet or shown[0]
        notes: tuple[str, ...] = ()
        if sheet is None and len(sheets) > 1:
            notes = (f"{path} has {len(sheets)} sheets; '{name}', the first, was read. Set 'sheet' to read another.",)

        def formulas() -> Iterator[_Cells]:
            return _cells(path, _load(path, stack, data_only=False)[name])

        yield _records(path, _cells(path, book[name]), formulas), notes


def _check_archive(path: Path) -> None:
    """Refuse what is no workbook, or would unpack to more memory than a table needs."""
    try:
        with path.open("rb") as file:
            if file.read(4) == b"\xd0\xcf\x11\xe0":
                raise UserError(
                    "table-unreadable",
                    f"{path}: this is an old or password-protected Excel file. Save it as .xlsx without a password.",
                )
        with zipfile.ZipFile(path) as archive:  # zipfile never unpacks more of a part than it declares
            declared = sum(part.file_size for part in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as reason:
        raise _damaged(path, reason) from None
    if declared > LARGEST_BYTES:
        raise UserError(
            "table-too-large",
            f"{path}: the workbook unpacks to {declared // 1024**2} MB, more than {LARGEST_BYTES // 1024**2} MB. "
            "Save the sheet as csv.",
        )


def _damaged(path: Path, reason: Exception) -> UserError:
    return UserError(
        "table-unreadable",
        f"{path}: the workbook cannot be read ({type(reason).__name__}): it is no .xlsx file, or damaged. "
        "Save it as .xlsx again, or as csv.",
    )


def _load(path: Path, stack: ExitStack, *, data_only: bool) -> Any:
    import openpyxl  # not needed by sites whose tables are text

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and validation, which no table needs
            book = openpyxl.load_workbook(path, read_only=True, data_only=data_only, keep_links=False)
    except Exception as reason:  # a damaged workbook raises anything
        raise _damaged(path, reason) from None
    stack.callback(book.close)
    return book


def _cells(path: Path, sheet: Any) -> Iterator[_Cells]:
    """The sheet's rows, with those that the file leaves out."""
    sheet.reset_dimensions()  # what a file declares may be wrong, and would be padded to
    rows = sheet.iter_rows()
    count = 0
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cells = next(rows, None)
        except Exception as reason:  # as in _load
            raise _damaged(path, reason) from None
        if cells is None:
            return
        count += 1
        if count > _ROWS or len(cells) > _COLUMNS:
            raise _damaged(path, OverflowError())
        yield tuple(cells)


def _records(path: Path, rows: Iterator[_Cells], formulas: Callable[[], Iterator[_Cells]]) -> Iterator[Row]:
    width = 0
    behind: Iterator[tuple[int, _Cells]] | None = None
    for number, cells in enumerate(rows, 1):
        # 'n' without a value is an empty cell or a formula never computed; only the formulas' view tells which
        empty = [place for place, cell in enumerate(cells) if cell.value is None and cell.data_type == "n"]
        if empty:
            behind = behind or enumerate(formulas(), 1)
            written = next((each for row, each in behind if row == number), ())
            for place in empty:
                if place < len(written) and written[place].data_type == "f":
                    raise UserError(
                        "table-formula",
                        f"{path}, cell {written[place].coordinate}: the formula has no stored result. Open the "
                        "workbook in Excel and save it, or replace formulas by their values.",
                    )
        texts = [_text(cell.value) for cell in cells]
        while len(texts) > width and not texts[-1].strip():
            texts.pop()
        width = width or len(texts)
        yield number, texts + [""] * (width - len(texts))


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        # 15 digits are what Excel keeps and shows; more would be the noise of binary fractions
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else format(value, ".15g")
    if isinstance(value, datetime.datetime):
        return str(value.date()) if value.time() == datetime.time() else str(value)
    return str(value)
