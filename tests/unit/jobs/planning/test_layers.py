"""Events of a deep model from two shallow ones: the whole model, traced, has the same."""

from __future__ import annotations

import pytest

from jobs.planning.layers import Depth, Line, deepened, period_of

KINDS = {1: (10,), 2: (10, 30)}  # bytes that a layer leaves, by the period


def events(layers: int, left: tuple[int, ...]) -> list[Line]:
    """A made-up pass: each layer leaves some bytes, more for each row, until its backward pass."""
    lines, live = [Line("enter", ("embed.weight",), (5, 1), (5, 1))], (5, 1)
    for layer in range(layers):
        added = left[layer % len(left)]
        live = (live[0] + added, live[1] + 2 * added)
        lines.append(Line("enter", (f"model.layers.{layer}.weight",), live, (live[0] + 3, live[1])))
    lines.append(Line("logits", (), live, live))
    for layer in reversed(range(layers)):
        lines.append(Line("gradient", (f"model.layers.{layer}.weight",), live, (live[0] + 7, live[1])))
        added = left[layer % len(left)]
        live = (live[0] - added, live[1] - 2 * added)
    return [*lines, Line("gradient", ("embed.weight",), live, live)]


@pytest.mark.parametrize("period", [1, 2])
@pytest.mark.parametrize("layers", [7, 8, 12])
def test_repeated_layers_give_the_events_of_the_whole_model(layers: int, period: int) -> None:
    depth = Depth("model.layers", layers, period)
    assert depth.deep < layers and (layers - depth.deep) % period == 0
    shallow, deep = (events(some, KINDS[period]) for some in (depth.shallow, depth.deep))
    assert deepened(shallow, deep, depth) == tuple(events(layers, KINDS[period]))


@pytest.mark.parametrize(("kinds", "period"), [("aaaa", 1), ("abab", 2), ("aabaab", 3), ("abcd", 4), ("aaab", 4)])
def test_the_period_is_the_shortest_one(kinds: str, period: int) -> None:
    assert period_of(kinds) == period


def test_a_model_of_one_period_is_not_deep_enough() -> None:
    assert Depth("h", 4, 4).repeats < 1
