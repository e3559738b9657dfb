"""Roots: the directories and URLs that must contain a tenant's storage, data and models (`Restrictions.roots`)."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.storage import locations as location
from orchestrator.queue.errors import Forbidden, QueueError

_SHOWN = 20


def root_of(path: str, roots: Sequence[str]) -> str | None:
    """Return the root that contains a path or URL; None: no root does."""
    return next((root for root in roots if location.is_under_any(path, (root,))), None)


def outside(field: str, path: str, tenant: str, roots: Sequence[str] | None) -> Forbidden | None:
    """Return why a tenant's job may not name a path or URL in its spec; None: it may.

    Args:
        roots: None: the tenant may name any path.
    """
    if roots is None or root_of(path, roots) is not None:
        return None
    return Forbidden.at(
        field,
        f"{location.shown(path)} is outside of what tenant {tenant!r} may use. Allowed is what lies under "
        f"{_listed(roots)}, written without '..'",
    )


def check_run(job_id: str, run: str, roots: Sequence[str] | None) -> None:
    """Check that the server may read the files of a run. Raises QueueError."""
    if roots is not None and root_of(run, roots) is None:
        raise QueueError(
            f"the run of {job_id} is not read: it lies outside of what its tenant may use, which is what lies under "
            f"{_listed(roots)}"
        )


def _listed(roots: Sequence[str]) -> str:
    more = f" and {len(roots) - _SHOWN} more" if len(roots) > _SHOWN else ""
    return (", ".join(roots[:_SHOWN]) or "no path at all") + more
