"""On PYTHONPATH, a preparation does not get past as many parts or shards as a file allows, while the file is there.

FLEETUNE_TESTS_HOLD_DATA is the path of the file: a JSON object with `parts`, `shards` or both. A preparation that waits
keeps its lease, and can be killed or released at any time.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

from tests.support.changed_module import when_loaded

_LOOK_S = 0.02


def _hold_parts(parts: Any) -> None:
    store = parts.store_part

    def store_part(chunk: Any, work: Any, root: str) -> Any:
        _wait("parts", lambda: len(parts.stored_parts(root)))
        return store(chunk, work, root)

    parts.store_part = store_part


def _hold_shards(module: Any) -> None:
    finish = module.ShardWriter._finish_shard

    def finish_shard(writer: Any) -> None:
        _wait("shards", lambda: len(writer.shards))
        finish(writer)

    module.ShardWriter._finish_shard = finish_shard


def _wait(what: str, count: Callable[[], int]) -> None:
    while count() >= _most(what):
        time.sleep(_LOOK_S)


def _most(what: str) -> float:
    try:
        with open(os.environ["FLEETUNE_TESTS_HOLD_DATA"]) as file:
            return float(json.load(file).get(what, math.inf))
    except FileNotFoundError:
        return math.inf


when_loaded("jobs.data.preparation.parts", _hold_parts)
when_loaded("jobs.data.preparation.shard_writer", _hold_shards)
