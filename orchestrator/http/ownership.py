"""Which events a caller may see, by the tenants of their jobs."""

from __future__ import annotations

from orchestrator.http.routing import sees_all
from orchestrator.queue.errors import UnknownJob, UnreadableJob
from orchestrator.queue.store import Store
from orchestrator.service.context.caller import Caller

_MOST_KEPT = 200_000


class Ownership:
    """Caches the tenants of jobs, which never change. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, str] = {}

    def sees(self, caller: Caller, job_id: str) -> bool:
        if sees_all(caller):
            return True
        tenant = self._tenant(job_id)
        return tenant is not None and caller.may_see(tenant)

    def _tenant(self, job_id: str) -> str | None:
        tenant = self._known.get(job_id)
        if tenant is None:
            try:
                tenant = self._store.job(job_id).tenant
            except UnknownJob:
                return None
            except UnreadableJob as error:
                tenant = error.tenant
            if len(self._known) >= _MOST_KEPT:
                self._known = {}
            self._known[job_id] = tenant
        return tenant
