"""Tell Ray's autoscaler which bundles the queue needs: a list of resources, as JSON.

    python -m cluster.ray.request_resources GCS < BUNDLES

It writes what `ray.autoscaler.sdk.request_resources` writes, but without a driver, which Ray would list as a job.
"""

from __future__ import annotations

import json
import sys

_ANSWERS_S = 30


def main(words: list[str]) -> int:
    from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL as CHANNEL
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    gcs, bundles = words[0], json.loads(sys.stdin.read())
    client = GcsClient(address=gcs)
    if client.internal_kv_get(b"__autoscaler_v2_enabled", b"__autoscaler", _ANSWERS_S) == b"1":
        from ray.autoscaler.v2.sdk import request_cluster_resources

        request_cluster_resources(gcs, [{"resources": one, "label_selector": {}} for one in bundles], _ANSWERS_S)
    else:
        key = CHANNEL if isinstance(CHANNEL, bytes) else CHANNEL.encode()
        client.internal_kv_put(key, json.dumps(bundles).encode(), True, None, _ANSWERS_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
