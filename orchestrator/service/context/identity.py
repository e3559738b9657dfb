"""The id of the queue, and tokens of attempts. With its token, a driver proves that the queue has started it."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from orchestrator.queue.names import submission_of
from orchestrator.queue.records import Job
from orchestrator.queue.store import Store

_QUEUE, _KEY = "queue_id", "driver_key"  # names of facts in the store
_MOST_ATTEMPTS = 100
_OF_OLDER_RELEASES = re.compile(r"[0-9a-f]{64}")


def queue_id(store: Store) -> str:
    """Return the unique id of a queue, which clusters and clients see. Raises StoreBroken."""
    return _created_once(store, _QUEUE, secrets.token_hex(4))


def _created_once(store: Store, name: str, value: str) -> str:
    """Return the fact of this name; the first call stores `value`. Raises StoreBroken."""
    known = store.facts().get(name)
    if known is None:
        store.put_facts({name: value}, keep=True)  # keep, because another server may have been faster
        known = store.facts()[name]
    return known


def attempt_token(key: str, job_id: str, attempt: int) -> str:
    """Make the token of an attempt: `{submission}.{HMAC-SHA256 of that}`, which can be verified by itself."""
    submission = submission_of(job_id, attempt)
    return f"{submission}.{_signature(key, submission)}"


def signature_of(token: str) -> str:
    """Return the secret part of a token. Older releases gave drivers this part only."""
    return token.rpartition(".")[2]


def _signature(key: str, submission: str) -> str:
    return hmac.new(key.encode(), submission.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


class DriverKey:
    """The key of a store. It is created on first use."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: str | None = None

    def value(self) -> str:
        """Return the key. Raises StoreBroken."""
        if self._known is None:
            self._known = _created_once(self._store, _KEY, secrets.token_hex(32))
        return self._known

    def fits(self, token: str, job_id: str, attempt: int) -> bool:
        """Whether a token belongs to this attempt. Compared in constant time."""
        known = _signature(self.value(), submission_of(job_id, attempt))
        return hmac.compare_digest(known.encode(), signature_of(token).encode("utf-8", "replace"))

    def knows(self, token: str) -> bool | None:
        """Whether a token belongs to some attempt of this queue.

        None: a token of an older release, which names none.
        """
        submission, dot, signature = token.rpartition(".")
        if not dot:
            return None if _OF_OLDER_RELEASES.fullmatch(token) else False
        known = _signature(self.value(), submission)
        return hmac.compare_digest(known.encode(), signature.encode("utf-8", "replace"))


def tokens_of(key: DriverKey, job: Job) -> list[str]:
    """Return the secret parts of the tokens of a job's drivers, which its output must not show."""
    value, attempts = key.value(), range(max(job.attempt - _MOST_ATTEMPTS, 0), job.attempt)
    return [signature_of(attempt_token(value, job.job_id, attempt + 1)) for attempt in attempts]
