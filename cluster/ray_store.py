"""`python -m cluster.ray_store GCS [VALUE]`: the orchestrator's record in Ray's key-value store, read or written.

A process of its own, because ray is large: whoever waits for a lease stays small.
"""

from __future__ import annotations

import sys

_KEY, _NAMESPACE = b"record", b"fleetune"
_ANSWERS_S = 30.0


def main(words: list[str]) -> int:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    client = GcsClient(address=words[0])
    if len(words) > 1:
        client.internal_kv_put(_KEY, words[1].encode(), True, _NAMESPACE, _ANSWERS_S)
    value = client.internal_kv_get(_KEY, _NAMESPACE, _ANSWERS_S)
    print(value.decode() if value else "")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
