"""JSON as its standard defines it. Python's `json` also writes NaN and Infinity, which strict readers refuse.

A number that is not finite is written as the string "NaN", "Infinity" or "-Infinity". A text of the same letters is
written with its first one as an escape, so that `read` can tell both apart; to all other readers they are equal.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_NOT_FINITE = (b"NaN", b"Infinity", b"-Infinity")
_QUOTED = {b'"%s"' % name: name for name in _NOT_FINITE}
_ESCAPED = {b'"%s"' % name: b'"\\u%04x%s"' % (name[0], name[1:]) for name in _NOT_FINITE}
# A string, or a number that is not finite. A string that is never closed ends at the end, so that the time is linear.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|-?Infinity|NaN', re.DOTALL)


def exact(value: Any) -> str:
    """Format a value that `read` returns as it was: NaN and infinity become "NaN", "Infinity" and "-Infinity"."""
    text = json.dumps(value)
    return _TOKEN.sub(_written, text.encode()).decode() if "NaN" in text or "Infinity" in text else text


def for_programs(value: Any) -> str:
    """Format a value for programs of users: NaN and infinity become null."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value))


def read(line: bytes) -> Any:
    """Parse what `exact` wrote, or what earlier releases wrote: bare NaN and Infinity. Raises ValueError."""
    return json.loads(with_numbers(line))


def with_numbers(line: bytes) -> bytes:
    """Return JSON in which the numbers that `exact` wrote as strings are bare, as parsers of Python read them."""
    return _TOKEN.sub(_bare, line) if any(quoted in line for quoted in _QUOTED) else line


def _written(token: re.Match[bytes]) -> bytes:
    found = token[0]
    return _ESCAPED.get(found, found) if found.startswith(b'"') else b'"%s"' % found


def _bare(token: re.Match[bytes]) -> bytes:
    is_key = token.string[token.end() : token.end() + 1] == b":"  # as earlier releases wrote it
    return token[0] if is_key else _QUOTED.get(token[0], token[0])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
