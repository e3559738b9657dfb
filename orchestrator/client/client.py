"""The client of the queue, for scripts: submit jobs, wait for them, and read about them.

with Client() as client:
    runs = client.submit_many(load_spec("job.yaml").vary(learning_rate=[1e-5, 2e-5]))
    for run in client.as_completed(runs):
        print(run.name, run.result().metrics["eval_loss"])
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from pydantic import ValidationError

from cluster.errors import InputError, Mistake, SpecError
from cluster.settings import fleetune_home, is_without_server, server_url
from cluster.text import did_you_mean
from jobs.search.rules.checking import check_search
from jobs.spec.load import AnySpec, spec_of
from jobs.spec.queue import Queue
from jobs.spec.sweep import Search
from jobs.spec.vary import JobSpec
from orchestrator.api import (
    LONGEST_KEY,
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
from orchestrator.api import Nodes as NodesResponse
from orchestrator.client.connection import Connection
from orchestrator.client.discovery import token_here
from orchestrator.client.embedded_server import ClientLock, MachineServer
from orchestrator.client.handle import FIRST_POLL_S, JobHandle, pause_between_polls
from orchestrator.client.lookup import all_jobs, check_job_id, job_path
from orchestrator.client.plans import GangPlan, gangs_of, plan_gang
from orchestrator.client.spec_names import Named, load_named, place_errors, with_names
from orchestrator.queue.states import ENDED, State

Job = JobHandle | str  # a job, or the id of one
StateName = Literal["queued", "starting", "running", "stopping", "succeeded", "failed", "cancelled"]

PER_REQUEST: Final = 1000


class Client:
    """A client of one server. Thread-safe.

    Args:
        url: URL of the server. Default: FLEETUNE_URL, or else the server of this machine, which is started if there is
            none.
        token: default: FLEETUNE_TOKEN, or the file `token` in FLEETUNE_HOME.
        detach: let jobs go on after the end of this script. By default they end with it on the server of this machine;
            on a server given by URL they always go on.

    Raises:
        InputError: the URL or the token is not valid, or FLEETUNE_URL is none.
        NotStarted: the server of this machine does not start.
    """

    def __init__(self, url: str | None = None, token: str | None = None, *, detach: bool = False) -> None:
        where, home = url or server_url(), fleetune_home()
        if is_without_server(where):
            raise InputError(
                f"{'FLEETUNE_URL' if url is None else 'url'} is none, so this client has no server: give the URL of "
                "one, or unset FLEETUNE_URL for the server of this machine"
            )
        token, token_from = token_here(token)
        self._client: str | None = None  # whose end cancels the jobs
        find = None if where is not None else MachineServer(home).url
        with contextlib.ExitStack() as opened:
            if where is None:  # before the server is looked up, because it stays as long as a client is present
                lock = ClientLock(home)
                opened.callback(lock.end)
                self._client = None if detach else lock.client
            url = find() if find is not None else where or ""
            self._connection = Connection(url, token, token_from=token_from, find=find)
            opened.callback(self._connection.close)
            self._opened = opened.pop_all()

    @property
    def url(self) -> str:
        return self._connection.url

    def close(self) -> None:
        """Close the client. Jobs that should end with it are cancelled by the server."""
        self._opened.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
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
            spec: a spec, or the path or URL of its file.
            tenant, priority: override the spec's section `queue`.
            after: jobs that must succeed first, in addition to those in the spec.
            key: idempotency key, of up to 200 characters: the same key and spec give the same job, even from another
                process. Default: each call is a new job.

        Raises:
            SpecError: the spec is wrong, or names files that the workers cannot read.
            KeyReused: the key was used with another spec.
        """
        return self._send(self._to_send([spec], tenant, priority, after), checked_key(key))[0]

    def submit_many(
        self,
        specs: Iterable[AnySpec | str | os.PathLike[str]],
        *,
        tenant: str | None = None,
        priority: int | None = None,
        after: Iterable[Job] = (),
        key: str | None = None,
    ) -> list[JobHandle]:
        """Queue several jobs, in order. They are sent a thousand at a time.

        A thousand is queued completely or not at all. If a later one is refused, those before it stay queued.
        """
        to_send, key = self._to_send(specs, tenant, priority, after), checked_key(key)
        parts = [to_send[start : start + PER_REQUEST] for start in range(0, len(to_send), PER_REQUEST)]
        return [handle for number, part in enumerate(parts) for handle in self._send(part, _key_of_part(key, number))]

    def plan(self, *specs: AnySpec | str | os.PathLike[str]) -> list[GangPlan]:
        """Predict memory and time of jobs on the GPUs of the cluster, as `fleetune submit` does. Queues nothing.

        Needs torch, and model and data on this machine.

        Args:
            specs: specs, or the paths or URLs of their files.

        Returns:
            A plan for each spec, or each method of a comparison; of specs with the same plan, such as those that
            differ in the learning rate, for the first. Jobs without GPUs, jobs for which no kind of node has room,
            and sweeps whose trials differ in what the engine is built from have none.

        Raises:
            InputError: torch is not installed here.
            SpecError: a spec is wrong.
            DataError: a model or data cannot be read.
        """
        if importlib.util.find_spec("torch") is None:
            raise InputError("a plan traces the model, and torch is not installed here: pip install 'fleetune[train]'")
        found = [replace(one, spec=_checked(one)) for one in load_named(specs)]
        for one in found:
            with place_errors(one):
                if isinstance(one.spec, Search):
                    check_search(one.spec)
        return [plan_gang(gang) for gang in gangs_of(found, self.nodes(), len(found) > 1)]

    def _to_send(
        self,
        specs: Iterable[AnySpec | str | os.PathLike[str]],
        tenant: str | None,
        priority: int | None,
        after: Iterable[Job],
    ) -> list[tuple[Named, dict[str, Any]]]:
        """Return each spec with its name, and in the form in which it is sent."""
        if isinstance(specs, JobSpec | str | os.PathLike):
            raise InputError("submit_many takes a list of specs; submit takes one")
        if isinstance(after, str | JobHandle):
            after = (after,)
        parents = tuple(map(_id_of, after))
        found = load_named(list(specs))
        return list(zip(found, with_queue_settings(found, tenant, priority, parents), strict=True))

    def _send(self, to_send: Sequence[tuple[Named, dict[str, Any]]], key: str) -> list[JobHandle]:
        body = Submission(specs=tuple(sent for _, sent in to_send), key=key, client=self._client)
        jobs = send_specs(self._connection, body, [one for one, _ in to_send])
        return [JobHandle(self._connection, view) for view in jobs]

    # Waiting

    def as_completed(self, jobs: Iterable[Job], timeout_s: float | None = None) -> Iterator[JobHandle]:
        """Yield the handle of each job once the job has ended, in any state. One request serves all handles.

        Raises:
            UnknownJob: an id is no job's.
            TimeoutError: some jobs have not ended yet; they go on.
        """
        return iter_completed(self._connection, self._handles(jobs), timeout_s)

    def wait(self, jobs: Iterable[Job], timeout_s: float | None = None) -> list[JobHandle]:
        """Wait until all jobs have ended. Returns their handles, in order. Raises UnknownJob, TimeoutError."""
        handles = self._handles(jobs)
        for _ in self.as_completed(handles, timeout_s):
            pass
        return handles

    def _handles(self, jobs: Iterable[Job]) -> list[JobHandle]:
        given = (jobs,) if isinstance(jobs, str | JobHandle) else jobs
        return [self.job(job) if isinstance(job, str) else job for job in given]

    # Reading

    def job(self, job_id: str) -> JobHandle:
        """Return a job by its id. Raises UnknownJob."""
        check_job_id(job_id)
        return JobHandle(self._connection, self._connection.get(job_path(job_id), JobView))

    def jobs(
        self,
        tenant: str | None = None,
        states: Iterable[State | StateName] | StateName = (),
        name: str | None = None,
    ) -> Iterator[JobHandle]:
        """Yield jobs, newest first. `name`: beginning of the job's id. Raises InputError for an unknown state."""
        given = (states,) if isinstance(states, str) else states
        wanted = [_state(state).value for state in given] or None
        for view in all_jobs(self._connection, tenant=tenant, state=wanted, name=name):
            yield JobHandle(self._connection, view)

    def why(self, job: Job) -> WhyView:
        return self._connection.get(f"{job_path(_id_of(job))}/why", WhyView)

    def nodes(self) -> tuple[NodeView, ...]:
        return self._connection.get("/v1/nodes", NodesResponse).nodes

    def tenants(self) -> tuple[TenantView, ...]:
        return self._connection.get("/v1/tenants", Tenants).tenants

    def usage(self, month: str | None = None, tenant: str | None = None) -> tuple[UsageRow, ...]:
        """Return usage by month and tenant. `month`: for example 2026-11; default: the newest twelve."""
        return self._connection.get("/v1/usage", Usage, {"month": month, "tenant": tenant}).rows

    def server(self) -> Server:
        return self._connection.get("/v1/server", Server)


def iter_completed(
    connection: Connection, handles: Iterable[JobHandle], timeout_s: float | None = None
) -> Iterator[JobHandle]:
    """Yield handles as `Client.as_completed` does."""
    waiting = list({id(handle): handle for handle in handles}.values())  # several handles may be of one job
    until_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
    yield from _pop_ended(waiting)
    after = min((handle.view.changed for handle in waiting), default=0)
    pause_s = FIRST_POLL_S
    while waiting:
        asked_s = time.monotonic()
        changes = connection.get("/v1/changes", Changes, {"after": after, "limit": MOST_PAGE})
        changed = {view.job_id: view for view in changes.jobs}
        for handle in waiting:
            if handle.id in changed:
                handle.learn(changed[handle.id], asked_s)
        if changes.last < after:  # the server has another store than before, such as a restored backup
            for handle in waiting:
                handle.refresh()
        after = changes.last
        ended = _pop_ended(waiting)
        yield from ended
        if waiting and len(changes.jobs) < MOST_PAGE:
            late = f"{len({handle.id for handle in waiting})} jobs have not ended yet, and go on"
            pause_s = pause_between_polls(FIRST_POLL_S if ended else pause_s, until_s, late)


def send_specs(connection: Connection, body: Submission, specs: Sequence[Named]) -> tuple[JobView, ...]:
    """Submit specs. Raises the server's errors, with names of specs instead of their numbers."""
    try:
        return connection.post("/v1/jobs", JobPage, body, again=True).jobs
    except InputError as error:
        raise with_names(error, specs) from error


def with_queue_settings(
    specs: Sequence[Named], tenant: str | None, priority: int | None, after: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return specs as they are sent, with the given queue settings. Raises SpecError with the mistakes of all specs."""
    found, wrong = list[dict[str, Any]](), dict[Mistake, None]()
    for one in specs:
        try:
            with place_errors(one) if len(specs) > 1 else contextlib.nullcontext():
                found.append(_with_queue_settings(one, tenant, priority, after))
        except SpecError as error:
            wrong |= dict.fromkeys(error.mistakes)
    if wrong:
        raise SpecError.of(wrong)
    return found


def _with_queue_settings(
    one: Named, tenant: str | None, priority: int | None, after: tuple[str, ...]
) -> dict[str, Any]:
    """Return a spec as it is sent, with the given queue settings. Raises SpecError."""
    sent: dict[str, Any] = _checked(one).model_dump(mode="json")
    queue = sent["queue"]
    settings = {"tenant": tenant, "priority": priority, "after": [*dict.fromkeys((*queue["after"], *after))] or None}
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        changed = Queue.model_validate_json(json.dumps(queue | given), strict=True)
    except ValidationError:
        return spec_of(sent | {"queue": queue | given}).model_dump(mode="json")  # raises the error
    return sent | {"queue": changed.model_dump(mode="json")}


def _checked(one: Named) -> AnySpec:
    """Return a spec that is known to be valid. Raises SpecError."""
    return one.spec if one.is_checked else spec_of(one.spec.model_dump(mode="json", warnings=False))


def checked_key(key: str | None) -> str:
    """Return an idempotency key, or a new one if there is none. Raises InputError."""
    if key and not (key.isprintable() and len(key) <= LONGEST_KEY):
        raise InputError(f"a key has up to {LONGEST_KEY} characters that can be shown, but this one is {key[:50]!r}")
    return key or uuid.uuid4().hex


def _key_of_part(key: str, number: int) -> str:
    """Return the key of one of the requests of a submission; one that would be too long is hashed."""
    part = f"{key}-{number}"
    return part if len(part) <= LONGEST_KEY else hashlib.sha256(part.encode()).hexdigest()


def _state(given: str) -> State:
    try:
        return State(given)
    except ValueError:
        hint = did_you_mean(given, list(State)) or f": states are {', '.join(State)}"
        raise InputError(f"there is no state {given!r} of jobs{hint}") from None


def _id_of(job: Job) -> str:
    return job.id if isinstance(job, JobHandle) else job


def _pop_ended(waiting: list[JobHandle]) -> list[JobHandle]:
    """Remove and return the handles whose jobs have ended, as far as is known."""
    ended = {handle: None for handle in waiting if handle.view.state in ENDED}
    waiting[:] = [handle for handle in waiting if handle not in ended]
    return list(ended)
