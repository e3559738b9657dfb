"""Bounds of numbers and of names in a spec, and types of numbers with these bounds."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from cluster.capacity.gang import MOST_CPUS_PER_WORKER, MOST_WORKERS

MOST_COUNT: Final = 2**53  # of steps, tokens and elements: the largest integer that JSON numbers hold exactly
MOST_ROWS: Final = 2**31 - 1  # of rows of one step, and of other counts that must fit into a signed 32-bit integer
MOST_EPOCHS: Final = 1e6  # far beyond any real run; keeps the number of steps finite
LONGEST_NAME: Final = 63  # characters of a job's name
NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9._-]{0,62}$"

Count = Annotated[int, Field(ge=1, le=MOST_COUNT)]
Elements = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Rows = Annotated[int, Field(ge=1, le=MOST_ROWS)]
Epochs = Annotated[float, Field(gt=0.0, le=MOST_EPOCHS)]
Workers = Annotated[int, Field(ge=1, le=MOST_WORKERS)]
CpusPerWorker = Annotated[int, Field(ge=1, le=MOST_CPUS_PER_WORKER)]


def name_field(default: str, whose: str) -> Any:
    """Make the field `name` of a kind of spec."""
    description = f"Start of {whose}: up to 63 lower-case letters, digits, '.', '_' and '-', first a letter or digit."
    return Field(default, pattern=NAME_PATTERN, description=description)
