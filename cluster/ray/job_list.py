"""Which entries of Ray's list of jobs are deleted. Ray itself keeps and lists every job until its head ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Keeping:
    """How long an entry of an attempt that is over stays in Ray's list. The output can be read for as long.

    Attributes:
        kept_s: no longer than this after its end.
        most: number of entries that are kept among those that ended longer ago than `least_s`, the newest ones. Ray's
            maintainers call about 1,000 entries fine.
        least_s: at least this long after its end, longer than any request for its start may be under way.
    """

    kept_s: float = 7 * 86_400.0
    most: int = 500
    least_s: float = 3600.0


def entries_to_delete(
    ended_s: Mapping[str, float], over: Iterable[str], helpers: Collection[str], now_s: float, keeping: Keeping
) -> list[str]:
    """Names of the entries that are not needed any more, the oldest first.

    Args:
        ended_s: when each entry ended, by name.
        over: those that no lease will ever be for again.
        helpers: jobs that ended a program; needed no longer than that.
    """
    oldest_first = sorted((name for name in over if name in ended_s), key=lambda name: ended_s[name])
    too_many = max(len(oldest_first) - keeping.most, 0)
    due = [
        name
        for place, name in enumerate(oldest_first)
        if now_s - ended_s[name] > (keeping.least_s if place < too_many else max(keeping.kept_s, keeping.least_s))
    ]
    return [*(name for name in helpers if name in ended_s), *due]
