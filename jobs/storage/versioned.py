"""JSON files that carry a `version`: those of earlier releases are read, those of newer ones are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

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
        StorageError: a newer release wrote it, as its version or a key that `parse` does not know tells.
    """
    try:
        raw = json.loads(content)
        if not isinstance(raw, dict):
            raise TypeError("it is not a JSON object")
        found = raw.get("version", 0)
        if found <= version:
            return parse(raw)
    except ValidationError as error:
        if not (unknown := [one for one in error.errors() if one["type"] == "extra_forbidden"]):
            raise _damaged(where, error) from error
        written = f"it has {'.'.join(map(str, unknown[0]['loc']))}, which this one does not know"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(where, error) from error
    else:
        written = f"version {found}, this one reads {version}"
    raise StorageError(f"{where} was written by a newer release ({written}): upgrade Fleetune to read it")


def _damaged(where: str, error: Exception) -> Damaged:
    return Damaged(f"{where} is damaged: {str(error).partition(chr(10))[0] or type(error).__name__}")
