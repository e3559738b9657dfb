"""What a program has said of its own failure, at the end of its output."""

from __future__ import annotations

import re

TAIL_BYTES = 4096
LONGEST = 500
_ERROR = re.compile(r"^(?:\S+ \S+Z )?(?:error|failed): (?P<said>\S.*)$", re.MULTILINE)


def last_words(tail: str) -> str:
    """The last line that a driver of Fleetune begins with `error: `, or `failed: ` where it is the run; else empty."""
    said = [match["said"].strip() for match in _ERROR.finditer(tail)]
    return said[-1][:LONGEST] if said else ""
