"""All that is wrong with a submission, in one message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.errors import InputError
from orchestrator.queue.errors import QueueError

_MOST_LINES, _LONGEST_LINE, _MOST_CHARACTERS = 20, 1_000, 8_000


class Problems:
    """Collects what is wrong with each of several specs."""

    def __init__(self, specs: int) -> None:
        self._several = specs > 1
        self._found: list[tuple[int, InputError]] = []
        self._left_out = 0

    def add(self, number: int, error: InputError) -> None:
        """`number`: of the spec, from 1 on."""
        self._found.append((number, error))

    @property
    def full(self) -> bool:
        """Whether there is as much as is told: to look for more would only take time."""
        return len(self._found) >= _MOST_LINES

    def leave_out(self, specs: int) -> None:
        """So many specs were not looked at."""
        self._left_out = specs

    def check(self) -> None:
        """Raises what there is: an error of the one class that all are of, or else a QueueError."""
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
    """The first of them, as many as a reader takes in: a message of ten thousand wrong specs helps nobody."""
    told: list[str] = []
    for line in lines[:_MOST_LINES]:
        line = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."
        if told and sum(map(len, told)) + len(line) > _MOST_CHARACTERS:
            break
        told.append(line)
    return told
