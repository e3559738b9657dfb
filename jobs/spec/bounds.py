"""Bounds of numbers and of names in a spec."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field

MOST_COUNT: Final = 2**53  # of steps, tokens and elements: the largest integer that JSON numbers hold exactly
MOST_ROWS: Final = 2**31 - 1  # of rows of one step, and of other counts that must fit into a signed 32-bit integer
LONGEST_NAME: Final = 63  # characters of a job's name
NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9._-]{0,62}$"


def name_field(default: str, whose: str) -> Any:
    """Make the field `name` of a kind of spec."""
    description = f"Start of {whose}: lower-case letters, digits, '.', '_' and '-'."
    return Field(default, pattern=NAME_PATTERN, description=description)
