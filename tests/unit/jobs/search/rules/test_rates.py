"""The bracket around the best learning rate, on responses as trainings have them: flat below, a cliff above."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.planning.learning_rate import vertex_of
from jobs.search.rules.rates import best_rate, next_rate

LEAST, GREATEST = 1e-6, 1e-2


def loss(rate: float, best: float) -> float:
    """It falls slowly to the best rate and rises fast above it; a training at 30 times the best rate diverges."""
    away = math.log(rate / best)
    if away > math.log(30):
        return math.inf
    return 0.5 + 0.2 * (1 - math.exp(-(away**2) / 2)) * (1.5 if away > 0 else 1.0)


def tried(prior: float, best: float, count: int) -> dict[float, float]:
    scores = {prior: loss(prior, best)}
    while len(scores) < count:
        rate = next_rate(scores, LEAST, GREATEST)
        assert LEAST <= rate <= GREATEST and rate not in scores
        scores[rate] = loss(rate, best)
    return scores


@settings(max_examples=100, deadline=None)
@given(off=st.floats(-1.0, 1.0))
def test_six_trials_find_the_best_rate_from_a_prior_that_is_off_by_up_to_three(off: float) -> None:
    best = 2e-4
    scores = tried(best * 3**off, best, 6)
    found = min(scores, key=lambda rate: scores[rate])
    assert abs(math.log(found / best)) < math.log(1.3)


def test_eight_find_it_from_a_prior_that_is_off_by_ten() -> None:
    for best in (1e-5, 1e-3):
        scores = tried(1e-4, best, 8)
        assert abs(math.log(min(scores, key=lambda rate: scores[rate]) / best)) < math.log(1.3)


def test_the_second_rate_is_three_times_the_prior_and_the_third_on_the_better_side() -> None:
    assert next_rate({1e-4: 0.6}, LEAST, GREATEST) == pytest.approx(3e-4)
    assert next_rate({1e-4: 0.6, 3e-4: 0.5}, LEAST, GREATEST) == pytest.approx(5.25e-4)
    assert next_rate({1e-4: 0.5, 3e-4: 0.6}, LEAST, GREATEST) == pytest.approx(1e-4 / 3)


def test_at_an_end_of_the_range_it_looks_inside() -> None:
    assert next_rate({1e-3: 0.6}, 2e-4, 2e-3) == 2e-3  # to the last digit: it must lie in the range
    assert next_rate({1e-4: 0.6}, 1e-5, 1e-4) == pytest.approx(1e-4 / 3)
    assert next_rate({1e-4: 0.5, 3e-5: 0.6}, 1e-5, 1e-4) == pytest.approx(math.sqrt(3e-9))
    assert next_rate({1e-5: 0.5, 3e-5: 0.6}, 1e-5, 1e-4) == pytest.approx(math.sqrt(3e-10))


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_trials_that_begin_before_any_score_is_known_spread(count: int) -> None:
    """As those of many gangs do."""
    begun: dict[float, float | None] = {1e-4: None}
    while len(begun) < count:
        begun[next_rate(begun, 1e-5, 1e-3)] = None
    ordered = sorted(begun)
    assert ordered[0] >= 1e-5 and ordered[-1] <= 1e-3
    assert all(high / low > 1.2 for low, high in itertools.pairwise(ordered))


def test_after_failures_it_goes_on_between_them_and_the_best() -> None:
    assert next_rate({1e-4: 0.5, 3e-4: math.inf, 3e-5: 0.6}, LEAST, GREATEST) == pytest.approx(math.sqrt(3e-9))
    everything_failed = {1e-4: math.inf, 3e-4: math.inf}
    assert next_rate(everything_failed, LEAST, GREATEST) not in everything_failed


def test_if_all_have_failed_it_looks_lower() -> None:
    assert next_rate({1e-4: math.inf}, LEAST, GREATEST) == pytest.approx(1e-4 / 3)
    assert next_rate({1e-4: math.inf, 1e-4 / 3: math.inf}, LEAST, GREATEST) == pytest.approx(1e-4 / 9)
    assert LEAST < next_rate({1e-4: math.inf, LEAST: math.inf}, LEAST, GREATEST) < GREATEST, "no rate twice"


def test_of_equal_scores_it_goes_on_above_the_highest() -> None:
    """At rates that are too low, every answer is the most frequent class."""
    scores: dict[float, float] = {1e-5: -0.82, 3e-5: -0.82}
    for _ in range(6):
        rate = next_rate(scores, 1e-6, 1e-2)
        scores[rate] = -0.82 if rate < 3.5e-4 else -0.92
    assert min(scores.values()) == -0.92 and max(scores) > 3.5e-4


def test_below_a_rate_that_failed_the_lowest_of_rates_that_score_alike_is_best() -> None:
    alike = {5e-5: 0.65, 1e-4: 0.6, 2e-4: 0.504, 3e-4: 0.503, 5e-4: 0.5}
    assert best_rate({**alike, 9e-4: math.inf}) == 2e-4


def test_the_highest_rate_is_kept_if_it_is_best_though_only_by_a_little() -> None:
    falling = {1e-5: 1.206, 3e-5: 1.204, 5.25e-5: 1.202, 9.2e-5: 1.200, 1.6e-4: 1.1985, 2.8e-4: 1.197}
    assert best_rate(falling) == pytest.approx(2.8e-4)
    assert best_rate({1e-5: 0.6938, 1.7e-5: 0.6934, 3e-5: 0.6928}) == pytest.approx(3e-5)
    assert best_rate({1e-5: -0.5, 1.7e-5: -0.5, 3e-5: -0.5}) == pytest.approx(3e-5), "an accuracy of 0.5, negated"
    assert best_rate({1e-4: -0.88, 2e-4: -0.90}) == pytest.approx(2e-4)  # of a share, where more is better


def test_the_best_rate_is_a_minimum_also_where_the_loss_is_flat() -> None:
    flat = {4.3e-5: 2.157, 7.4e-5: 2.136, 1.28e-4: 2.15, 2.2e-4: 2.209, 6.7e-4: 2.742}  # SmolLM2 on dialogues
    assert 7.4e-5 < best_rate(flat) < 1e-4


def test_of_a_few_rates_that_lie_far_apart_the_best_one_lies_between_them() -> None:
    def loss(rate: float) -> float:
        return 0.5 + 0.1 * math.log(rate / 1.9e-4) ** 2

    assert best_rate({rate: loss(rate) for rate in (1.4e-4, 4.2e-4, 4.7e-5)}) == pytest.approx(1.9e-4)
    assert best_rate({1.4e-4: 0.5, 4.2e-4: 0.6}) == 1.4e-4  # which may be an end
    assert best_rate({1.4e-4: 0.5, 4.2e-4: math.inf, 4.7e-5: 0.6}) == 1.4e-4  # a failed one says nothing of a slope


def test_a_line_has_no_vertex() -> None:
    assert vertex_of({0.0: 1.0, 1.0: 2.0, 2.0: 3.0}) is None
    assert vertex_of({0.0: 1.0, 1.0: 0.0, 2.0: 1.0}) == pytest.approx(1.0)
    assert vertex_of({0.0: 1.0, 1.0: 0.0, 2.0: math.inf}) is None


def test_where_the_loss_still_falls_at_the_highest_rate_the_best_one_lies_above() -> None:
    halfway = math.sqrt(1.75)  # to the rate that would be tried next
    assert best_rate({4.4e-5: 0.684, 7.6e-5: 0.652, 1.3e-4: 0.557}) == pytest.approx(1.3e-4 * halfway)
    assert best_rate({7.6e-5: 0.58, 1.3e-4: 0.557}) == pytest.approx(1.3e-4)  # by 4 %: it hardly falls any more
    assert best_rate({7.6e-5: 0.652, 1.3e-4: 0.557, 2e-4: math.inf}) == pytest.approx(1.3e-4)  # that one diverged
    assert best_rate({1.3e-4: 0.557}) == pytest.approx(1.3e-4)
    assert best_rate({1.3e-4: -0.5, 2e-4: -0.9}) == pytest.approx(2e-4 * halfway)  # an accuracy, negated
