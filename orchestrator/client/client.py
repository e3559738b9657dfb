"""The queue from a script: submit, wait, look.

with Client() as client:
    runs = client.submit_many(load_spec("job.yaml").vary(learning_rate=[1e-5, 2e-5]))
    for run in client.as_completed(runs):
        print(run.name, run.result().metrics["eval_loss"])
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal
from urllib.parse import quote

from pydantic import ValidationError

from cluster.errors import Mistake
from cluster.settings import fleetune_home, server_url
from jobs.errors import InputError, SpecError
from jobs.spec.command import CommandSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import AnySpec, spec_of
from jobs.spec.queue import Queue
from jobs.spec.sweep import SweepSpec
from orchestrator.api import (
    MOST_PAGE,
    Changes,
    JobPage,
    JobView,
    NodeView,
    Server,
    Submission,
    Tenants,
    TenantView,
    Usage,
    UsageRow,
    WhyView,
)
from orchestrator.api import Nodes as NodesTold
from orchestrator.client.connection import Connection
from orchestrator.client.discovery import token_here
from orchestrator.client.embedded_server import Presence, embedded_url
from orchestrator.client.handle import FIRST_POLL_S, LONGEST_POLL_S, JobHandle
from orchestrator.client.spec_names import Named, named, of_one, with_names
from orchestrator.queue.states import ENDED, State

Job = JobHandle | str  # a job, or its id
StateName = Literal["queued", "starting", "running", "stopping", "succeeded", "failed", "cancelled"]

PER_REQUEST: Final = 1000
PAGE: Final = 500


class Client:
    """May be used by several threads at once.

    Args:
        url: of the server; left out: FLEETUNE_URL, or else a server of this machine, which is started where none lives.
        token: left out: FLEETUNE_TOKEN, or the file token of FLEETUNE_HOME.
        detach: jobs go on after the end of this script. With a server of this machine they otherwise end with it;
            those of a server by URL always go on.

    Raises:
        InputError: the URL or the token is none.
        NotStarted: the server of this machine does not come up.
    """

    def __init__(self, url: str | None = None, token: str | None = None, *, detach: bool = False) -> None:
        where, home = url or server_url(), fleetune_home()
        token, token_from = token_here(token)
        # Before the server is looked for: it stays as long as somebody is there.
        self._presence = Presence(home) if where is None else None
        self._ends_jobs = not detach
        find = None if where is not None else partial(embedded_url, home)
        try:
            self._connection = Connection(where or embedded_url(home), token, token_from=token_from, find=find)
        except BaseException:
            self._end_presence()
            raise

    @property
    def url(self) -> str:
        return self._connection.url

    def close(self) -> None:
        """Jobs that were not to outlive this client are cancelled by their server."""
        self._end_presence()
        self._connection.close()

    def _end_presence(self) -> None:
        if self._presence is not None:
            self._presence.end()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # Submitting

    def submit(
        self,
        spec: AnySpec | str | os.PathLike[str],
        *,
        tenant: str | None = None,
        priority: int | None = None,
        after: Iterable[Job] = (),
        key: str | None = None,
    ) -> JobHandle:
        """Queue one job.

        Args:
            spec: or the path or URL of its file.
            tenant, priority, after: in place of what the spec's section `queue` says; `after` is added to it.
            key: the same key and spec give the same job, also from another process. Left out, each call is a new job.

        Raises:
            SpecError: the spec is wrong, or names files that the server's workers cannot read.
            KeyReused: the key was used for something else.
        """
        return self._send(self._asked([spec], tenant, priority, after), key or uuid.uuid4().hex)[0]

    def submit_many(
        self,
        specs: Iterable[AnySpec | str | os.PathLike[str]],
        *,
        tenant: str | None = None,
        priority: int | None = None,
        after: Iterable[Job] = (),
        key: str | None = None,
    ) -> list[JobHandle]:
        """Queue several, in their order. Each thousand of them is queued whole, or not at all."""
        asked, key = self._asked(specs, tenant, priority, after), key or uuid.uuid4().hex
        parts = [asked[start : start + PER_REQUEST] for start in range(0, len(asked), PER_REQUEST)]
        return [handle for number, part in enumerate(parts) for handle in self._send(part, f"{key}-{number}")]

    def _asked(
        self,
        specs: Iterable[AnySpec | str | os.PathLike[str]],
        tenant: str | None,
        priority: int | None,
        after: Iterable[Job],
    ) -> list[tuple[Named, dict[str, Any]]]:
        """Each as it is sent, beside what its author calls it."""
        if isinstance(specs, Spec | CommandSpec | SweepSpec | str):
            raise InputError("submit_many takes a list of specs; submit takes one")
        if isinstance(after, str | JobHandle):
            after = (after,)
        parents = tuple(map(_id_of, after))
        found = named(list(specs))
        return list(zip(found, asking(found, tenant, priority, parents), strict=True))

    def _send(self, asked: Sequence[tuple[Named, dict[str, Any]]], key: str) -> list[JobHandle]:
        client = self._presence.client if self._presence is not None and self._ends_jobs else None
        body = Submission(specs=tuple(sent for _, sent in asked), key=key, client=client)
        jobs = submitted(self._connection, body, [one for one, _ in asked])
        return [JobHandle(self._connection, view) for view in jobs]

    # Waiting

    def as_completed(self, handles: Iterable[JobHandle], timeout_s: float | None = None) -> Iterator[JobHandle]:
        """Each handle once its job has ended, whichever way, in that order. One request asks for all of them.

        Raises:
            TimeoutError: some have not ended yet; they go on.
        """
        return completed(self._connection, handles, timeout_s)

    def wait(self, handles: Iterable[JobHandle], timeout_s: float | None = None) -> list[JobHandle]:
        """All of them, in their order, once all have ended. Raises TimeoutError."""
        handles = list(handles)
        for _ in self.as_completed(handles, timeout_s):
            pass
        return handles

    # Looking

    def job(self, job_id: str) -> JobHandle:
        """By its id. Raises UnknownJob."""
        return JobHandle(self._connection, self._connection.get(f"/v1/jobs/{quote(job_id, safe='')}", JobView))

    def jobs(
        self,
        tenant: str | None = None,
        states: Iterable[State | StateName] = (),
        name: str | None = None,
    ) -> Iterator[JobHandle]:
        """The newest first; `name` is the start of an id."""
        wanted = [State(state).value for state in states]
        before: int | None = None
        while True:
            asked = {"tenant": tenant, "state": wanted or None, "name": name, "before": before, "limit": PAGE}
            page = self._connection.get("/v1/jobs", JobPage, asked)
            yield from (JobHandle(self._connection, view) for view in page.jobs)
            if page.next is None:
                return
            before = page.next

    def why(self, job: Job) -> WhyView:
        return self._connection.get(f"/v1/jobs/{quote(_id_of(job), safe='')}/why", WhyView)

    def nodes(self) -> tuple[NodeView, ...]:
        return self._connection.get("/v1/nodes", NodesTold).nodes

    def tenants(self) -> tuple[TenantView, ...]:
        return self._connection.get("/v1/tenants", Tenants).tenants

    def usage(self, month: str | None = None, tenant: str | None = None) -> tuple[UsageRow, ...]:
        """`month`: as 2026-11; left out: the newest twelve."""
        return self._connection.get("/v1/usage", Usage, {"month": month, "tenant": tenant}).rows

    def server(self) -> Server:
        return self._connection.get("/v1/server", Server)


def completed(
    connection: Connection, handles: Iterable[JobHandle], timeout_s: float | None = None
) -> Iterator[JobHandle]:
    """As `Client.as_completed`."""
    waiting = {handle.id: handle for handle in handles}
    until_s = None if timeout_s is None else time.monotonic() + timeout_s
    yield from _ended(waiting)
    after = min((handle.view.changed for handle in waiting.values()), default=0)
    pause_s = FIRST_POLL_S
    while waiting:
        told = connection.get("/v1/changes", Changes, {"after": after, "limit": MOST_PAGE})
        for view in told.jobs:
            if view.job_id in waiting:
                waiting[view.job_id].learn(view)
        if told.last < after:  # another store than before: are they still there?
            for handle in waiting.values():
                handle.refresh()
        after = told.last
        ended = list(_ended(waiting))
        yield from ended
        if waiting and len(told.jobs) < MOST_PAGE:
            pause_s = _sleep(FIRST_POLL_S if ended else pause_s, until_s, len(waiting))


def submitted(connection: Connection, body: Submission, specs: Sequence[Named]) -> tuple[JobView, ...]:
    """Submit; what is wrong is said of `specs` by their names. Raises what the server says."""
    try:
        return connection.post("/v1/jobs", JobPage, body, again=True).jobs
    except InputError as error:
        raise with_names(error, specs) from error


def asking(
    specs: Sequence[Named], tenant: str | None, priority: int | None, after: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Specs as they are sent, with what is asked for on the way. Raises SpecError: the mistakes of all of them."""
    found, wrong = list[dict[str, Any]](), dict[Mistake, None]()
    for one in specs:
        try:
            found.append(_asking(one, tenant, priority, after))
        except SpecError as error:
            said = of_one(error, one) if len(specs) > 1 else error
            wrong |= dict.fromkeys(said.mistakes)
    if wrong:
        raise SpecError.of(wrong)
    return found


def _asking(one: Named, tenant: str | None, priority: int | None, after: tuple[str, ...]) -> dict[str, Any]:
    """Raises SpecError."""
    sent: dict[str, Any] = one.spec.model_dump(mode="json", warnings=False)
    if not one.is_checked:
        sent = spec_of(sent).model_dump(mode="json")
    queue = sent["queue"]
    asked = {"tenant": tenant, "priority": priority, "after": [*dict.fromkeys((*queue["after"], *after))] or None}
    given = {name: value for name, value in asked.items() if value is not None}
    try:
        changed = Queue.model_validate_json(json.dumps(queue | given), strict=True)
    except ValidationError:
        return spec_of(sent | {"queue": queue | given}).model_dump(mode="json")  # it says what is wrong
    return sent | {"queue": changed.model_dump(mode="json")}


def _id_of(job: Job) -> str:
    return job.id if isinstance(job, JobHandle) else job


def _ended(waiting: dict[str, JobHandle]) -> Iterator[JobHandle]:
    """Takes out those that have ended, as far as is known."""
    for handle in [handle for handle in waiting.values() if handle.view.state in ENDED]:
        yield waiting.pop(handle.id)


def _sleep(pause_s: float, until_s: float | None, count: int) -> float:
    """The pause after this one. Raises TimeoutError."""
    if until_s is not None:
        left_s = until_s - time.monotonic()
        if left_s <= 0.0:
            raise TimeoutError(f"{count} jobs have not ended yet, and go on")
        pause_s = min(pause_s, left_s)
    time.sleep(pause_s)
    return min(pause_s * 1.2, LONGEST_POLL_S)
