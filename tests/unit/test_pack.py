"""Which samples share a row. Imports neither ray nor torch nor transformers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.data.pack import OPEN_ROWS, one_a_row, pack, shuffle


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
    rows = pack(lengths, seq_len)
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[sample] for sample in row) <= seq_len for row in rows)
    assert rows == pack(np.asarray(lengths, dtype=np.int32), seq_len)


def test_rows_come_in_the_order_of_their_first_sample() -> None:
    rows = pack([6, 5, 4, 5, 9], 10)
    assert rows == [(0, 2), (1, 3), (4,)]


def test_realistic_lengths_fill_the_rows() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.8, 20_000), 5, 1024).astype(int)
    rows = pack(lengths, 1024)
    assert lengths.sum() / (len(rows) * 1024) > 0.97


def test_only_a_bounded_number_of_rows_is_open() -> None:
    lengths = [6] * (OPEN_ROWS + 10) + [4]
    rows = pack(lengths, 10)
    # The ten oldest were closed, so the small sample went to the oldest row that was still open.
    assert rows[10] == (10, OPEN_ROWS + 10)


@pytest.mark.parametrize("length", [0, 11])
def test_sample_that_fits_no_row_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"sample 1 has {length} tokens"):
        pack([3, length], 10)


def test_unpacked_rows_hold_one_sample() -> None:
    assert one_a_row(3) == [(0,), (1,), (2,)]
