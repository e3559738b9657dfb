"""All that is wrong with a submission, in one message."""

from __future__ import annotations

from cluster.errors import InputError
from orchestrator.queue.errors import QueueError

_SHOWN = 20


class Problems:
    """Collects what is wrong with each of several specs."""

    def __init__(self, specs: int) -> None:
        self._several = specs > 1
        self._found: list[tuple[int, InputError]] = []

    def add(self, number: int, error: InputError) -> None:
        """`number`: of the spec, from 1 on."""
        self._found.append((number, error))

    def check(self) -> None:
        """Raises what there is: an error of the one class that all are of, or else a QueueError."""
        if not self._found:
            return
        lines = [self._line(number, error) for number, error in self._found[:_SHOWN]]
        if len(self._found) > _SHOWN:
            lines.append(f"and {len(self._found) - _SHOWN} more")
        kinds = {type(error) for _, error in self._found}
        kind = kinds.pop() if len(kinds) == 1 else QueueError
        raise kind("\n".join(lines))

    def _line(self, number: int, error: InputError) -> str:
        if not self._several:
            return str(error)
        return "\n".join(f"spec {number}: {line}" for line in str(error).splitlines())
