"""Events of a deep model from one with few layers: the whole model, traced, has the same."""

from __future__ import annotations

import pytest

from jobs.planning.layers import Depth, Line, deepened, depth_of, second_period

KINDS = {1: (10,), 2: (10, 30)}  # bytes that a layer leaves, by the period


def events(layers: int, left: tuple[int, ...], first: int = 0) -> list[Line]:
    """A made-up pass: each layer leaves some bytes, more for each row, until its backward pass.

    The first layers leave 50 bytes, the others those in `left`.
    """

    def added_by(layer: int) -> int:
        return 50 if layer < first else left[(layer - first) % len(left)]

    lines, live = [Line("enter", "embed.weight", ("embed.weight",), (5, 1), (5, 1))], (5, 1)
    for layer in range(layers):
        added = added_by(layer)
        live = (live[0] + added, live[1] + 2 * added)
        lines.append(
            Line(
                "enter", f"model.layers.{layer}.weight", (f"model.layers.{layer}.weight",), live, (live[0] + 3, live[1])
            )
        )
    lines.append(Line("logits", "", (), live, live))
    for layer in reversed(range(layers)):
        lines.append(
            Line(
                "gradient",
                f"model.layers.{layer}.weight",
                (f"model.layers.{layer}.weight",),
                live,
                (live[0] + 7, live[1]),
            )
        )
        added = added_by(layer)
        live = (live[0] - added, live[1] - 2 * added)
    return [*lines, Line("gradient", "embed.weight", ("embed.weight",), live, live)]


@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("period", [1, 2])
@pytest.mark.parametrize("layers", [10, 11, 15])
def test_repeated_layers_give_the_events_of_the_whole_model(layers: int, period: int, first: int) -> None:
    depth = Depth("model.layers", layers, period, first)
    assert depth.deep < layers and (layers - depth.deep) % period == 0
    assert deepened(events(depth.deep, KINDS[period], first), depth) == tuple(events(layers, KINDS[period], first))


def test_the_second_period_of_the_forward_pass_is_found() -> None:
    layers = [0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0]
    places = ["embed", *(f"h.{layer}.{part}" for layer in layers for part in ("norm", "mlp"))]
    begin, end = second_period(places, Depth("h", 12, period=2, first=1))
    assert (places[begin], places[end]) == ("h.3.norm", "h.5.norm") and begin < end


@pytest.mark.parametrize(
    ("kinds", "first", "period"),
    [("aaaa", 0, 1), ("abababab", 0, 2), ("aabaabaab", 0, 3), ("baaaaa", 1, 1), ("cdabababab", 2, 2)],
)
def test_the_fewest_layers_are_traced(kinds: str, first: int, period: int) -> None:
    assert depth_of("h", kinds) == Depth("h", len(kinds), period, first)


@pytest.mark.parametrize("kinds", ["abcd", "aaab", "aaaaaaab", "a"])
def test_a_model_without_repeated_layers_is_not_deep_enough(kinds: str) -> None:
    assert depth_of("h", kinds).repeats < 1


def test_a_model_of_one_period_is_not_deep_enough() -> None:
    assert Depth("h", 4, 4).repeats < 1
