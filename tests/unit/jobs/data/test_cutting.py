"""What data.seq_len cuts, in numbers and words."""

from __future__ import annotations

import pytest

from jobs.data.cutting import cut_of, format_cut


def test_what_is_cut_is_counted_in_samples_and_tokens() -> None:
    cut = cut_of({10: 6, 100: 3, 700: 1}, seq_len=64)
    assert (cut.samples, cut.cut_samples, cut.tokens, cut.cut_tokens) == (10, 4, 1060, 3 * 36 + 636)
    words = format_cut("data.train", cut, 64)
    assert words is not None
    assert "cuts 40% of the samples of data.train, which loses 70% of the tokens" in words


@pytest.mark.parametrize("lengths", [{10: 6, 100: 3, 700: 1}, {5: 1}, {1: 99, 2: 1}, {8: 1, 9: 1, 4000: 2}])
def test_the_recommended_length_is_the_smallest_that_keeps_the_share(lengths: dict[int, int]) -> None:
    cut = cut_of(lengths, 8)

    def kept(seq_len: int) -> float:
        return sum(min(length, seq_len) * count for length, count in lengths.items()) / cut.tokens

    for share, recommended in ((0.95, cut.keeps_95), (0.99, cut.keeps_99)):
        assert kept(recommended) >= share > kept(recommended - 1)


def test_a_length_that_the_model_cannot_read_is_not_recommended() -> None:
    cut = cut_of({100: 9, 700: 1}, 64)
    assert cut.keeps_95 < 650 < cut.keeps_99
    room = "as many as the model has positions, would keep more"
    assert str(format_cut("data.train", cut, 64, most=650)).endswith(f"{cut.keeps_95} would keep 95 %, 650, {room}")
    assert str(format_cut("data.train", cut, 64, most=128)).endswith(f"data.seq_len: 128, {room}")
    assert str(format_cut("data.train", cut, 64, most=64)).endswith("of the tokens")
    for enough in (None, 1024):
        assert "positions" not in str(format_cut("data.train", cut, 64, most=enough))


def test_a_shorter_length_is_not_recommended() -> None:
    cut = cut_of({100: 99, 500: 1}, 128)
    assert cut.keeps_95 < 128 < cut.keeps_99
    assert str(format_cut("data.train", cut, 128)).endswith(f"data.seq_len: {cut.keeps_99} would keep 99 %")


def test_little_is_not_worth_a_word() -> None:
    assert format_cut("data.train", cut_of({10: 1000, 65: 1}, 64), 64) is None
    assert format_cut("data.train", cut_of({10: 3}, 64), 64) is None
    assert format_cut("data.train", cut_of({}, 64), 64) is None
    assert format_cut("data.train", None, 64) is None
