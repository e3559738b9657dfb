"""Which samples share a row. Imports neither ray nor torch nor transformers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.data.preparation.packing import WINDOW_SAMPLES, Rows, one_a_row, pack, shuffle


def as_lists(rows: Rows) -> list[list[int]]:
    return [piece.tolist() for piece in np.split(rows.samples, rows.ends[:-1])] if len(rows) else []


@given(st.integers(0, 2000), st.text(st.characters(codec="utf-8")))
def test_shuffle_is_a_permutation(n: int, key: str) -> None:
    assert sorted(shuffle(n, key).tolist()) == list(range(n))


def test_shuffle_never_changes() -> None:
    # Written down: another machine or numpy version must give the same, or prepared data would silently differ.
    assert shuffle(8, "a").tolist() == [3, 6, 4, 5, 2, 1, 0, 7]
    assert shuffle(8, "b").tolist() == [7, 0, 2, 6, 3, 1, 5, 4]


def test_shuffle_leaves_no_run_of_neighbours() -> None:
    order = shuffle(10_000, "key")
    assert np.mean(np.diff(order) == 1) < 0.002
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), max_size=1500))))
def test_every_sample_is_packed_once_and_no_row_is_too_long(case: tuple[int, list[int]]) -> None:
    seq_len, lengths = case
    rows = as_lists(pack(lengths, seq_len))
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[sample] for sample in row) <= seq_len for row in rows)
    assert rows == as_lists(pack(np.asarray(lengths, dtype=np.int32), seq_len))


def test_rows_stand_where_their_longest_sample_stood() -> None:
    assert as_lists(pack([6, 5, 4, 5, 9], 10)) == [[0, 2], [1, 3], [4]]


def test_the_last_two_of_a_row_are_the_pair_that_fills_it() -> None:
    # After 10, the greatest that fits is 7, which nothing completes; 6 and 4 do.
    assert as_lists(pack([10, 7, 6, 4, 9], 20)) == [[0, 2, 3], [4, 1]]


@pytest.mark.parametrize(("seq_len", "density"), [(1024, 0.98), (2048, 0.99), (8192, 0.99)])
def test_realistic_lengths_fill_the_rows(seq_len: int, density: float) -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.8, 20_000), 5, 1024).astype(int)
    assert lengths.sum() / (len(pack(lengths, seq_len)) * seq_len) > density


def test_short_samples_in_long_rows_leave_no_row_half_empty_for_every_few() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 50_000)
    assert lengths.sum() / (len(pack(lengths, 4096)) * 4096) > 0.995


def test_only_samples_that_came_together_share_a_row() -> None:
    lengths = [6] * (2 * WINDOW_SAMPLES) + [4]
    rows = as_lists(pack(lengths, 10))
    # A window of samples that fill more rows than samples: the small one is in the last window, alone.
    assert rows[-1] == [2 * WINDOW_SAMPLES] and max(map(len, rows)) == 1


def test_length_does_not_decide_where_a_row_stands() -> None:
    lengths = np.random.default_rng(1).integers(10, 1000, 4000)
    rows = as_lists(pack(lengths, 1024))
    firsts = np.array([lengths[row[0]] for row in rows])
    assert abs(np.corrcoef(firsts, np.arange(len(rows)))[0, 1]) < 0.05


def test_packing_never_changes() -> None:
    # Written down, as the shuffle above.
    assert as_lists(pack([5, 3, 8, 2, 7, 4, 6, 1, 9], 12)) == [[2, 5], [4, 0], [6, 3, 7], [8, 1]]


@pytest.mark.parametrize("length", [0, 11])
def test_sample_that_fits_no_row_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"sample 1 has {length} tokens"):
        pack([3, length], 10)


def test_unpacked_rows_hold_one_sample() -> None:
    assert as_lists(one_a_row(3)) == [[0], [1], [2]]
