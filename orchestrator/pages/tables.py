"""Tables for people: at most as wide as the terminal, or plain columns without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

GAP: Final = "  "
LEAST_LAST: Final = 20


def columns(
    head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None, droppable: Sequence[str] = ()
) -> str:
    """Format a table. Columns that are empty in all rows are left out.

    Args:
        width: most characters of a line; None: no limit.
        droppable: heads of columns that may be dropped if the table is too wide, in this order. Before that, the last
            column is cut down to LEAST_LAST characters; after that, lines are cut.
    """
    rows = [tuple(map(plain, row)) for row in rows]
    kept = [at for at in range(len(head)) if any(row[at] for row in rows)] or list(range(len(head)))
    for name in droppable:
        if width is None or _width(head, rows, kept) <= width:
            break
        kept = [at for at in kept if head[at] != name]
    lines = [_line([row[at] for at in kept], _widths(head, rows, kept)) for row in (head, *rows)]
    return "\n".join(lines if width is None else [cut(line, width) for line in lines])


def plain(text: str) -> str:
    """Return the text as one line without control characters."""
    return text if text.isprintable() else "".join(one if one.isprintable() else " " for one in text)


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 1, 0)]}…"


def _widths(head: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[int]) -> list[int]:
    return [max(len(row[at]) for row in (head, *rows)) for at in kept]


def _width(head: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    """Return the least width of the table, with the last column cut."""
    *others, last = _widths(head, rows, kept)
    return sum(others) + min(last, LEAST_LAST) + len(GAP) * len(others)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
