"""JSON files that carry a `version`: those of earlier releases are read, those of newer ones are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from cluster.errors import StorageError

T = TypeVar("T")


class Damaged(StorageError):
    """A file differs from what was written: it is truncated, missing or has other bytes."""


def parse_versioned(content: bytes, where: str, version: int, parse: Callable[[dict[str, Any]], T]) -> T:
    """Parse a JSON object, and return what `parse` makes of it; `where` is the path that messages name.

    Args:
        version: the newest version that this release reads. Files without `version` are older than all others.

    Raises:
        Damaged: it is no JSON object, or `parse` cannot use it.
        StorageError: a newer release wrote it.
    """
    try:
        raw = json.loads(content)
        if not isinstance(raw, dict):
            raise TypeError("it is not a JSON object")
        found = raw.get("version", 0)
        if found <= version:
            return parse(raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(f"{where} is damaged: {str(error).partition(chr(10))[0] or type(error).__name__}") from error
    raise StorageError(
        f"{where} was written by a newer release (version {found}, this one reads {version}): upgrade Fleetune to read "
        "it"
    )
