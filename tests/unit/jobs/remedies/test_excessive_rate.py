"""The rate with which a run begins again, from real losses after one step."""

from __future__ import annotations

import math

import pytest

from jobs.remedies.excessive_rate import rate_after, rates_to_try

# Measured: the loss before the step, and after it at rates that differ by 10^(1/3), from 1e-6 to 1. Adam, fp32.
RATES = [10 ** (power / 3 - 6) for power in range(19)]
SMALL_LLAMA = [
    3.504, 3.504, 3.504, 3.503, 3.502, 3.500, 3.495, 3.485, 3.465, 3.426, 3.365, 3.318, 3.468, 4.323, 6.548, 7.913,
    8.595, 10.918, 15.875, 15.614,
]  # fmt: skip
SMOLLM2 = [
    4.083, 4.070, 4.055, 4.022, 3.953, 3.817, 3.634, 3.628, 3.786, 4.024, 5.544, 9.291, 14.498, 21.238, 24.148, 33.584,
    63.290, 55.346, 83.029, 166.066,
]  # fmt: skip
MINILM_WITH_A_NEW_HEAD = [
    0.694, 0.694, 0.694, 0.694, 0.694, 0.695, 0.696, 0.699, 0.706, 0.723, 0.753, 0.755, 0.710, 0.686, 0.877, 1.172,
    2.796, 7.307, 11.442, 20.349,
]  # fmt: skip


def test_the_rate_is_a_part_of_the_one_whose_step_lowers_the_loss_most() -> None:
    """Whole runs are best between 1e-3 and 1.4e-3 and at 1e-4 to 1.8e-4 (bench/RESULTS.md)."""
    assert rate_after(RATES, SMALL_LLAMA) == pytest.approx(1.3e-3, rel=0.1)
    assert rate_after(RATES, SMOLLM2) == pytest.approx(5.4e-5, rel=0.1)


def test_without_a_clear_minimum_it_is_a_part_of_the_highest_harmless_rate() -> None:
    assert rate_after(RATES, MINILM_WITH_A_NEW_HEAD) == pytest.approx(0.7e-4, rel=0.1)  # the best one is 1.8e-4
    assert rate_after([1e-4, 5e-4, 2e-3, 8e-3], [0.3246, 0.3243, 0.326, 0.356, 1.38]) == pytest.approx(3.5e-4)
    assert rate_after([0.1, 0.2], [2.0, 1.99, 2.1]) == pytest.approx(0.07)


def test_where_the_rate_is_not_at_fault_there_is_no_rate() -> None:
    assert rate_after(RATES[:8], SMALL_LLAMA[:9]) is None  # the loss still falls at the highest rate
    assert rate_after([0.1, 0.2, 0.4], [2.0, 2.5, 3.0, 4.0]) is None  # every step raises it
    assert rate_after([0.1, 0.2], [2.0, 2.0, 2.0]) is None  # no step changes anything
    assert rate_after([0.1, 0.2], [2.0, math.nan, math.nan]) is None
    assert rate_after([0.1, 0.2], [math.nan, 1.0, 2.0]) is None


def test_losses_that_are_not_finite_and_a_minimum_at_the_lowest_rate_are_no_obstacle() -> None:
    assert rate_after([0.1, 0.2, 0.4, 0.8], [2.0, 1.8, 1.5, math.nan, math.inf]) == pytest.approx(0.14)
    assert rate_after([0.1, 0.2, 0.4], [2.0, 1.0, 1.5, 3.0]) == pytest.approx(0.07)


def test_rates_are_tried_down_to_far_below_the_excessive_one() -> None:
    rates = rates_to_try(0.1)
    assert list(rates) == sorted(rates) and rates[-1] == 0.1 and rates[0] < 1e-5
