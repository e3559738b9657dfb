"""Words for people that several places need."""

from __future__ import annotations


def many(count: int, noun: str) -> str:
    """`1 record`, `1,204 records`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
