"""Roots: the directories and URLs that must contain a tenant's storage, data and models (`Restrictions.roots`)."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.storage import locations as location
from orchestrator.queue.errors import Forbidden, QueueError

_SHOWN = 20


def root_of(path: str, roots: Sequence[str]) -> str | None:
    """Return the root that contains a path or URL; None: no root does."""
    return next((root for root in roots if location.is_under(path, root)), None)


def outside(field: str, path: str, tenant: str, roots: Sequence[str] | None) -> Forbidden | None:
    """Return the error if a tenant's job may not use a path or URL of its spec; None if it may.

    Args:
        roots: directories and URLs of the tenant; None allows every path.
    """
    if roots is None or root_of(path, roots) is not None:
        return None
    return Forbidden.at(
        field,
        f"tenant {tenant!r} may not use {location.shown(path)}. Give a path or URL under {_listed(roots)}, written "
        "without '..'",
    )


def check_run(job_id: str, run: str, roots: Sequence[str] | None) -> None:
    """Check that the server may read the files of a run. Raises QueueError."""
    if roots is not None and root_of(run, roots) is None:
        raise QueueError(
            f"the run of {job_id} is not read: it is in {location.shown(run)}, and its tenant may use only paths under "
            f"{_listed(roots)}"
        )


def _listed(roots: Sequence[str]) -> str:
    more = f" and {len(roots) - _SHOWN} more" if len(roots) > _SHOWN else ""
    return (", ".join(roots[:_SHOWN]) or "no path at all") + more
