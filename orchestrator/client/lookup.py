"""Lookup of jobs and nodes by id or by a unique beginning of it, and of tenants by name."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from cluster.errors import InputError
from cluster.text import did_you_mean
from jobs.run.paths import job_in_name
from orchestrator.api import MOST_PAGE, JobPage, JobView, Nodes, NodeView, Server, Tenants
from orchestrator.client.connection import Connection
from orchestrator.queue.errors import UnknownJob, UnknownNode, UnknownTenant
from orchestrator.queue.names import name_of
from orchestrator.queue.wording import retention_text

NAMED: Final = 5  # most candidates to name in a message
_ID = re.compile(r"^[A-Za-z0-9._-]{1,200}$")
_MOST_LOOKED_AT: Final = 1000


def job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def check_job_id(given: str) -> None:
    """Raise UnknownJob if no id has this form."""
    if not _ID.match(given):
        raise UnknownJob(f"no job has an id like {given!r}: `fleetune queue --all` lists them")


def all_jobs(connection: Connection, **filters: str | list[str] | None) -> Iterator[JobView]:
    """Yield jobs, newest first. `filters`: parameters of `/v1/jobs`, e.g. `state`."""
    before: int | None = None
    while True:
        page = connection.get("/v1/jobs", JobPage, {**filters, "before": before, "limit": MOST_PAGE})
        yield from page.jobs
        if page.next is None:
            return
        before = page.next


def find_job(connection: Connection, given: str) -> JobView:
    """Return the job with this id, with an id that begins with it, or whose run has this name.

    Raises:
        UnknownJob: there is no such job; the message suggests others.
        InputError: there are several.
    """
    check_job_id(given)
    try:
        return connection.get(job_path(given), JobView)
    except UnknownJob as error:
        page = connection.get("/v1/jobs", JobPage, {"name": given, "limit": NAMED + 1})
        if not page.jobs:
            page = _writing(connection, given)
        if not page.jobs:
            said, asks = (str(error), True) if error.meant else _unknown(connection, given)
            if old := removed_jobs(connection):
                said += f"{'' if asks else '.'} {old[:1].upper()}{old[1:]}"
            raise UnknownJob(said) from None
    if len(page.jobs) == 1 and page.next is None:
        return page.jobs[0]
    names = ", ".join(job.job_id for job in page.jobs[:NAMED])
    more = " and more" if len(page.jobs) > NAMED or page.next is not None else ""
    raise InputError(f"{given!r} may mean several jobs: {names}{more}. Give more of the id")


def _writing(connection: Connection, run: str) -> JobPage:
    """Return the jobs whose run has this name, or a name that begins with it."""
    name = job_in_name(run)
    if name is None:
        return JobPage(jobs=(), next=None)
    page = connection.get("/v1/jobs", JobPage, {"name": f"{name}-", "limit": _MOST_LOOKED_AT})
    jobs = [job for job in page.jobs if job.run is not None and posixpath.basename(job.run).startswith(run)]
    return JobPage(jobs=tuple(jobs), next=None)


def removed_jobs(connection: Connection) -> str:
    """Say what the server does with old jobs; '': it keeps all."""
    return retention_text(connection.get("/v1/server", Server).retention_days)


def _unknown(connection: Connection, given: str) -> tuple[str, bool]:
    """Make a message that suggests similar ids, or ids of the same name; and return whether it ends with a question."""
    if job_in_name(given) is not None:
        return f"no job of the queue writes a run {given!r}. To see a run of your own: fleetune show {given}", False
    newest = [job.job_id for job in connection.get("/v1/jobs", JobPage, {"limit": 200}).jobs]
    if hint := did_you_mean(given, newest):
        return f"there is no job {given!r}{hint}", True
    if same := [one for one in newest if name_of(one) == name_of(given)]:
        names = f"{', '.join(same[:NAMED])}{' and more' if len(same) > NAMED else ''}"
        return f"there is no job {given!r}: jobs of that name are {names}", False
    if hint := did_you_mean(given, set(map(name_of, newest))):
        return f"there is no job {given!r}{hint}", True
    return f"there is no job {given!r}: `fleetune queue --all` lists the jobs, and `fleetune runs` your own runs", False


def find_node(nodes: Nodes, given: str) -> NodeView:
    """Return a node by name or id. Raises UnknownNode, or InputError if several match."""
    found = [one for one in nodes.nodes if given in (one.node_id, one.name)]
    found = found or [one for one in nodes.nodes if given and one.node_id.startswith(given)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{given!r} may mean {len(found)} nodes. Give more of the id")
    ids = [one.name or one.node_id for one in nodes.nodes]
    hint = did_you_mean(given, ids) or f"; nodes are {', '.join(ids[:NAMED])}{' and more' if len(ids) > NAMED else ''}"
    raise UnknownNode(f"there is no node {given!r}{hint if ids else ': the cluster has no nodes'}")


def find_tenant(connection: Connection, given: str) -> str:
    """Check the name of a tenant. Raises UnknownTenant, also for tenants that the caller may not see."""
    known = [one.name for one in connection.get("/v1/tenants", Tenants).tenants]
    if given in known:
        return given
    raise UnknownTenant.among(given, known)
