"""Entries of Ray's list of jobs that can be deleted. Ray itself keeps and lists every job until its head ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OutputRetention:
    """How long entries of ended attempts stay in Ray's list. Their output can be read for the same time.

    Attributes:
        kept_s: longest time that an entry stays after its end.
        most: most entries that stay after `least_s`; the oldest go first. Ray's maintainers call about 1,000 entries
            fine.
        least_s: shortest time that an entry stays. It is longer than a request to start the attempt can be under way.
    """

    kept_s: float = 7 * 86_400.0
    most: int = 500
    least_s: float = 3600.0


def entries_to_delete(
    ended_s: Mapping[str, float], over: Iterable[str], helpers: Collection[str], now_s: float, keeping: OutputRetention
) -> list[str]:
    """Return the names of entries that can be deleted, the oldest first.

    Args:
        ended_s: when each entry ended, by name.
        over: names of attempts that will never hold a lease again.
        helpers: names of jobs that only stopped another program. They are not needed after their end.
    """
    oldest_first = sorted((name for name in over if name in ended_s), key=lambda name: ended_s[name])
    too_many = max(len(oldest_first) - keeping.most, 0)
    due = [
        name
        for place, name in enumerate(oldest_first)
        if now_s - ended_s[name] > (keeping.least_s if place < too_many else max(keeping.kept_s, keeping.least_s))
    ]
    return [*(name for name in helpers if name in ended_s), *due]
