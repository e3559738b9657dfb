"""The records of a run's metrics by their numbers, without reading the parts before them again and again."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from typing import Any

from cluster.errors import StorageError
from jobs import journal

MOST_RECORDS = 1000
_PARTS_KEPT = 100_000

_sizes: OrderedDict[tuple[str, str], int] = OrderedDict()  # (folder, part) -> records; a part never changes
_lock = threading.Lock()


def records(folder: str, after: int, most: int = MOST_RECORDS) -> tuple[dict[str, Any], ...]:
    """Numbers that are none are None. Raises StorageError."""
    found: list[dict[str, Any]] = []
    skip = after
    for part in journal.part_names(folder):
        size = _known(folder, part)
        if size is not None and size <= skip:
            skip -= size
            continue
        content = _read(folder, part)
        found += content[skip:]
        skip = max(skip - len(content), 0)
        if len(found) >= most:
            break
    return tuple(_finite(one) for one in found[:most])


def _read(folder: str, part: str) -> list[dict[str, Any]]:
    try:
        content = [one for one in journal.read_part(folder, part) if isinstance(one, dict)]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{folder}/{part} is damaged: {error}") from error
    with _lock:
        _sizes[folder, part] = len(content)
        while len(_sizes) > _PARTS_KEPT:
            _sizes.popitem(last=False)
    return content


def _known(folder: str, part: str) -> int | None:
    with _lock:
        return _sizes.get((folder, part))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value
