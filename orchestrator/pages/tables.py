"""Tables and texts that fit a width. The width of a text is in cells of the terminal; wide characters have two."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

GAP: Final = "  "
LEAST_LAST: Final = 20
_NEWLINES = {"\n": "↵", "\u2028": "↵", "\u2029": "↵", "\t": " "}
_JOINERS = "\u200c\u200d"  # these are parts of words in some scripts, and of emoji

# Escape sequences other than colours, and control characters.
_CONTROL = re.compile(
    r"\x1b\[[0-9;:?]*[ -/]*[@-ln-~]"  # moves, erases, queries
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # sets titles, clipboards
    r"|\x1b(?!\[[0-9;]*m)"
    r"|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f\x80-\x9f]"
)


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
    lines = aligned([[row[at] for at in kept] for row in (head, *rows)])
    return "\n".join(lines if width is None else [cut(line, width) for line in lines])


def plain(text: str) -> str:
    """Return the text as one line, with spaces in place of control characters; see also `shown`."""
    return text if text.isprintable() else "".join(one if one.isprintable() else " " for one in text)


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 1, 0)]}…"


def _width(head: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    """Return the least width of the table, with the last column cut."""
    *others, last = [max(cells(row[at]) for row in (head, *rows)) for at in kept]
    return sum(others) + min(last, LEAST_LAST) + len(GAP) * len(others)


def aligned(rows: Sequence[Sequence[str]], words: int | None = None, indent: str = "") -> list[str]:
    """Align columns: the first `words` of them (default: all) to the left, the others to the right."""
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    words = len(widths) if words is None else words
    return [
        (indent + GAP.join(padded(cell, widths[at], at >= words) for at, cell in enumerate(row))).rstrip()
        for row in rows
    ]


def table(rows: Iterable[tuple[str, str | None]], indent: str = "") -> str:
    """Align two columns. Rows with None are left out."""
    return "\n".join(aligned([(name, text) for name, text in rows if text is not None], indent=indent))


def padded(text: str, width: int, right: bool = False) -> str:
    gap = " " * (width - cells(text))
    return gap + text if right else text + gap


def shown(text: str) -> str:
    """Return the text on one line, with control and invisible characters written as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text.replace("\r\n", "\n")))


def printable(text: str) -> str:
    """Return a line without sequences that move the cursor. Colours are kept.

    If carriage returns overwrite the line, as progress bars do, the last version is returned.
    """
    last = next((part for part in reversed(text.split("\r")) if part), "")
    return _CONTROL.sub("", last)


def printable_lines(text: str) -> str:
    """Apply `printable` to each line of a text, such as the end of a log. Only newlines end a line."""
    return "\n".join(map(printable, text.split("\n")))


def _shown(character: str) -> str:
    if character in _NEWLINES:
        return _NEWLINES[character]
    code = ord(character)
    no_character = code & 0xFFFE == 0xFFFE  # a noncharacter, which XML does not allow either
    if no_character or (unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in _JOINERS):
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    return character


def cells(text: str) -> int:
    """Return the number of cells that a terminal needs for a text."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf") and character != "\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shortened(text: str, width: int) -> str:
    """Return the beginning of a text, with an ellipsis if something is left out."""
    begin = shown(text[: 4 * width])
    if len(text) <= 4 * width and cells(begin) <= width:
        return begin
    return _beginning(begin, width - 1).rstrip() + "…"


def shortened_within(text: str, width: int) -> str:
    """Return the beginning and the end of a path, with an ellipsis between them if it is too long."""
    whole = shown(text)
    if cells(whole) <= width:
        return whole
    end = _beginning(whole[::-1], (width - 1) * 2 // 3)[::-1]
    return f"{_beginning(whole, width - 1 - cells(end))}…{end}"


def _beginning(text: str, width: int) -> str:
    ends = itertools.accumulate(map(_cells, text))
    return text[: next((index for index, end in enumerate(ends) if end > width), len(text))]


def wrapped(text: str, width: int, first: str = "", indent: str = "") -> list[str]:
    """Split a text into lines at spaces. A word that is too long is broken.

    Args:
        first, indent: text before the first line, and before each other line.
    """
    lines, line, empty = list[str](), first, True
    for word in re.split(r" +(?!%)", shown(text).strip()):
        if not empty and cells(line) + 1 + cells(word) > width:
            lines, line, empty = [*lines, line], indent, True
        line, empty = line + ("" if empty else " ") + word, False
        while cells(line) > width:
            begin = _beginning(line, width)
            lines, line = [*lines, begin], indent + line[len(begin) :]
    return [*lines, line]
