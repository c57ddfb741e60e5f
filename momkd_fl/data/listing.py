"""Findings as words: which rows, which names, and how many more."""

from __future__ import annotations

from collections.abc import Sequence


def listed(items: Sequence[str], limit: int = 10, separator: str = "; ") -> str:
    """The first ``limit`` items, and how many more there are.

    >>> listed(["a", "b", "c"], limit=2)
    'a; b; and 1 more'
    """
    more = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return separator.join([*items[:limit], *more])


def rows_named(numbers: Sequence[int], limit: int = 10) -> str:
    """Row numbers as a person would say them.

    >>> rows_named([3, 6, 9])
    'rows 3, 6 and 9'
    """
    words = [str(number) for number in numbers[:limit]]
    if len(numbers) > limit:
        words.append(f"{len(numbers) - limit} more")
    if len(words) == 1:
        return f"row {words[0]}"
    return f"rows {', '.join(words[:-1])} and {words[-1]}"
