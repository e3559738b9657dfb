"""The order of rows is a pure function that any number of workers agrees on."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.data.order import Order, StepPlan, key, micro_batches, permute, shares, unpermute

SIZES = st.integers(1, 5000)
SEEDS = st.integers(0, 2**63 - 1)


@given(size=SIZES, seed=SEEDS)
def test_permute_is_a_permutation_and_unpermute_its_inverse(size: int, seed: int) -> None:
    everything = np.arange(size)
    sent = permute(everything, size, seed)
    assert np.array_equal(np.sort(sent), everything)
    assert np.array_equal(unpermute(sent, size, seed), everything)


@given(size=SIZES, seed=SEEDS, per_block=st.sampled_from([1, 3, 64]), epoch=st.integers(0, 100))
def test_an_epoch_is_a_permutation(size: int, seed: int, per_block: int, epoch: int) -> None:
    rows = Order(size, per_block, seed).rows_at(np.arange(epoch * size, (epoch + 1) * size))
    assert np.array_equal(np.sort(rows), np.arange(size))


def test_epochs_and_seeds_differ_and_neighbours_are_torn_apart() -> None:
    order = Order(4096, 64, 1)
    first, second = order.rows_at(np.arange(4096)), order.rows_at(np.arange(4096, 8192))
    assert np.mean(first == second) < 0.01
    assert np.mean(first == Order(4096, 64, 2).rows_at(np.arange(4096))) < 0.01
    assert np.mean(np.abs(np.diff(first)) == 1) < 0.02
    assert abs(np.corrcoef(first, np.arange(4096))[0, 1]) < 0.4


def test_a_stretch_of_the_order_stays_within_few_blocks() -> None:
    """A reader goes through the data window by window instead of jumping all over it."""
    rows = Order(64 * 1000, 64, 3).rows_at(np.arange(0, 2048))
    assert len(np.unique(rows // 64)) <= 3 * 16


@given(
    size=SIZES, seed=SEEDS, per_step=st.integers(1, 200), epochs=st.floats(0.1, 3.0), grouped=st.booleans(),
    start=st.floats(0, 0.99),
)  # fmt: skip
def test_a_run_uses_every_row_of_every_epoch_exactly_once(
    size: int, seed: int, per_step: int, epochs: float, grouped: bool, start: float
) -> None:
    total_rows = max(1, round(size * epochs))
    steps = -(-total_rows // per_step)
    lengths = np.random.default_rng(seed % 1000).integers(1, 500, size).astype(np.int32) if grouped else None

    def plan() -> StepPlan:
        return StepPlan(Order(size, 64, seed), per_step, steps, total_rows, lengths)

    whole = [plan().rows_of_step(step) for step in range(steps)]
    used = np.concatenate(whole)
    assert len(used) == total_rows
    complete = total_rows // size
    counts = np.bincount(used, minlength=size)
    assert counts.min() >= complete and counts.max() <= complete + 1
    begin = int(start * steps)
    resumed = plan()
    assert all(np.array_equal(resumed.rows_of_step(step), whole[step]) for step in range(begin, steps))


def test_grouping_by_length_saves_padding_and_keeps_epochs_apart() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 6400).astype(np.int32)

    def padding(plan: StepPlan) -> float:
        steps = [lengths[plan.rows_of_step(step)] for step in range(plan.total_steps)]
        return sum(len(step) * step.max() for step in steps) / sum(step.sum() for step in steps)

    order = Order(6400, 64, 5)
    plain, grouped = StepPlan(order, 32, 200, 6400), StepPlan(order, 32, 200, 6400, lengths)
    assert padding(plain) > 1.6
    assert padding(grouped) < 1.1


@given(
    seed=SEEDS,
    size=st.integers(64, 3000),
    rows=st.integers(1, 130),
    per_device=st.integers(1, 5),
    step=st.integers(0, 9),
)
def test_any_number_of_workers_deals_the_same_rows_and_no_row_twice(
    seed: int, size: int, rows: int, per_device: int, step: int
) -> None:
    plan = StepPlan(Order(size, 64, seed), rows, 10, rows * 10)
    expected = plan.rows_of_step(step)
    for workers in (1, 2, 3, 64):
        accumulation = -(-rows // (per_device * workers))
        dealt = micro_batches(expected, per_device, accumulation, workers)
        by_number = [dealt[number % workers][number // workers] for number in range(accumulation * workers)]
        assert np.array_equal(np.concatenate(by_number), expected)
        full = [piece for piece in by_number if len(piece)]
        assert all(len(piece) == per_device for piece in full[:-1])  # the cut is the same for any number of workers


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="9 rows do not fit 2 x 2 x 2"):
        micro_batches(np.arange(9), 2, 2, 2)


def test_a_step_far_into_a_huge_run_is_found_at_once() -> None:
    plan = StepPlan(Order(10**9, 64, 1), 512, 10**7, 5 * 10**9)
    started = time.perf_counter()
    for step in range(9_000_000, 9_000_100):
        assert len(plan.rows_of_step(step)) == 512
    assert time.perf_counter() - started < 2.0


def test_a_step_outside_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step 3 is outside 0\.\.2"):
        StepPlan(Order(10, 64, 1), 4, 3, 12).rows_of_step(3)


@given(count=st.integers(0, 300), per_device=st.integers(1, 9), workers=st.integers(1, 7))
def test_evaluation_rounds_cover_all_rows_and_every_worker_takes_part_in_each(
    count: int, per_device: int, workers: int
) -> None:
    rounds = list(shares(count, per_device, workers))
    assert len(rounds) % workers == 0
    assert [row for start, stop in rounds for row in range(start, stop)] == list(range(count))


def test_keys_of_neighbouring_numbers_have_nothing_in_common() -> None:
    keys = {key(seed, number) for seed in range(50) for number in range(50)}
    assert len(keys) == 2500
    bits = [bin(key(1, number) ^ key(1, number + 1)).count("1") for number in range(200)]
    assert 28 < sum(bits) / len(bits) < 36
