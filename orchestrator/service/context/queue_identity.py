"""By which machines and guests tell this queue from others."""

from __future__ import annotations

import secrets

from orchestrator.queue.store import Store

_QUEUE = "queue_id"


def queue_id(store: Store) -> str:
    """Made where the store has none. Raises StoreBroken."""
    known = store.facts().get(_QUEUE)
    if known is None:
        store.put_facts({_QUEUE: secrets.token_hex(4)}, keep=True)  # another server may be faster
        known = store.facts()[_QUEUE]
    return known
