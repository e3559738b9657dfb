"""Admission: submitted specs become jobs for the queue, or one message with all their problems."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from cluster.capacity.feasibility import check_can_ever_fit
from cluster.capacity.gang import Gang
from cluster.errors import BackendUnreachable, CapacityError, InputError, Mistake, SpecError
from jobs.planning import gang_of, worker_numbers
from jobs.search.rules.budget import most_gangs
from jobs.search.rules.checking import check_search
from jobs.spec.checking.check import MOST_MISTAKES
from jobs.spec.command import CommandSpec
from jobs.spec.load import AnySpec, spec_of, trained_job
from jobs.spec.references import run_named
from jobs.spec.sweep import Search
from orchestrator.queue.errors import Forbidden, QueueError, UnknownTenant
from orchestrator.queue.records import Job, NewJob
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.quota import check_within_limit
from orchestrator.service.admission import limits
from orchestrator.service.admission.parents import Parents
from orchestrator.service.admission.shared_paths import Readable
from orchestrator.service.context.caller import Caller
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.roots import outside

DEFAULT_TENANT = "default"
ErrorT = TypeVar("ErrorT", bound=InputError)
_MOST_LINES, _LONGEST_LINE, _MOST_CHARACTERS = 20, 1_000, 8_000


def admit(
    context: ServiceContext,
    specs: Sequence[Mapping[str, Any]],
    caller: Caller,
    client: str | None = None,
    packages: Sequence[str] = (),
) -> list[NewJob]:
    """Check specs and make jobs of them, in order, for `Store.submit`. Nothing is written here.

    Args:
        specs: JSON, resolved by the client.
        client: the client whose end cancels the jobs.
        packages: folders that are shipped to the workers, whatever machine these run on.

    Raises:
        InputError: of the class of the problem (SpecError, CapacityError, Forbidden, UnknownTenant, UnknownJob,
            ParentFailed, ...), or QueueError if there are several.
        StoreBroken: the caller tries again later.
    """
    problems, admission = Problems(len(specs)), _Admission(context, specs, caller, packages)
    jobs = []
    for number, value in enumerate(specs, 1):
        if problems.full:
            problems.leave_out(len(specs) - number + 1)
            break
        try:
            spec = spec_of(value, reader="server")
        except SpecError as error:
            problems.add(number, error)
            continue
        wrong = list(islice(admission.problems(spec), MOST_MISTAKES))
        for one in wrong:
            problems.add(number, one)
        if not wrong:
            jobs.append(admission.job(spec, client))
    problems.check()
    return jobs


class _Admission:
    """One submission. Results of checks are shared by its specs."""

    def __init__(
        self,
        context: ServiceContext,
        specs: Sequence[Mapping[str, Any]],
        caller: Caller,
        packages: Sequence[str],
    ) -> None:
        self._context, self._caller = context, caller
        self._tenants = {tenant.name: tenant for tenant in context.store.tenants()}
        same_user = context.engine != "ray"  # Ray may run as another user, which alone may write where its jobs run
        self._readable = Readable(context.shared, context.shares_files, packages, context.protocols, same_user)
        names = frozenset(name for value in specs if isinstance(name := value.get("name"), str))
        self._parents = Parents(context.store, caller, names)
        self._too_large = functools.cache(self._find_too_large)

    def problems(self, spec: AnySpec) -> Iterator[InputError]:
        # A search is checked without access to its storage, which may hold its prior.
        wrong = list(_raised(SpecError, check_search, spec)) if isinstance(spec, Search) else []
        yield from wrong
        tenant = None
        try:
            tenant = self._tenant(spec.queue.tenant)
            if not wrong:
                yield from self._capacity(gang_and_sizes(spec)[0], tenant)
        except (QueueError, SpecError) as error:
            yield error
        yield from self._wrong_parents(spec, tenant)
        yield from self._readable.problems(spec, tenant)
        if tenant is not None:
            yield from limits.problems(spec.queue, tenant, self._caller, self._context.secrets)

    def job(self, spec: AnySpec, client: str | None) -> NewJob:
        """Make the job of a spec that has no problems."""
        queue = spec.queue
        after = [self._parents.find(reference, "queue.after", spec.name).job_id for reference in queue.after]
        source = self._source(spec)
        if source is not None:
            after += [source.job_id]  # even if it has succeeded, since the source must not be removed meanwhile
            spec = with_model(spec, f"run:{source.job_id}")
        tenant = self._tenant(queue.tenant)
        gang, sizes = gang_and_sizes(spec)
        return NewJob(
            name=spec.name,
            kind=spec.kind,
            tenant=tenant.name,
            spec=spec.model_dump_json(),
            gang=gang,
            sizes=sizes,
            submitted_by=self._caller.name,
            priority=queue.priority,
            after=tuple(dict.fromkeys(after)),
            max_runtime_s=queue.max_runtime_s if queue.max_runtime_s is not None else tenant.restrictions.max_runtime_s,
            preemptible=spec.kind != "command" if queue.preemptible is None else queue.preemptible,
            on_end="" if queue.on_end is None else queue.on_end.model_dump_json(exclude_none=True),
            client=client,
            most_queued=tenant.restrictions.max_queued_jobs,
            labels=queue.labels,
        )

    def _tenant(self, asked: str | None) -> Tenant:
        """Return the tenant of a job. Raises Forbidden, UnknownTenant, QueueError."""
        caller, known = self._caller, self._tenants
        name = asked if asked is not None else caller.tenant
        if name is None:
            name = self._usual_tenant()
        caller.check_may_touch(name)
        if name not in known:
            raise UnknownTenant.among(name, known)
        return known[name]

    def _usual_tenant(self) -> str:
        """Return the tenant for a caller without one. Raises QueueError."""
        if self._caller.role != "admin":
            raise Forbidden(f"{self._caller.name} has no tenant, and may submit nothing: ask an admin")
        if DEFAULT_TENANT in self._tenants:
            return DEFAULT_TENANT
        if len(self._tenants) == 1:
            return next(iter(self._tenants))
        if not self._tenants:
            raise UnknownTenant("there are no tenants yet: make one first")
        raise QueueError.at("queue.tenant", f"say whose job it is: {', '.join(sorted(self._tenants)[:20])}")

    def _capacity(self, gang: Gang, tenant: Tenant) -> Iterator[CapacityError]:
        yield from self._too_large(gang)
        if tenant.limit:
            yield from _raised(CapacityError, check_within_limit, gang, tenant)

    def _find_too_large(self, gang: Gang) -> Sequence[CapacityError]:
        """Say why a gang can never fit; nothing also if the machines do not answer, since `why` reports that later."""
        try:
            return tuple(_raised(CapacityError, check_can_ever_fit, gang, self._context.machines.lately()))
        except BackendUnreachable:
            return ()

    def _wrong_parents(self, spec: AnySpec, tenant: Tenant | None) -> Iterator[QueueError]:
        for reference in spec.queue.after:
            yield from _raised(QueueError, self._parents.find, reference, "queue.after", spec.name)
        try:
            source = self._source(spec)
        except QueueError as error:
            yield error
            return
        if source is None or tenant is None:
            return
        if source.tenant != tenant.name:
            yield Forbidden.at(
                "model.path",
                f"{source.job_id} is of tenant {source.tenant!r}, and its model is not for jobs of {tenant.name!r}: "
                "give the model's path",
            )
        elif source.kind != "finetune":
            what = f"{source.job_id} is of kind {source.kind}, and only kind finetune exports a model: give a path"
            yield QueueError.at("model.path", what)
        elif refused := outside("model.path", self._place_of(source), tenant.name, tenant.restrictions.roots):
            yield refused

    def _place_of(self, source: Job) -> str:
        """Return where a job's run and its model are, or will be."""
        return source.run or str(json.loads(self._context.store.spec(source.job_id))["storage_path"])

    def _source(self, spec: AnySpec) -> Job | None:
        """Return the job whose model is trained on; None: the spec names no job. Raises QueueError."""
        job = trained_job(spec)
        name = run_named(job.model.path) if job is not None else None
        return None if name is None else self._parents.find(name, "model.path", spec.name)


def _raised(kind: type[ErrorT], check: Callable[..., object], *given: object) -> Iterator[ErrorT]:
    """Yield the error of this kind that a check raises."""
    try:
        check(*given)
    except kind as error:
        yield error


def gang_and_sizes(spec: AnySpec) -> tuple[Gang, tuple[int, ...]]:
    """Return the smallest gang that a job starts with, and its numbers of workers; () if there is only one number."""
    if isinstance(spec, CommandSpec):
        return gang_of(spec), ()
    if isinstance(spec, Search):
        each = gang_of(spec.base)
        numbers = tuple(each.num_workers * gangs for gangs in range(1, max(map(most_gangs, spec.sweeps)) + 1))
    else:
        each, numbers = gang_of(spec), worker_numbers(spec)
    return replace(each, num_workers=numbers[0]), numbers if len(numbers) > 1 else ()


def with_model(spec: AnySpec, path: str) -> AnySpec:
    """Return the same job, sweep or comparison with another model."""
    return spec.with_value("base.model.path" if isinstance(spec, Search) else "model.path", path)


class Problems:
    """Collects the problems of several specs."""

    def __init__(self, specs: int) -> None:
        self._several = specs > 1
        self._kinds: set[type[InputError]] = set()
        self._found: list[Mistake] = []
        self._errors = self._left_out = 0

    def add(self, number: int, error: InputError) -> None:
        """Add the mistakes of one spec. `number`: number of the spec, counted from 1."""
        self._errors += 1
        self._kinds.add(type(error))
        self._found += (replace(one, spec=number) if self._several else one for one in error.mistakes)

    @property
    def full(self) -> bool:
        """Whether enough problems were found, so that more would not be shown."""
        return self._errors >= _MOST_LINES

    def leave_out(self, specs: int) -> None:
        """Record the number of specs that were not checked."""
        self._left_out = specs

    def check(self) -> None:
        """Raise the problems, if any: as their common class if they share one, else as QueueError."""
        if not self._found:
            return
        told = _fitting(self._found)
        if len(self._found) > len(told):
            told.append(Mistake(f"and {len(self._found) - len(told):,} more"))
        if self._left_out:
            told.append(Mistake(f"the {self._left_out:,} specs after that were not looked at"))
        raise (next(iter(self._kinds)) if len(self._kinds) == 1 else QueueError).of(told)


def _fitting(found: Sequence[Mistake]) -> list[Mistake]:
    """Return the first mistakes, as many as fit the size of a readable message."""
    told: list[Mistake] = []
    for one in found[:_MOST_LINES]:
        if len(one.message) > _LONGEST_LINE:
            one = replace(one, message=f"{one.message[:_LONGEST_LINE]}...")
        if told and sum(len(str(other)) for other in told) + len(str(one)) > _MOST_CHARACTERS:
            break
        told.append(one)
    return told
