"""Durations and sizes in options: `90m`, `30d`, `500GB`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from jobs.errors import InputError

_DURATION: Final = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])$")
_SECONDS: Final[Mapping[str, float]] = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_SIZE = re.compile(r"^([0-9]{1,15}(?:\.[0-9]{1,9})?) ?(?:([KMGTP])(i?))?B$", re.IGNORECASE)
_POWERS: Final[Mapping[str, int]] = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def duration_s(option: str, text: str, *, or_zero: bool = False) -> float:
    """Parse a duration to seconds, above 0 unless `or_zero`. Raises InputError."""
    match = _DURATION.match(text.strip().lower())
    seconds = float(match[1]) * _SECONDS[match[2]] if match is not None else -1.0
    if seconds < 0.0 or not (seconds or or_zero):
        raise InputError(f"{option} {text!r} is not a duration: give a number and s, m, h, d or w, as in 12h or 30d")
    return seconds


def size_bytes(text: str) -> int:
    """Parse a size such as `500GB` (powers of 1000) or `500GiB` (of 1024), to bytes. Raises InputError."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise InputError(f"--max-size {text!r} is not a size: give a number and B, kB, MB, GB, TB or GiB, as in 500GB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[(match[2] or "").upper()])
