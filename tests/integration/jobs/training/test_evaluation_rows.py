"""An evaluation holds logits of a bounded number of targets."""

from __future__ import annotations

import pytest

from jobs.training.loop.evaluation import rows_within


@pytest.mark.parametrize(
    ("wanted", "trained", "logits_of_row", "rows"),
    [
        (8, 1, 256 * 262_144, 1),  # Gemma-3
        (8, 1, 256 * 49_152, 5),
        (8, 1, 64 * 512, 8),
        (8, 4, 8192 * 128_256, 4),  # as many as in training fit
        (2, 4, 8192 * 128_256, 2),
        (8, 1, 0, 8),
    ],
)
def test_rows_of_a_pass_are_bounded_by_their_logits(wanted: int, trained: int, logits_of_row: int, rows: int) -> None:
    assert rows_within(wanted, trained, logits_of_row) == rows
