"""Read or write the orchestrator's record in Ray's key-value store.

    python -m cluster.ray.key_value_store GCS [VALUE]

This runs as a separate process: `import ray` takes much memory, and a program that waits for a lease should stay small.
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
