"""The tokens of attempts: what shows that a driver is the one that the queue has started."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from orchestrator.queue.store import Store

_FACT = "driver_key"


def attempt_token(key: str, job_id: str, attempt: int) -> str:
    """Of one attempt, in hexadecimal digits: HMAC-SHA256 of `{job_id}-{attempt}`."""
    return hmac.new(key.encode(), f"{job_id}-{attempt}".encode(), hashlib.sha256).hexdigest()


class DriverKey:
    """The key of a store, made where it has none."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: str | None = None

    def value(self) -> str:
        """Raises StoreBroken."""
        if self._known is None:
            found = self._store.facts().get(_FACT)
            if found is None:
                self._store.put_facts({_FACT: secrets.token_hex(32)}, keep=True)  # another server may be faster
                found = self._store.facts()[_FACT]
            self._known = found
        return self._known

    def fits(self, token: str, job_id: str, attempt: int) -> bool:
        """Whether a token is of this attempt. Takes as long for a wrong one."""
        known = attempt_token(self.value(), job_id, attempt)
        return hmac.compare_digest(known.encode(), token.encode("utf-8", "replace"))
