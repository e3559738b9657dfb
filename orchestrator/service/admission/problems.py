"""The problems of a submission, in one error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.errors import InputError, Mistake
from orchestrator.queue.errors import QueueError

_MOST_LINES, _LONGEST_LINE, _MOST_CHARACTERS = 20, 1_000, 8_000


class Problems:
    """Collects the problems of several specs."""

    def __init__(self, specs: int) -> None:
        self._several = specs > 1
        self._kinds: set[type[InputError]] = set()
        self._found: list[Mistake] = []
        self._errors = self._left_out = 0

    def add(self, number: int, error: InputError) -> None:
        """Add the mistakes of one spec. `number`: number of the spec, counted from 1."""
        self._errors += 1
        self._kinds.add(type(error))
        self._found += (replace(one, spec=number) if self._several else one for one in error.mistakes)

    @property
    def full(self) -> bool:
        """Whether enough problems were found, so that more would not be shown."""
        return self._errors >= _MOST_LINES

    def leave_out(self, specs: int) -> None:
        """Record the number of specs that were not checked."""
        self._left_out = specs

    def check(self) -> None:
        """Raise the problems, if any: as their common class if they share one, else as QueueError."""
        if not self._found:
            return
        told = _fitting(self._found)
        if len(self._found) > len(told):
            told.append(Mistake(f"and {len(self._found) - len(told):,} more"))
        if self._left_out:
            told.append(Mistake(f"the {self._left_out:,} specs after that were not looked at"))
        raise (next(iter(self._kinds)) if len(self._kinds) == 1 else QueueError).of(told)


def _fitting(found: Sequence[Mistake]) -> list[Mistake]:
    """Return the first mistakes, as many as fit the size of a readable message."""
    told: list[Mistake] = []
    for one in found[:_MOST_LINES]:
        if len(one.message) > _LONGEST_LINE:
            one = replace(one, message=f"{one.message[:_LONGEST_LINE]}...")
        if told and sum(len(str(other)) for other in told) + len(str(one)) > _MOST_CHARACTERS:
            break
        told.append(one)
    return told
