"""Predicts the memory of a long row's pass from passes of short rows, for models that compute token after token.

Such a model, as Mamba without its kernel, starts several operators for each token, so that the pass of a long row takes
minutes to trace. What it holds after each operator is a polynomial in the length of the row. Operators are matched from
the beginning and from the end of each interval between two events; a loop over the tokens lies between them, and holds
most in its first or in its last turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from jobs.preflight.traced_pass import TracedPass
from jobs.preflight.tracker import Event

# Tokens between two lengths. Few are traced sooner, but a kernel or a block of the model may be wider than the rows.
STEPS: Final = (4, 8)
_PASSES: Final = 4  # three determine a parabola (attention may have one), and the fourth one must lie on it


class NotAParabolaError(Exception):
    """Raised when short rows do not determine what long ones need."""


def lengths_for(seq_len: int, step: int) -> tuple[int, ...]:
    """Return the lengths of the short rows, which are a multiple of `step` tokens away from `seq_len`."""
    return tuple(step * number + seq_len % step for number in range(1, _PASSES + 1))


def lengthened(trace: Callable[[int], TracedPass], seq_len: int, step: int) -> TracedPass:
    """Return the pass of rows of `seq_len` tokens. `trace` makes the pass of rows of another length, with details.

    Args:
        step: see `lengths_for`.

    Raises:
        NotAParabolaError: the passes of short rows do not determine that of long ones.
    """
    lengths = lengths_for(seq_len, step)
    passes = [trace(length) for length in lengths]
    turns = (seq_len - lengths[0]) // step

    def at_length(values: Sequence[int]) -> int:
        return _continued(values, turns)

    if len({tuple((event.kind, event.place, event.parameters) for event in one.events) for one in passes}) > 1:
        raise NotAParabolaError("the order of the modules depends on the length of the rows")
    events, before = list[Event](), 0
    for several in zip(*(one.events for one in passes), strict=True):
        sums = {
            name: at_length([getattr(event, name) for event in several]) for name in ("live", "flops", "operations")
        }
        peak = max(sums["live"], before, *map(at_length, _matched([event.details for event in several])))
        events.append(replace(several[0], peak=peak, details=(), **sums))
        before = sums["live"]
    growing = ("buffer_bytes", "logits", "logits_bytes", "flops", "operations")
    sums = {name: at_length([getattr(one, name) for one in passes]) for name in growing}
    return replace(passes[-1], events=tuple(events), **sums)


def _continued(values: Sequence[int], turns: int) -> int:
    """Return the value at place `turns` of the parabola through the values at places 0, 1 and so on."""
    first, second = values[1] - values[0], values[2] - 2 * values[1] + values[0]
    if values[3] != values[0] + 3 * first + 3 * second:
        raise NotAParabolaError(f"{values} do not lie on a parabola")
    return values[0] + turns * first + turns * (turns - 1) // 2 * second


def _matched(several: Sequence[tuple[tuple[str, int], ...]]) -> list[tuple[int, ...]]:
    """Return, for each operator of the shortest pass, the bytes that each pass holds after it."""
    shortest = min(map(len, several))
    ahead = _alike(several, shortest)
    back = _alike([details[::-1] for details in several], shortest)
    if len(ahead) + len(back) < shortest:
        raise NotAParabolaError("the operators of short and long rows differ")
    # Both may go on beyond the loop, where operators match only by chance. The cut is in the middle of the loop.
    cut = (shortest - len(back) + len(ahead)) // 2
    return [*ahead[:cut], *back[: shortest - cut]]


def _alike(several: Sequence[tuple[tuple[str, int], ...]], shortest: int) -> list[tuple[int, ...]]:
    found = []
    for number in range(shortest):
        if len({details[number][0] for details in several}) > 1:
            break
        found.append(tuple(details[number][1] for details in several))
    return found
