"""A unique id of this queue, shown to clusters and clients."""

from __future__ import annotations

import secrets

from orchestrator.queue.store import Store

_QUEUE = "queue_id"


def queue_id(store: Store) -> str:
    """Return the id, which is created on first use. Raises StoreBroken."""
    known = store.facts().get(_QUEUE)
    if known is None:
        store.put_facts({_QUEUE: secrets.token_hex(4)}, keep=True)  # keep: another server may have been faster
        known = store.facts()[_QUEUE]
    return known
