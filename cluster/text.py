"""Words for people that several places need."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable
from typing import Final

_LONGEST_WORD: Final = 300  # characters that are compared


def many(count: int, noun: str) -> str:
    """`1 record`, `1,204 records`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def at_words(at_s: float | None) -> str:
    """`2026-11-25 14:21:03Z`; empty for None."""
    return "" if at_s is None else when(datetime.datetime.fromtimestamp(at_s, datetime.UTC))


def when(at: datetime.datetime) -> str:
    """Of a moment that knows its zone."""
    return f"{at.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%SZ}"


def when_written(text: str) -> str:
    """Of one that a file has, in whatever release's form; what is no moment stays as it is."""
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return when(at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC))


def day(at_s: float | None) -> str:
    """In UTC; empty for None."""
    return at_words(at_s).partition(" ")[0]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """ "; did you mean x?", or nothing where nothing is near."""
    near = difflib.get_close_matches(word.lower()[:_LONGEST_WORD], sorted(choices), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
