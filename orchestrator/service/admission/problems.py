"""The problems of a submission, in one message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.errors import InputError
from orchestrator.queue.errors import QueueError

_MOST_LINES, _LONGEST_LINE, _MOST_CHARACTERS = 20, 1_000, 8_000


class Problems:
    """Collects the problems of several specs."""

    def __init__(self, specs: int) -> None:
        self._several = specs > 1
        self._found: list[tuple[int, InputError]] = []
        self._left_out = 0

    def add(self, number: int, error: InputError) -> None:
        """Add a problem. `number`: of the spec, counted from 1."""
        self._found.append((number, error))

    @property
    def full(self) -> bool:
        """Whether enough problems were found, so that more would not be shown."""
        return len(self._found) >= _MOST_LINES

    def leave_out(self, specs: int) -> None:
        """Note that so many specs were not checked."""
        self._left_out = specs

    def check(self) -> None:
        """Raise the problems, if any: as their common class if they share one, else as QueueError."""
        if not self._found:
            return
        lines = list(self._lines())
        told = _fitting(lines)
        if len(lines) > len(told):
            told.append(f"and {len(lines) - len(told):,} more")
        if self._left_out:
            told.append(f"the {self._left_out:,} specs after that were not looked at")
        kinds = {type(error) for _, error in self._found}
        kind = kinds.pop() if len(kinds) == 1 else QueueError
        raise kind("\n".join(told))

    def _lines(self) -> Iterator[str]:
        for number, error in self._found:
            for line in str(error).splitlines():
                yield f"spec {number}: {line}" if self._several else line


def _fitting(lines: Sequence[str]) -> list[str]:
    """Return the first lines, as many as fit the size of a readable message."""
    told: list[str] = []
    for line in lines[:_MOST_LINES]:
        line = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."
        if told and sum(map(len, told)) + len(line) > _MOST_CHARACTERS:
            break
        told.append(line)
    return told
