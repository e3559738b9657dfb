"""Text for people: counts, sizes, durations, moments, near names, the error line of a program."""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Iterable
from typing import Final

_BYTES: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_LONGEST_WORD: Final = 300  # characters that are compared
TAIL_BYTES = 4096  # end of a program's output in which its error line is looked for
_LONGEST_ERROR = 500
_ERROR = re.compile(r"^(?:\S+ \S+Z )?(?:error|failed): (?P<said>\S.*)$", re.MULTILINE)


def many(count: int, noun: str) -> str:
    """Format a count with its noun: `1 record`, `1,204 records`, `2 processes`."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def format_time(at_s: float | None) -> str:
    """Format seconds since 1970: `2026-11-25 14:21:03Z`; empty for None."""
    return "" if at_s is None else when(datetime.datetime.fromtimestamp(at_s, datetime.UTC))


def when(at: datetime.datetime) -> str:
    """Format a moment that has a time zone."""
    return f"{at.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%SZ}"


def when_written(text: str) -> str:
    """Format a moment that a file has in ISO form; any other text is returned unchanged."""
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return when(at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC))


def day(at_s: float | None) -> str:
    """Format the day of seconds since 1970, in UTC; empty for None."""
    return format_time(at_s).partition(" ")[0]


def byte_size(count: int) -> str:
    """Format a number of bytes in powers of 1000: `0 B`, `312 kB`, `45.2 MB`, `1.3 TB`."""
    size, power = float(count), 0
    while size >= 999.5 and power < len(_BYTES) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.0f} {_BYTES[power]}" if power < 2 else f"{size:.1f} {_BYTES[power]}"


def duration(seconds: float) -> str:
    """Format a duration: `45 s`, `3m20s` or `2h05m`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def long_duration(seconds: float) -> str:
    """Format a duration as `duration` does, and two days or more as `2.1 days`."""
    return f"{seconds / 86_400:.1f} days" if seconds >= 2 * 86_400 else duration(max(seconds, 0.0))


def span(seconds: float) -> str:
    """Format a duration in one unit: `40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def compact(value: float) -> str:
    """Format a number with at most three digits: `0.25`, `950`, `1.2k`, `35M`."""
    for unit, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * 0.9995:
            return f"{float(f'{value / unit:.3g}'):g}{sign}"
    return f"{float(f'{value:.3g}'):g}"


def grouped(value: float) -> str:
    """Format a number as in `1,024`; fractions and large numbers as `compact` does."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e6 else compact(value)


def percent(part: float, whole: float = 1.0) -> str:
    """Format a percentage. `0 %` and `100 %` mean exactly none and all."""
    share = 100 * part / whole if whole else 0.0
    if share in (0, 100):
        return f"{share:.0f} %"
    if share < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if 99.95 <= share < 100 else f"{share:.1f} %"


def did_you_mean(word: str, choices: Iterable[str], before: str = "; ") -> str:
    """Return "; did you mean x?" for the nearest choice, whatever its case; empty: none is near.

    Args:
        before: beginning of the text.
    """
    near = nearest(word, choices)
    return "" if near is None else f"{before}did you mean {near}?"


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the choice that is nearest to a word, whatever its case; None: none is near.

    Args:
        cutoff: least similarity, from 0 to 1, as difflib computes it.
    """
    by_lower = {choice.lower(): choice for choice in sorted(choices)}
    near = difflib.get_close_matches(word.lower()[:_LONGEST_WORD], by_lower, n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else None


def first_line(text: str) -> str:
    """Return the first line of a text."""
    return text.partition("\n")[0]


def one_line(error: BaseException | str) -> str:
    """Return one line for an error: its first line, the last line if it is a traceback, or its class if it is empty."""
    lines = str(error).strip().splitlines() or ["" if isinstance(error, str) else type(error).__name__]
    return lines[-1 if "Traceback" in str(error) else 0][:_LONGEST_ERROR]


def error_line(tail: str) -> str:
    """Return the text of the last line that begins with `error: ` or `failed: `; empty: there is no such line."""
    said = [match["said"].strip() for match in _ERROR.finditer(tail)]
    return said[-1][:_LONGEST_ERROR] if said else ""
