"""Finds the error line of a program: the line at the end of a driver's output that says why it failed."""

from __future__ import annotations

import re

TAIL_BYTES = 4096
LONGEST = 500
_ERROR = re.compile(r"^(?:\S+ \S+Z )?(?:error|failed): (?P<said>\S.*)$", re.MULTILINE)


def error_line(tail: str) -> str:
    """Return the text of the last line that begins with `error: ` or `failed: `; empty: there is no such line."""
    said = [match["said"].strip() for match in _ERROR.finditer(tail)]
    return said[-1][:LONGEST] if said else ""
