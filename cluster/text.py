"""Text for people: counts, moments, near names."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable
from typing import Final

_LONGEST_WORD: Final = 300  # characters that are compared


def many(count: int, noun: str) -> str:
    """Format a count with its noun: `1 record`, `1,204 records`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def at_words(at_s: float | None) -> str:
    """Format seconds since 1970: `2026-11-25 14:21:03Z`; empty for None."""
    return "" if at_s is None else when(datetime.datetime.fromtimestamp(at_s, datetime.UTC))


def when(at: datetime.datetime) -> str:
    """Format a moment that has a time zone."""
    return f"{at.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%SZ}"


def when_written(text: str) -> str:
    """Format a moment that a file has in ISO form; text that is no moment is returned unchanged."""
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return when(at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC))


def day(at_s: float | None) -> str:
    """Format the day of seconds since 1970, in UTC; empty for None."""
    return at_words(at_s).partition(" ")[0]


def did_you_mean(word: str, choices: Iterable[str], before: str = "; ") -> str:
    """Return "; did you mean x?" for the nearest choice; empty: none is near. `before`: how the text begins."""
    near = difflib.get_close_matches(word.lower()[:_LONGEST_WORD], sorted(choices), n=1, cutoff=0.6)
    return f"{before}did you mean {near[0]}?" if near else ""


def first_line(text: str) -> str:
    """Cut a text for people for a place that has room for one line."""
    return text.partition("\n")[0]
