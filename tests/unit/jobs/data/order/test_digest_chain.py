"""The chain over a run's samples: the same from the order alone as step by step, and another where a row is amiss."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.data.order.digest_chain import EMPTY_CHAIN, chain_of, extended, from_hex, row_digests, step_digest, to_hex
from jobs.data.order.permutation import Rows, Words
from jobs.data.order.row_order import ShuffledRows, StepPlan, micro_batches

SEEDS = st.integers(0, 2**63 - 1)
ID_LISTS = st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), max_size=30)


def column(rows: list[list[int]]) -> pa.Array:
    return pa.array(rows, pa.list_(pa.int64()))


def digests_for(size: int) -> Words:
    return row_digests(column([[number] for number in range(size)]))


def plan_of(size: int, seed: int, per_step: int, total_rows: int, grouped: bool = False) -> StepPlan:
    lengths = (np.arange(size) * 7919 % 300).astype(np.int32) if grouped else None
    return StepPlan(ShuffledRows(size, 64, seed), per_step, -(-total_rows // per_step), total_rows, lengths)


def folded(steps: Iterable[Rows], digests: Words) -> int:
    """The chain as a run makes it: one step after another."""
    chain = EMPTY_CHAIN
    for rows in steps:
        chain = extended(chain, step_digest(digests[rows], np.arange(len(rows))))
    return chain


def test_digests_and_chains_are_what_they_always_were() -> None:
    """They are kept with checkpoints."""
    digests = row_digests(column([[0], [1, 2], [], [-1]]))
    assert [f"{digest:016x}" for digest in digests] == [
        "eb718afea1509cd1",
        "ee2a41afe8c621e1",
        "a706dd2f4d197e6f",
        "828271af4e1c735d",
    ]
    plan = plan_of(100, 3, 8, 250)
    assert to_hex(chain_of(plan, digests_for(100), 32)) == "bdc5e1c5ac9be702"
    assert to_hex(EMPTY_CHAIN) == "6a09e667f3bcc908"


@given(rows=ID_LISTS)
def test_equal_rows_and_no_others_have_equal_digests(rows: list[list[int]]) -> None:
    digests = row_digests(column(rows)).tolist()
    assert len(digests) == len(rows)
    assert len(set(digests)) == len({tuple(row) for row in rows})


@given(rows=ID_LISTS, data=st.data())
def test_digests_do_not_depend_on_how_a_column_is_cut(rows: list[list[int]], data: st.DataObject) -> None:
    low = data.draw(st.integers(0, len(rows)))
    whole = column(rows)
    chunked = pa.chunked_array([whole.slice(0, low), column(rows[low:])], pa.list_(pa.int64()))
    expected = row_digests(whole)
    assert expected.dtype == np.uint64
    assert np.array_equal(row_digests(chunked), expected)
    assert np.array_equal(row_digests(whole.slice(low, 3)), expected[low : low + 3])
    assert np.array_equal(row_digests(whole.cast(pa.large_list(pa.int64()))), expected)


def test_order_number_and_place_of_ids_matter() -> None:
    rows = [[], [0], [0, 0], [0, 0, 0], [1, 2], [2, 1], [1], [2], [1, 2, 0], [0, 1, 2], [-1], [2**62]]
    assert len(set(row_digests(column(rows)).tolist())) == len(rows)


def test_more_rows_than_are_worked_out_at_once_and_none_at_all() -> None:
    rows = [[*range(number % 4), number] for number in range(10_000)]
    digests = row_digests(column(rows))
    assert np.array_equal(digests[9_000:], row_digests(column(rows[9_000:])))
    assert len(np.unique(digests)) == 10_000
    assert len(row_digests(column([]))) == len(row_digests(pa.chunked_array([], pa.list_(pa.int64())))) == 0


@pytest.mark.parametrize(
    "broken",
    [
        pa.array([[1], None], pa.list_(pa.int64())),
        pa.array([[1, None]], pa.list_(pa.int64())),
        pa.array([[1]], pa.list_(pa.int32())),
    ],
)
def test_ids_that_are_missing_or_of_another_type_are_refused(broken: pa.Array) -> None:
    with pytest.raises(ValueError, match="lists of int64 without nulls"):
        row_digests(broken)


def test_bits_of_digests_are_well_mixed() -> None:
    bits = np.unpackbits(digests_for(4096).view(np.uint8)).reshape(4096, 64)
    assert np.all(np.abs(bits.mean(axis=0) - 0.5) < 0.05)
    flipped = np.unpackbits((digests_for(4096)[1:] ^ digests_for(4096)[:-1]).view(np.uint8))
    assert abs(flipped.mean() - 0.5) < 0.01


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 2000), seed=SEEDS, per_step=st.integers(1, 70), epochs=st.floats(0.1, 3.0),
    grouped=st.booleans(), share=st.floats(0, 1),
)  # fmt: skip
def test_the_chain_of_the_order_is_that_of_the_steps(
    size: int, seed: int, per_step: int, epochs: float, grouped: bool, share: float
) -> None:
    plan = plan_of(size, seed, per_step, min(max(1, round(size * epochs)), 100 * per_step), grouped)
    digests = digests_for(size)
    for steps in {plan.total_steps, round(share * plan.total_steps), 0}:
        one_by_one = folded((plan.rows_of_step(step) for step in range(steps)), digests)
        assert chain_of(plan, digests, steps) == one_by_one


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("size", "per_step", "steps"), [(70_001, 2000, 300), (350_000, 9000, 45)])
def test_a_chain_over_several_pieces_is_that_of_the_steps(size: int, per_step: int, steps: int, grouped: bool) -> None:
    plan = plan_of(size, 5, per_step, per_step * steps - 3, grouped)
    digests = np.random.default_rng(0).integers(0, 2**64, size, dtype=np.uint64)
    assert chain_of(plan, digests, steps) == folded((plan.rows_of_step(step) for step in range(steps)), digests)


@settings(max_examples=50, deadline=None)
@given(
    seed=SEEDS, size=st.integers(1, 1000), rows=st.integers(1, 150), per_device=st.integers(1, 5),
    workers=st.sampled_from([1, 2, 3, 64]),
)  # fmt: skip
def test_the_parts_of_all_workers_add_up_to_the_step(
    seed: int, size: int, rows: int, per_device: int, workers: int
) -> None:
    digests = digests_for(size)[plan_of(size, seed, rows, rows).rows_of_step(0)]
    accumulation = -(-rows // (per_device * workers))
    dealt = micro_batches(np.arange(rows), per_device, accumulation, workers)
    parts = [step_digest(digests[places], places) for worker in dealt for places in worker]
    by_worker = [np.concatenate(worker) for worker in dealt]
    whole = step_digest(digests, np.arange(rows))
    assert sum(parts) % 2**64 == whole
    assert sum(step_digest(digests[places], places) for places in by_worker) % 2**64 == whole
    assert extended(EMPTY_CHAIN, sum(parts)) == extended(EMPTY_CHAIN, whole)


def swapped_in_a_step(steps: list[Rows], step: int, place: int) -> None:
    steps[step][[place, place + 1]] = steps[step][[place + 1, place]]


def swapped_between_steps(steps: list[Rows], step: int, place: int) -> None:
    steps[step][place], steps[step + 1][place] = steps[step + 1][place], steps[step][place]


def swapped_steps(steps: list[Rows], step: int, place: int) -> None:
    steps[step], steps[step + 1] = steps[step + 1], steps[step]


def repeated_row(steps: list[Rows], step: int, place: int) -> None:
    steps[step][place] = steps[step][place + 1]


def repeated_step(steps: list[Rows], step: int, place: int) -> None:
    steps.insert(step, steps[step])


def lost_row(steps: list[Rows], step: int, place: int) -> None:
    steps[step] = np.delete(steps[step], place)


def lost_last_row(steps: list[Rows], step: int, place: int) -> None:
    steps[step] = steps[step][:-1]


def lost_step(steps: list[Rows], step: int, place: int) -> None:
    del steps[step]


@pytest.mark.parametrize(
    "harm",
    [
        swapped_in_a_step, swapped_between_steps, swapped_steps, repeated_row, repeated_step, lost_row, lost_last_row,
        lost_step,
    ],
)  # fmt: skip
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, grouped=st.booleans(), step=st.integers(0, 8), place=st.integers(0, 6))
def test_a_run_with_something_amiss_has_another_chain(
    harm: Callable[[list[Rows], int, int], None], seed: int, grouped: bool, step: int, place: int
) -> None:
    plan = plan_of(100, seed, 8, 80, grouped)  # within an epoch, so that all rows differ
    digests = digests_for(100)
    steps = [plan.rows_of_step(number).copy() for number in range(10)]
    assert folded(steps, digests) == chain_of(plan, digests, 10)
    harm(steps, step, place)
    assert folded(steps, digests) != chain_of(plan, digests, 10)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, grouped=st.booleans())
def test_another_seed_or_other_data_have_another_chain(seed: int, grouped: bool) -> None:
    digests = digests_for(100)
    chain = chain_of(plan_of(100, seed, 8, 250, grouped), digests, 32)
    assert chain_of(plan_of(100, seed + 1, 8, 250, grouped), digests, 32) != chain
    assert chain_of(plan_of(100, seed, 8, 250, grouped), digests + np.uint64(1), 32) != chain
    assert chain_of(plan_of(100, seed, 8, 250, grouped), digests, 31) != chain


@pytest.mark.parametrize("grouped", [False, True])
def test_the_chain_of_a_million_steps_is_found_quickly(grouped: bool) -> None:
    """The target is one second on a core that has nothing else to do; the bound leaves room for a busy machine."""
    plan = plan_of(1_000_000, 1, 8, 8_000_000, grouped)
    digests = np.random.default_rng(0).integers(0, 2**64, 1_000_000, dtype=np.uint64)

    def took_s() -> float:
        started = time.thread_time()
        chain_of(plan, digests, 1_000_000)
        return time.thread_time() - started

    assert any(took_s() < 3.0 for _ in range(3))


def test_steps_and_digests_that_do_not_belong_to_the_plan_are_refused() -> None:
    plan = plan_of(100, 1, 8, 80)
    with pytest.raises(ValueError, match="no chain of 11 steps in a run of 10"):
        chain_of(plan, digests_for(100), 11)
    with pytest.raises(ValueError, match="99 digests were given for 100 rows"):
        chain_of(plan, digests_for(99), 10)


@given(chain=st.integers(0, 2**64 - 1))
def test_a_chain_is_written_and_read_again(chain: int) -> None:
    assert len(to_hex(chain)) == 16
    assert from_hex(to_hex(chain)) == chain


@pytest.mark.parametrize("text", ["", "1", "g" * 16, "0" * 17, "A" * 16, "0" * 16 + "\n", " " + "0" * 15])
def test_what_is_no_chain_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a chain is written with 16 hex digits"):
        from_hex(text)


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_that_is_no_word_is_not_written(number: int) -> None:
    with pytest.raises(ValueError, match="a chain is a number of 64 bits"):
        to_hex(number)
