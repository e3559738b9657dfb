"""The order of rows is a pure function that any number of workers agrees on."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.data.order.permutation import Rows, key, walk
from jobs.data.order.row_order import ShuffledRows, StepPlan, computed_tokens, micro_batches, shares
from tests.support.roworders import rows_at

SIZES = st.integers(1, 5000)
SEEDS = st.integers(0, 2**63 - 1)


def sha256(rows: Rows) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]


def lengths_of(size: int, longest: int = 500) -> np.ndarray:
    return (np.arange(size) * 7919 % longest + 1).astype(np.int32)


def plan_of(order: ShuffledRows, per_step: int, total_rows: int, lengths: np.ndarray | None = None) -> StepPlan:
    return StepPlan(order, per_step, -(-total_rows // per_step), total_rows, lengths)


@given(size=SIZES, seed=SEEDS)
def test_walk_is_a_permutation_that_can_be_reversed(size: int, seed: int) -> None:
    everything, with_key = np.arange(size)[None], np.array([[seed]], dtype=np.uint64)
    sent = walk(everything, size, with_key)
    assert np.array_equal(np.sort(sent), everything)
    assert np.array_equal(walk(sent, size, with_key, forward=False), everything)


@given(size=SIZES, seed=SEEDS, per_block=st.sampled_from([1, 3, 64]), epoch=st.integers(0, 100))
def test_an_epoch_is_a_permutation(size: int, seed: int, per_block: int, epoch: int) -> None:
    rows = ShuffledRows(size, per_block, seed).rows_between(epoch * size, (epoch + 1) * size)
    assert np.array_equal(np.sort(rows), np.arange(size))


def test_the_order_is_what_it_always_was() -> None:
    """A run that was started with an earlier version goes on with the same rows."""
    assert ShuffledRows(10, 3, 7).rows_between(0, 12).tolist() == [7, 2, 3, 9, 8, 4, 6, 1, 5, 0, 2, 3]
    assert rows_at(ShuffledRows(100, 4, 1), [0, 99, 100, 205, 3, 10**12]) == [1, 29, 52, 74, 80, 15]


@pytest.mark.parametrize(
    ("size", "per_block", "seed", "expected"),
    [
        (1, 1, 0, "5b6fb58e61fa4759"),
        (5000, 64, 2**63 - 1, "f6881f4d903fd199"),
        (3333, 3, 5, "10aea3839e155953"),
        (2048, 64, 9, "64dcfc662bb3d138"),
        (70001, 64, 3, "be57ca36b3dd0f6c"),
    ],
)
def test_three_epochs_in_one_go_are_what_they_always_were(size: int, per_block: int, seed: int, expected: str) -> None:
    start = size // 2
    assert sha256(ShuffledRows(size, per_block, seed).rows_between(start, start + 3 * size + 7)) == expected


@pytest.mark.parametrize(
    ("size", "per_step", "total_rows", "expected"),
    [(1000, 8, 2500, "3a047ce7d262b3fd"), (5000, 33, 12001, "0398ed87f49d6401")],
)
def test_the_steps_of_a_run_grouped_by_length_are_what_they_always_were(
    size: int, per_step: int, total_rows: int, expected: str
) -> None:
    lengths = (np.arange(size) * 7919 % 311).astype(np.int32)
    plan = plan_of(ShuffledRows(size, 64, 4), per_step, total_rows, lengths)
    assert sha256(np.concatenate([plan.rows_of_step(step) for step in range(plan.total_steps)])) == expected
    assert sha256(plan.rows_of_steps(0, plan.total_steps)) == expected


@settings(max_examples=50, deadline=None)
@given(size=SIZES, seed=SEEDS, per_block=st.sampled_from([1, 3, 64, 1000]), data=st.data())
def test_positions_asked_for_singly_are_those_of_a_long_stretch(
    size: int, seed: int, per_block: int, data: st.DataObject
) -> None:
    order = ShuffledRows(size, per_block, seed)
    start = data.draw(st.integers(0, 10 * size))
    stretch = order.rows_between(start, start + 2 * size + 3)
    assert len(stretch) == 2 * size + 3
    wanted = data.draw(st.lists(st.integers(0, len(stretch) - 1), max_size=20))
    assert rows_at(order, [start + place for place in wanted]) == stretch[wanted].tolist()
    assert len(order.rows_between(start, start)) == 0


@settings(max_examples=60, deadline=None)
@given(
    size=SIZES, seed=SEEDS, per_step=st.integers(1, 100), epochs=st.floats(0.1, 3.0),
    longest=st.sampled_from([None, 1, 500, 100_000]), data=st.data(),
)  # fmt: skip
@example(size=7, seed=1, per_step=100, epochs=3.0, longest=500, data=None)  # every step goes over a border of epochs
def test_many_steps_in_one_go_have_the_rows_of_each_step(
    size: int, seed: int, per_step: int, epochs: float, longest: int | None, data: st.DataObject | None
) -> None:
    lengths = lengths_of(size, longest) if longest else None
    plan = plan_of(ShuffledRows(size, 64, seed), per_step, max(1, round(size * epochs)), lengths)
    start = data.draw(st.integers(0, plan.total_steps)) if data else 0
    stop = min(start + 100, plan.total_steps)
    singly = [plan.rows_of_step(step) for step in range(start, stop)]
    assert np.array_equal(plan.rows_of_steps(start, stop), np.concatenate([np.array([], dtype=np.int64), *singly]))


def test_a_long_stretch_of_steps_is_planned_quickly() -> None:
    """About 20 million rows a second, and half of it grouped by length, on one core that has nothing else to do."""
    order = ShuffledRows(1_000_000, 64, 1)
    for lengths in (None, lengths_of(1_000_000)):
        plan = plan_of(order, 8, 8_000_000, lengths)
        started = time.thread_time()
        assert len(plan.rows_of_steps(400_000, 600_000)) == 1_600_000
        assert time.thread_time() - started < 2.0


def test_epochs_and_seeds_differ_and_neighbours_are_torn_apart() -> None:
    order = ShuffledRows(4096, 64, 1)
    first, second = order.rows_between(0, 4096), order.rows_between(4096, 8192)
    assert np.mean(first == second) < 0.01
    assert np.mean(first == ShuffledRows(4096, 64, 2).rows_between(0, 4096)) < 0.01
    assert np.mean(np.abs(np.diff(first)) == 1) < 0.02
    assert abs(np.corrcoef(first, np.arange(4096))[0, 1]) < 0.4


def test_a_stretch_of_the_order_stays_within_few_blocks() -> None:
    """A reader goes through the data window by window instead of jumping all over it."""
    rows = ShuffledRows(64 * 1000, 64, 3).rows_between(0, 2048)
    assert len(np.unique(rows // 64)) <= 3 * 16


@settings(max_examples=30, deadline=None)
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
        return StepPlan(ShuffledRows(size, 64, seed), per_step, steps, total_rows, lengths)

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
        return float(sum(len(step) * step.max() for step in steps) / sum(step.sum() for step in steps))

    order = ShuffledRows(6400, 64, 5)
    plain, grouped = StepPlan(order, 32, 200, 6400), StepPlan(order, 32, 200, 6400, lengths)
    assert padding(plain) > 1.6
    assert padding(grouped) < 1.1


@settings(max_examples=50, deadline=None)
@given(
    seed=SEEDS, size=st.integers(64, 3000), rows=st.integers(1, 130), per_device=st.integers(1, 5),
    grouped=st.booleans(), start=st.integers(0, 97),
)  # fmt: skip
def test_any_number_of_workers_deals_the_same_rows_and_no_row_twice(
    seed: int, size: int, rows: int, per_device: int, grouped: bool, start: int
) -> None:
    def plan() -> StepPlan:
        return plan_of(
            ShuffledRows(size, 64, seed), rows, rows * 100 - rows // 2, lengths_of(size) if grouped else None
        )

    steps = range(start, start + 3)  # the last one there is, 99, is a short one
    expected = [plan().rows_of_step(step) for step in steps]
    for workers in (1, 2, 3, 64):
        accumulation = -(-rows // (per_device * workers))
        plans = [plan() for _ in range(min(workers, 3))]  # a worker plans for itself, from any step on
        for step, whole in zip(steps, expected, strict=True):
            assert all(np.array_equal(own.rows_of_step(step), whole) for own in plans)
            dealt = micro_batches(whole, per_device, accumulation, workers)
            by_number = [dealt[number % workers][number // workers] for number in range(accumulation * workers)]
            assert np.array_equal(np.concatenate(by_number), whole)
            full = [piece for piece in by_number if len(piece)]
            assert all(len(piece) == per_device for piece in full[:-1])  # the same cut for any number of workers
            if (step * rows) // size == (step * rows + len(whole) - 1) // size:  # all of it in one epoch
                assert len(np.unique(np.concatenate([np.concatenate(own) for own in dealt]))) == len(whole)


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="9 rows do not fit 2 x 2 x 2"):
        micro_batches(np.arange(9), 2, 2, 2)


def test_a_step_waits_in_each_forward_pass_for_the_worker_with_most_tokens_and_padding() -> None:
    lengths = np.array([[10, 10, 3, 9, 5, 5, 1], [1, 1, 1, 1, 1, 1, 1]])
    # Two workers with micro-batches of two rows: 10, 10 beside 3, 9 (padded: 18), then 5, 5 beside the single 1.
    assert computed_tokens(lengths, 2, 2, 2).tolist() == [20 + 10, 2 + 2]
    assert computed_tokens(lengths, 7, 1, 1).tolist() == [70, 7]


def test_a_step_far_into_a_huge_run_is_found_at_once() -> None:
    plan = StepPlan(ShuffledRows(10**9, 64, 1), 512, 10**7, 5 * 10**9)
    started = time.thread_time()
    for step in range(9_000_000, 9_000_100):
        assert len(plan.rows_of_step(step)) == 512
    assert time.thread_time() - started < 2.0


def test_a_step_outside_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step 3 is outside 0\.\.2"):
        StepPlan(ShuffledRows(10, 64, 1), 4, 3, 12).rows_of_step(3)
    with pytest.raises(ValueError, match=r"steps 2\.\.3 are not inside 0\.\.2"):
        StepPlan(ShuffledRows(10, 64, 1), 4, 3, 12).rows_of_steps(2, 4)


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
