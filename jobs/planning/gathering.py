"""Simulates DeepSpeed's coordinator: which parameters a worker holds whole at each moment with ZeRO-3.

Source: `PartitionedParameterCoordinator` (runtime/zero/partitioned_param_coordinator.py) and `AllGatherCoalescedHandle`
(runtime/zero/partition_parameters.py). DeepSpeed learns the order of the modules from its first passes. Then it gathers
up to `prefetch_bucket_size` elements ahead, and keeps a parameter that is used again within `max_reuse_distance`
elements.
"""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.planning.strategy import Strategy


@dataclass(frozen=True)
class Uses:
    """Where the calls of modules in a pass use which parameters.

    Attributes:
        before: [calls + 1]; elements of the parameters of all calls before each one.
        calls_of: for each parameter, its calls in ascending order.
    """

    before: tuple[int, ...]
    calls_of: Mapping[int, tuple[int, ...]]

    @classmethod
    def of(cls, calls: Iterable[Sequence[tuple[int, int]]]) -> Uses:
        """Take the (parameter, elements) of each call, in the order of the calls."""
        sizes, calls_of = list[int](), dict[int, list[int]]()
        for number, used in enumerate(calls):
            sizes.append(sum(elements for _, elements in used))
            for parameter, _ in used:
                calls_of.setdefault(parameter, []).append(number)
        before = tuple(itertools.accumulate(sizes, initial=0))
        return cls(before, {one: tuple(found) for one, found in calls_of.items()})

    def is_soon(self, parameter: int, call: int, distance: int) -> bool:
        """Whether this call or a later one, fewer than `distance` elements ahead, uses the parameter."""
        calls = self.calls_of.get(parameter, ())
        place = bisect.bisect_left(calls, call)
        return place < len(calls) and self.before[calls[place]] - self.before[call] < distance


@dataclass
class _Group:
    """Parameters that are gathered into one flat tensor, which is freed once modules have waited for all of them."""

    flat: int  # bytes
    waiting: set[int]
    members: tuple[int, ...]
    copied: bool = False


@dataclass
class Gathering:
    """The parameters that are whole, in bytes. Call `enter` and `leave` in the order of the trace."""

    sizes: Sequence[int]
    visits: Sequence[tuple[int, ...]]  # parameters of every module that runs, forward and backward, in order
    strategy: Strategy
    num_workers: int
    element_bytes: int  # bytes of an element
    gloo: bool  # gloo gathers into a copy of the flat tensor, which lives until the slowest worker gathers too
    held: int = 0
    _step: int = 0
    _live: int = 0  # elements, without persistent ones
    _whole: set[int] = field(default_factory=set)
    _flying: dict[int, _Group] = field(default_factory=dict)
    _fetched_for: dict[int, int] = field(default_factory=dict)
    _queue: deque[tuple[int, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._uses = Uses.of([(number, self.sizes[number]) for number in visit] for visit in self.visits)
        self._persistent = {
            number for number, size in enumerate(self.sizes) if size <= self.strategy.param_persistence_threshold
        }
        self._whole |= self._persistent
        self.held = self.element_bytes * sum(self.sizes[number] for number in self._persistent)
        self._queue.extend((number, step) for step, visit in enumerate(self.visits) for number in sorted(visit))

    def enter(self, parameters: tuple[int, ...]) -> int:
        """Make a module's parameters whole, and fetch ahead. Returns the most bytes that this adds for a moment."""
        before = self.held
        missing = [number for number in parameters if number not in self._whole and number not in self._flying]
        if missing:
            self._gather(missing)
        most = self.held
        for number in parameters:
            group = self._flying.pop(number, None)
            if group is None:
                continue
            if not group.copied:
                self._land(group)
                most = max(most, self.held)
            group.waiting.discard(number)
            if not group.waiting and len(group.members) > 1:
                self.held -= group.flat
        self._fetch_ahead(parameters)
        most = max(most, self.held)
        self._step += 1
        return most - before

    def leave(self, parameters: tuple[int, ...]) -> None:
        """Free a module's parameters, except those that are needed again soon."""
        for number in parameters:
            kept = number in self._persistent or self._fetched_for.get(number, -1) > self._step
            kept = kept or self._uses.is_soon(number, self._step, self.strategy.max_reuse_distance)
            if number in self._whole and not kept:
                self._whole.discard(number)
                self._live -= self.sizes[number]
                self.held -= self._bytes(number)

    def _gather(self, numbers: list[int]) -> None:
        self._live += sum(self.sizes[number] for number in numbers)
        flat = sum(self._bytes(number) for number in numbers)
        group = _Group(flat, set(numbers), tuple(numbers))
        self.held += 2 * flat if self.gloo else flat
        self._flying.update(dict.fromkeys(numbers, group))

    def _land(self, group: _Group) -> None:
        """Finish a gathering. A single parameter is the flat tensor; of several, each is a copy out of it."""
        group.copied = True
        self._whole.update(group.members)
        if self.gloo:
            self.held -= group.flat
        if len(group.members) > 1:
            self.held += group.flat

    def _fetch_ahead(self, parameters: tuple[int, ...]) -> None:
        new = sum(self._fetched_for.get(number, -1) < self._step for number in parameters)
        seen: set[int] = set()
        while self._queue and len(seen) < new:
            number, step = self._queue.popleft()
            self._fetched_for[number] = step
            seen.add(number)
        room = min(self.strategy.max_live_parameters - self._live, self.strategy.prefetch_bucket_size)
        ahead: list[int] = []
        elements = 0
        while self._queue and elements < room:
            number, step = self._queue.popleft()
            self._fetched_for[number] = max(self._fetched_for.get(number, -1), step)
            if number not in self._whole and number not in self._flying and number not in ahead:
                ahead.append(number)
                elements += self.sizes[number]
        if ahead:
            self._gather(ahead)

    def _bytes(self, number: int) -> int:
        return -(-self.sizes[number] // self.num_workers) * self.num_workers * self.element_bytes
