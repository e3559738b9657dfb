"""Bounds of numbers in a spec."""

from __future__ import annotations

from typing import Final

MOST_COUNT: Final = 2**53  # of steps, tokens and elements: the largest integer that JSON numbers hold exactly
MOST_ROWS: Final = 2**31 - 1  # of rows of one step, and of other counts that must fit into a signed 32-bit integer
