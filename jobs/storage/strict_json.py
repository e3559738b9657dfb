"""JSON as its standard defines it. Python's `json` also writes NaN and Infinity, which strict readers refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MARKS = (b'"NaN"', b'Infinity"')


def exact(value: Any) -> str:
    """Format a value that `read` returns as it was: NaN and infinity become "NaN", "Infinity" and "-Infinity"."""
    return _dumps(value, lambda number: "NaN" if math.isnan(number) else f"{'-' if number < 0 else ''}Infinity")


def for_programs(value: Any) -> str:
    """Format a value for programs of users: NaN and infinity become null."""
    return _dumps(value, lambda number: None)


def read(line: bytes) -> Any:
    """Parse what `exact` wrote, or what earlier releases wrote: bare NaN and Infinity. Raises ValueError."""
    value = json.loads(line)
    return restored(value) if any(mark in line for mark in _MARKS) else value


def restored(value: Any) -> Any:
    """Return what `exact` was given, from the parsed JSON."""
    if isinstance(value, dict):
        return {key: restored(one) for key, one in value.items()}
    if isinstance(value, list):
        return [restored(one) for one in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value


def _dumps(value: Any, instead: Callable[[float], str | None]) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_replaced(value, instead))


def _replaced(value: Any, instead: Callable[[float], str | None]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(one, instead) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(one, instead) for one in value]
    return instead(value) if isinstance(value, float) and not math.isfinite(value) else value
