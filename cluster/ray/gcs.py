"""Uses Ray's global control store, in a separate process: `import ray` takes much memory, and its callers stay small.

    python -m cluster.ray.gcs record GCS [VALUE]      read or write the orchestrator's record in the key-value store
    python -m cluster.ray.gcs demand GCS < BUNDLES    tell the autoscaler which bundles the queue needs, as JSON

`demand` writes what `ray.autoscaler.sdk.request_resources` writes, but without a driver, which Ray would list as a job.
"""

from __future__ import annotations

import json
import sys
from typing import Any

_KEY, _NAMESPACE = b"record", b"fleetune"
_ANSWERS_S = 30


def record(client: Any, gcs: str, value: str | None = None) -> None:
    if value is not None:
        client.internal_kv_put(_KEY, value.encode(), True, _NAMESPACE, _ANSWERS_S)
    found = client.internal_kv_get(_KEY, _NAMESPACE, _ANSWERS_S)
    print(found.decode() if found else "")


def demand(client: Any, gcs: str) -> None:
    from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL as CHANNEL

    bundles = json.loads(sys.stdin.read())
    if client.internal_kv_get(b"__autoscaler_v2_enabled", b"__autoscaler", _ANSWERS_S) == b"1":
        from ray.autoscaler.v2.sdk import request_cluster_resources

        request_cluster_resources(gcs, [{"resources": one, "label_selector": {}} for one in bundles], _ANSWERS_S)
    else:
        key = CHANNEL if isinstance(CHANNEL, bytes) else CHANNEL.encode()
        client.internal_kv_put(key, json.dumps(bundles).encode(), True, None, _ANSWERS_S)


def main(what: str, gcs: str, *words: str) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    {"record": record, "demand": demand}[what](GcsClient(address=gcs), gcs, *words)


if __name__ == "__main__":
    main(*sys.argv[1:])
