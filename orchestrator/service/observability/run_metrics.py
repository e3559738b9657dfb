"""Records of a run's metrics by number. Sizes of parts are cached, so that earlier parts are not read again."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import Any

from pydantic_core import from_json

from cluster.errors import StorageError
from jobs.storage import journal
from orchestrator.service.observability.run_files import RunFiles

FOLDER = "metrics"
MOST_RECORDS = 1000
LARGEST_PART = 4 << 20  # bytes; a run writes parts of 1 MiB, and reading a larger one would hold up other callers
_PARTS_KEPT = 100_000

_sizes: OrderedDict[tuple[str, str], int] = OrderedDict()  # (run, part) -> number of records; a part never changes
_lock = threading.Lock()


def records(files: RunFiles, after: int, most: int = MOST_RECORDS) -> tuple[dict[str, Any], ...]:
    """Return records from number `after` on. Numbers that are not finite become None. Raises StorageError."""
    found: list[dict[str, Any]] = []
    skip = after
    for part in filter(journal.is_part, files.names(FOLDER)):
        size = _known(files.run, part)
        if size is not None and size <= skip:
            skip -= size
            continue
        content = _read(files, part)
        found += content[skip:]
        skip = max(skip - len(content), 0)
        if len(found) >= most:
            break
    return tuple(_finite(one) for one in found[:most])


def _read(files: RunFiles, part: str) -> list[dict[str, Any]]:
    run, content = files.run, files.read(FOLDER, part, 0, LARGEST_PART + 1)
    if len(content) > LARGEST_PART:
        raise StorageError(f"{part} of the metrics of {run} is larger than any part that a run writes")
    try:
        lines = [from_json(line) for line in content.splitlines()]
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{part} of the metrics of {run} is damaged: {error}") from error
    found = [one for one in lines if isinstance(one, dict)]
    with _lock:
        _sizes[run, part] = len(found)
        while len(_sizes) > _PARTS_KEPT:
            _sizes.popitem(last=False)
    return found


def _known(run: str, part: str) -> int | None:
    with _lock:
        return _sizes.get((run, part))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value
