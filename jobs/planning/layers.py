"""Makes the events of a deep model from those of the same model with few layers. Pure.

Layers repeat with a period: 1 for most types, more for those that alternate kinds of attention. The first layers may be
of another kind: many mixtures of experts begin with dense layers. A model with these, two periods and the rest is
traced; the second period is repeated. Each copy adds to the forward pass what this period adds, such as bytes that
stay until the backward pass. Of an encoder and a decoder, each is made deep by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from jobs.planning.memory import EventKind


@dataclass(frozen=True)
class Line:
    """One event, with bytes as a fixed part and a part for each row."""

    kind: EventKind
    place: str  # name of the module that begins or ends, or of the gradient's parameter
    parameters: tuple[str, ...]
    live: tuple[int, int]
    peak: tuple[int, int]


# Fields of configurations that say how many layers a list has. Models with a decoder beside an encoder have two lists.
LAYER_COUNTS: Final = ("num_hidden_layers", "decoder_layers", "num_decoder_layers")


@dataclass(frozen=True)
class Depth:
    """How to derive a model with `layers` layers from one with `deep` layers."""

    prefix: str  # name of the list of layers, as `model.layers`
    layers: int
    period: int
    first: int = 0  # layers before the first period

    @property
    def rest(self) -> int:
        """Layers after the last repeated one, at least 1: the top of the model."""
        return (self.layers - self.first - 1) % self.period + 1

    @property
    def deep(self) -> int:
        return self.first + 2 * self.period + self.rest

    @property
    def repeats(self) -> int:
        """Periods that the traced model lacks."""
        return (self.layers - self.deep) // self.period

    def layer_of(self, name: str) -> int | None:
        match = re.match(rf"{re.escape(self.prefix)}\.(\d+)(?:\.|$)", name)
        return int(match[1]) if match else None

    def is_repeated(self, name: str) -> bool:
        """Return whether a module or parameter is part of the second period of the traced model."""
        layer = self.layer_of(name)
        return layer is not None and self.first + self.period <= layer < self.first + 2 * self.period


def depth_of(prefix: str, kinds: Sequence[object]) -> Depth:
    """Return the depth of a model with layers of these kinds, for which the fewest layers have to be traced."""
    numbers = [list(kinds).index(kind) for kind in kinds]  # cheap to compare
    layers = len(numbers)
    found = (
        Depth(prefix, layers, period, first)
        for first in range(layers)
        for period in range(1, layers - first + 1)
        if numbers[first : layers - period] == numbers[first + period :]
    )
    return min(found, key=lambda depth: (depth.deep, depth.first))


def second_period(places: Sequence[str], depth: Depth) -> tuple[int, int]:
    """Return which event begins the second period of the forward pass, and which one begins what follows it.

    Args:
        places: of the events of a model with `depth.deep` layers.
    """
    layers = [depth.layer_of(place) for place in places]
    return layers.index(depth.first + depth.period), layers.index(depth.first + 2 * depth.period)


def deepened(deep: Sequence[Line], depth: Depth) -> tuple[Line, ...]:
    """Return the events of the whole model. `deep`: the events of one with `depth.deep` layers."""
    begin, end = second_period([line.place for line in deep], depth)
    left = _plus(deep[end].live, deep[begin].live, -1)
    middle = [depth.is_repeated(line.place) for line in deep]
    turn = next(number for number, line in enumerate(deep) if line.kind == "logits")
    ahead = _ends(middle[:turn], 0)
    back = _ends(middle[turn:], turn)
    repeats = depth.repeats
    forward = [_moved(line, depth, copy, left) for copy in range(repeats + 1) for line in deep[ahead[0] : ahead[1]]]
    top = [_moved(line, depth, repeats, left) for line in deep[ahead[1] : back[0]]]
    backward = [
        _moved(line, depth, copy, left) for copy in reversed(range(repeats + 1)) for line in deep[back[0] : back[1]]
    ]
    return (*deep[: ahead[0]], *forward, *top, *backward, *deep[back[1] :])


def _ends(repeated: Sequence[bool], offset: int) -> tuple[int, int]:
    found = [number for number, is_repeated in enumerate(repeated) if is_repeated]
    return found[0] + offset, found[-1] + 1 + offset


def _moved(line: Line, depth: Depth, copies: int, left: tuple[int, int]) -> Line:
    """Return the event as it is with `copies` more periods below it."""
    renamed = partial(_renamed, depth, copies)
    live, peak = (_plus(size, left, copies) for size in (line.live, line.peak))
    return Line(line.kind, renamed(line.place), tuple(map(renamed, line.parameters)), live, peak)


@lru_cache(2**14)  # a name for each number of periods below it
def _renamed(depth: Depth, copies: int, name: str) -> str:
    layer = depth.layer_of(name)
    if layer is None or layer < depth.first + depth.period:
        return name
    return f"{depth.prefix}.{layer + copies * depth.period}{name[len(f'{depth.prefix}.{layer}') :]}"


def _plus(one: tuple[int, int], other: tuple[int, int], times: int) -> tuple[int, int]:
    return one[0] + times * other[0], one[1] + times * other[1]
