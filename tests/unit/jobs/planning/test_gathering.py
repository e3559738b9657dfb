"""Which parameters ZeRO-3 holds whole: three modules of one parameter each, forward and backward."""

from __future__ import annotations

from typing import Any

from jobs.planning.gathering import Gathering
from jobs.planning.strategy import Strategy

FORWARD = [(0,), (1,), (2,)]
BACKWARD = [(2,), (1,), (0,)]


def gathering(sizes: tuple[int, ...] = (100, 100, 100), gloo: bool = False, **changes: int) -> Gathering:
    settings: dict[str, Any] = {
        "prefetch_bucket_size": 0,
        "param_persistence_threshold": 10,
        "max_reuse_distance": 0,
    } | changes
    return Gathering(sizes, [*FORWARD, *BACKWARD], Strategy(**settings), num_workers=2, element_bytes=2, gloo=gloo)


def highest(held: Gathering) -> int:
    most = held.held
    for visit in [*FORWARD, *BACKWARD]:
        before = held.held
        most = max(most, before + held.enter(visit))
        most = max(most, held.held)
        held.leave(visit)
    return most


def test_one_module_at_a_time_is_whole_without_prefetch_and_reuse() -> None:
    held = gathering()
    assert highest(held) == 200
    assert held.held == 0


def test_prefetch_makes_the_next_modules_whole_too() -> None:
    held = gathering(prefetch_bucket_size=1)
    held.enter((0,))
    assert held.held == 400
    # At the turn the last module runs twice: each run fetches one parameter ahead, and none has been used yet.
    assert highest(gathering(prefetch_bucket_size=1)) == 600


def test_prefetch_stops_at_the_most_live_elements() -> None:
    assert highest(gathering(prefetch_bucket_size=1000, max_live_parameters=100)) == 200


def test_parameters_that_are_used_again_soon_are_kept() -> None:
    assert highest(gathering(max_reuse_distance=10**9)) == 600


def test_small_parameters_are_always_whole() -> None:
    held = gathering((10, 100, 100))
    assert held.held == 20
    assert highest(held) == 220 and held.held == 20


def test_parameters_that_are_gathered_together_exist_twice_until_each_was_waited_for() -> None:
    held = gathering((100, 50, 10), param_persistence_threshold=0)
    assert held.enter((0, 1)) == 600
    assert held.held == 300


def test_a_parameter_is_padded_to_equal_parts() -> None:
    held = gathering((101, 100, 100))
    held.enter((0,))
    assert held.held == 204


def test_gloo_s_copy_of_what_is_fetched_ahead_lives_until_a_module_has_waited_for_it() -> None:
    held = gathering((100, 300, 100), gloo=True, prefetch_bucket_size=1)
    held.enter((0,))
    assert held.held == 200 + 2 * 600, "the other worker may be late"
    held.enter((1,))
    assert held.held == 200 + 600 + 2 * 200
