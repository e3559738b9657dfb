"""A row order over several sections of the data, which are used in proportion to their weights.

It is used in place of `row_order.ShuffledRows` if the sources have weights, and holds one of these for each section.
Like that, it is a pure function: for any position it computes which section the row comes from, and which use of that
section it is. Use k of a section is the k-th row drawn from it, counted from 0 through all its epochs.
Nothing depends on workers, on restarts or on the ranges that are requested, and only a few numbers are stored.

The positions are divided into short cycles. Each cycle has as many rows of every section as its share says, rounded so
that errors never accumulate (often none, if a share is tiny). A keyed permutation scatters the rows over the cycle.
Cycles are short so that rows that are read in succession lie together: a section's uses are out of order only within a
cycle. Each section goes through an endless sequence of permuted epochs.

The weights may change at a position. The cycle there is cut short, and a new one begins with the new shares. All rows
before that position stay what they were.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from jobs.data.order.permutation import Rows, key, keys, walk
from jobs.data.order.row_order import ShuffledRows

_MIX, _SECTION = 5, 6  # purposes of keys; `jobs.data.order.row_order` uses 1 to 4
_SHARE_BITS = 20  # shares are multiples of 2**-20, so that all arithmetic on positions is exact in int64
_ALL = 1 << _SHARE_BITS
_MAX_SECTIONS = 2**14  # their numbers are sorted as 16-bit integers, and with more sections shares would be coarse
_MIN_CYCLE = 64
_MOST_USES = 2**36  # with a higher limit, a section counts as unlimited
_PIECE_ROWS = 2**15  # rows permuted at once, so that numpy's passes stay in a core's cache
# Rows gathered by section at once: `ShuffledRows` computes whole windows, so each section asks for many.
_STRETCH_ROWS = 2**18


@dataclass(frozen=True)
class MixedSection:
    """A part of the data that takes part in a mixture.

    Attributes:
        rows: number of its rows, at least 1.
        weight: its share is this, divided by the sum over all sections that still take part.
        max_epochs: it is used at most floor(max_epochs * rows) times and then drops out; None for no limit.
    """

    rows: int
    weight: float
    max_epochs: float | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a section of a mixture needs rows, this one has {self.rows}")
        for name, value in (("weight", self.weight), ("max_epochs", self.max_epochs)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} of a section must be a number above 0, not {value}")

    @property
    def max_uses(self) -> int | None:
        return None if self.max_epochs is None else math.floor(_exact(self.max_epochs) * self.rows)


class Weights(NamedTuple):
    """The weights of all sections from a position on."""

    position: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class _Phase:
    """A range of the mixture in which the same sections take part with the same shares from start to end.

    Within a phase, sections are numbered anew, and positions and cycles are counted from its start.
    """

    start: int  # position in the mixture
    stop: int | None  # None if it never ends; the last cycle is cut short if weights change within it
    sections: tuple[int, ...]  # numbers of its sections in the mixture
    used: tuple[int, ...]  # uses of each section before the phase
    shares: tuple[int, ...]  # share of each section, in multiples of 2**-20
    seed: int

    @property
    def cycles(self) -> int | None:
        """Number of cycles, with one that is cut short; None if the phase never ends."""
        return None if self.stop is None else -(-(self.stop - self.start) // self.cycle)

    @cached_property
    def cycle(self) -> int:
        """Positions of a cycle: a power of four, for which the permutation needs no cycle walking.

        With one section there is nothing to mix.
        """
        if len(self.shares) == 1:
            return 1
        cycle = _MIN_CYCLE
        while cycle < len(self.shares):
            cycle *= 4
        return cycle

    @cached_property
    def _splits(self) -> tuple[tuple[int, int, int, int], ...]:
        """A Huffman tree over the shares, as a list of splits from its root.

        A split (first, share of first, second, share of both) divides the positions counted under `second` into those
        of `first` and the rest, which stay under `second`. The smallest shares are joined first, so that a rounding
        error near the root is halved on the way down.
        """
        heap = [(share, number) for number, share in enumerate(self.shares)]
        heapify(heap)
        splits = []
        while len(heap) > 1:
            (light, first), (heavy, second) = heappop(heap), heappop(heap)
            heappush(heap, (light + heavy, second))
            splits.append((first, light, second, light + heavy))
        return tuple(reversed(splits))

    def counts(self, cycles: int) -> tuple[int, ...]:
        """Return the uses of each section in the first `cycles` cycles, each within 2 of its exact share."""
        return tuple(self._counts(np.array([cycles]))[0].tolist())

    def _counts(self, cycles: Rows) -> Rows:
        counts = np.empty((len(self.shares), len(cycles)), dtype=np.int64)
        counts[self._splits[0][2] if self._splits else 0] = cycles * self.cycle
        for first, share, second, both in self._splits:
            wholes, parts = np.divmod(counts[second], both)
            counts[first] = wholes * share + (2 * parts * share + both) // (2 * both)
            counts[second] -= counts[first]
        return counts.T

    def uses(self, cycles: Rows, inside: Rows) -> tuple[Rows, Rows]:
        """Return the uses at the places `inside` (n or 1, m) of cycles (n,).

        Returns:
            (n, m) number of the section in the phase, (n, m) number of its use, counted from the start of the mixture.
        """
        if len(self.shares) == 1:
            uses = cycles[:, None] + inside + self.used[0]
            return np.zeros_like(uses), uses
        places = walk(inside, self.cycle, keys(self.seed, cycles)[:, None])
        before = self._counts(cycles)
        sizes = self._counts(cycles + 1) - before
        ends = np.cumsum(sizes, axis=1)  # ends of the slices of a cycle that belong to each section
        shifts = before + self.used - (ends - sizes)  # added to a place, gives the number of the use
        lines = np.arange(len(cycles))[:, None]
        slices = _slices(places + lines * self.cycle, ends + lines * self.cycle, sizes)
        return slices - lines * len(self.shares), places + shifts.ravel()[slices]

    def uses_between(self, start: int, stop: int) -> tuple[Rows, Rows]:
        """Return `uses` of positions start..stop-1; (stop - start,) each."""
        numbers, uses = np.empty((2, stop - start), dtype=np.int64)
        for low, high in _pieces(start, stop, _PIECE_ROWS):
            first, last = low // self.cycle, (high - 1) // self.cycle
            begin = low if first == last else first * self.cycle  # a part of one cycle, or several whole cycles
            inside = np.arange(low, high) - first * self.cycle if first == last else np.arange(self.cycle)
            some = self.uses(np.arange(first, last + 1), inside[None])
            for into, values in zip((numbers, uses), some, strict=True):
                into[low - start : high - start] = values.ravel()[low - begin : high - begin]
        return numbers, uses


@dataclass(frozen=True)
class Mixture:
    """A row order over several sections, which contains their rows everywhere in about the requested shares.

    Rows are numbered through all sections, one after the other. Limits divide the mixture into phases: when a section
    has too few uses left for its share of another cycle, it drops out, and these uses stay unused. The other sections
    continue where they are, with their shares recomputed without it. A section whose limit is below its share of the
    first cycle never takes part (see `left_out`). If all sections have limits, the mixture ends.

    Attributes:
        changes: weights that replace those of the sections, ascending by position. Rows of a cycle that is cut short
            there count as used, also those that come after the position, at most 63 with up to 64 sections.
    """

    sections: tuple[MixedSection, ...]
    rows_per_block: int
    seed: int
    changes: tuple[Weights, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.sections) <= _MAX_SECTIONS:
            raise ValueError(f"a mixture has 1 to {_MAX_SECTIONS} sections, not {len(self.sections)}")

    @property
    def all_rows(self) -> int:
        return self._offsets[-1]

    @cached_property
    def num_rows(self) -> int:
        """Positions of an epoch of the mixture: about one pass over its first section, with the shares at the start."""
        share = _quantised([section.weight for section in self.sections])[0]
        return max(1, round(Fraction(self.sections[0].rows * _ALL, share)))

    @cached_property
    def num_positions(self) -> int | None:
        """Number of positions; None if the mixture never ends."""
        return self._phases[-1].stop if self._phases else 0

    @property
    def changes_at(self) -> tuple[int, ...]:
        return tuple(phase.start for phase in self._phases[1:])

    @cached_property
    def left_out(self) -> tuple[int, ...]:
        """Numbers of the sections that never take part, because their limit is too low."""
        taken = {
            number
            for phase in self._phases
            for number, count in zip(phase.sections, phase.counts(phase.cycles or 0), strict=True)
            if count or phase.cycles is None
        }
        return tuple(number for number in range(len(self.sections)) if number not in taken)

    def rows_between(self, start: int, stop: int) -> Rows:
        """Return the rows at positions start..stop-1; (stop - start,) int64.

        Raises:
            ValueError: a position is after the end of the mixture.
        """
        if start >= stop:
            return np.empty(0, dtype=np.int64)
        if start < 0 or stop > (stop if self.num_positions is None else self.num_positions):
            end = "" if self.num_positions is None else self.num_positions - 1
            raise ValueError(f"positions {start}..{stop - 1} are not inside 0..{end} of the mixture")
        rows = np.empty(stop - start, dtype=np.int64)
        for phase in self._phases:
            begin, end = max(start, phase.start), min(stop, phase.stop or stop)
            for low, high in _pieces(begin - phase.start, end - phase.start, max(_STRETCH_ROWS, phase.cycle)):
                into = slice(low + phase.start - start, high + phase.start - start)
                rows[into] = self._rows_of_uses(phase, *phase.uses_between(low, high))
        return rows

    @cached_property
    def _offsets(self) -> tuple[int, ...]:
        """First row of each section, and the end of the last section."""
        return tuple(accumulate((section.rows for section in self.sections), initial=0))

    @cached_property
    def _orders(self) -> tuple[ShuffledRows, ...]:
        return tuple(
            ShuffledRows(section.rows, self.rows_per_block, key(self.seed, _SECTION, number))
            for number, section in enumerate(self.sections)
        )

    @cached_property
    def _phases(self) -> tuple[_Phase, ...]:
        """The phases in order.

        Each except the last ends, has at least one position, and is followed by fewer sections or by other weights.
        """
        phases: list[_Phase] = []
        limits = [section.max_uses for section in self.sections]
        used = [0] * len(self.sections)
        numbers, start = tuple(range(len(self.sections))), 0
        while numbers:
            weights = self._weights_at(start)
            shares = _quantised([weights[number] for number in numbers])
            before = tuple(used[number] for number in numbers)
            endless = _Phase(start, None, numbers, before, shares, key(self.seed, _MIX, len(phases)))
            fitting = [_cycles_that_fit(endless, place, limits[number]) for place, number in enumerate(numbers)]
            cycles = min((count for count in fitting if count is not None), default=None)
            ends = [] if cycles is None else [start + cycles * endless.cycle]
            stop = min([*ends, *(change.position for change in self.changes if change.position > start)], default=None)
            phase = replace(endless, stop=stop)
            if stop is None:
                return (*phases, phase)
            if stop > start:
                phases.append(phase)
            start = stop
            for number, count in zip(numbers, phase.counts(phase.cycles or 0), strict=True):
                used[number] += count
            if stop in ends:
                numbers = tuple(number for number, count in zip(numbers, fitting, strict=True) if count != cycles)
        return tuple(phases)

    def _weights_at(self, position: int) -> tuple[float, ...]:
        """Return the weights of all sections from a position on."""
        initial = tuple(section.weight for section in self.sections)
        return next((change.values for change in reversed(self.changes) if change.position <= position), initial)

    def _rows_of_uses(self, phase: _Phase, numbers: Rows, uses: Rows) -> Rows:
        """Return the rows (n,) of uses (n,) of sections, which are given by their numbers (n,) in the phase."""
        rows = np.empty_like(uses)
        by_section = np.argsort(numbers.astype(np.uint16), kind="stable")  # numpy sorts 16-bit numbers by radix
        stops = np.cumsum(np.bincount(numbers, minlength=len(phase.sections))).tolist()
        for section, low, high in zip(phase.sections, [0, *stops], stops, strict=False):
            if low < high:
                some = by_section[low:high]
                mine = uses[some]
                first = int(mine.min())  # uses of nearby positions lie together
                of_section = self._orders[section].rows_between(first, int(mine.max()) + 1)
                rows[some] = of_section[mine - first] + self._offsets[section]
        return rows


def _exact(number: float) -> Fraction:
    """Convert the decimal that was written, so that 0.1 is exactly a tenth on every machine."""
    return Fraction(repr(float(number)))


def _quantised(weights: Sequence[float]) -> tuple[int, ...]:
    """Return shares in multiples of 2**-20 by largest remainder, each at least 1; their sum is 2**20."""
    exact = [_exact(weight) for weight in weights]
    total = sum(exact)
    quotas = [weight * _ALL / total for weight in exact]
    shares = [max(1, math.floor(quota)) for quota in quotas]
    missing = _ALL - sum(shares)
    by_remainder = sorted(range(len(shares)), key=lambda number: shares[number] - quotas[number])
    for number in by_remainder[: max(missing, 0)]:
        shares[number] += 1
    for _ in range(-missing):  # needed if too many shares were rounded up to 1
        shares[shares.index(max(shares))] -= 1
    return tuple(shares)


def _cycles_that_fit(phase: _Phase, place: int, limit: int | None) -> int | None:
    """Return for how many cycles the section at `place` in a phase has uses left; None if it has no limit."""
    if limit is None:
        return None
    left = limit - phase.used[place]
    if left > _MOST_USES:  # no run has so many rows, and `bisect_right` cannot search a range of that length
        return None
    more_than_fit = range(1, (left + 3) * _ALL)  # enough cycles for any share
    return bisect_right(more_than_fit, left, key=lambda cycles: phase.counts(cycles)[place])


def _slices(places: Rows, ends: Rows, sizes: Rows) -> Rows:
    """Return the number of the slice in which each place (n, m) lies; (n, m).

    Args:
        ends: ends of slices (n, sections), ascending; the end of a line is where the places of the next line begin.
        sizes: sizes of slices (n, sections).
    """
    if places.size == ends[-1, -1]:  # whole cycles
        return np.repeat(np.arange(sizes.size), sizes.ravel())[places]
    return np.searchsorted(ends.ravel(), places, side="right")


def _pieces(start: int, stop: int, at_once: int) -> Iterator[tuple[int, int]]:
    """Divide start..stop-1 at the multiples of `at_once`."""
    while start < stop:
        end = min(start // at_once * at_once + at_once, stop)
        yield start, end
        start = end
