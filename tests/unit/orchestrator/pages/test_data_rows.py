"""The rows of `fleetune data show`."""

from __future__ import annotations

from jobs.data.quality.preview import ShownRow, ShownSample
from orchestrator.pages.data import rows_page


def test_a_row_tells_lines_from_numbers_of_samples() -> None:
    sample = ShownSample(source=1, number=7, tokens=(3,), pieces=("a",), targets=(True,), label=None)
    for prepared, what in ((False, "(line 7 of source 1)"), (True, "(number 7 of source 1)")):
        assert what in rows_page([ShownRow(0, (sample,), prepared)], colour=False)
